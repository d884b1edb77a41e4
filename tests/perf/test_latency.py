"""The benchmark of latency: what it takes for the moment when a line was on file."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import latency
from bench import cpu_ns
from latency import Load, measure, percentile
from support.processes import ServerProcess


def test_a_percentile_is_shown_only_where_enough_samples_lie_above_it() -> None:
    times_ms = [float(each) for each in range(1, 301)]
    assert percentile(times_ms, 0.5) == 150
    assert percentile(times_ms, 0.99) == 297
    assert percentile(times_ms[:-1], 0.99) is None
    assert percentile(times_ms, 0.999) is None


def test_a_line_was_on_file_when_the_log_first_had_the_size_of_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w+b", buffering=0) as file:
        sizes = latency._Sizes(file.fileno())
        probe = latency._Probe(b"000000777\n", 0, sizes.look())
        for line in (b"000000001\n" * 200_000, b"000000777\n", b"000000002\n"):
            file.write(line)
            probe.most_bytes = sizes.look()
        assert sizes.on_file_ns(probe) == sizes.seen_ns[2]
        assert sizes.on_file_ns(latency._Probe(b"000000003\n", 0, 0)) is None


def test_every_line_of_the_quiet_client_is_found_beside_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr(latency, "ROW_S", 0.2)
    monkeypatch.setattr(latency, "WARM_UP_S", 0.0)
    with ServerProcess(tmp_path / "log", "--max-clients", "200") as server:
        load = Load("a load", ("--clients", "4", "--rate", "100000"))
        found = measure(server.process.pid, server.port, tmp_path / "log", load, cpu_ns)
    assert found.on_file_ms
    assert all(
        0 < on_file <= closed
        for on_file, closed in zip(found.on_file_ms, found.closed_ms, strict=True)
    )
    assert os.getpriority(os.PRIO_PROCESS, 0) == nice


def test_a_prober_whose_probes_wait_leaves_the_processor_to_the_server(tmp_path: Path) -> None:
    log, seconds = tmp_path / "log", 0.4
    with ServerProcess(log, "--max-clients", "500") as server, log.open("rb") as file:
        prober = latency._Prober(server.port, file.fileno())
        go_on = threading.Timer(seconds, server.process.send_signal, (signal.SIGCONT,))
        server.process.send_signal(signal.SIGSTOP)
        go_on.start()
        begin_s = time.process_time()
        try:
            prober.run(seconds)
            used_s = time.process_time() - begin_s
        finally:
            go_on.join()
            prober.close()
    assert len(prober._done) > 50
    # One that looks as often as it can needs nearly half of it.
    assert used_s < 0.25 * seconds
