"""Resizing: a new cluster with another number of partitions is fed from the logs of the old one."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from numbers_uring.cluster.partitions import log_name
from numbers_uring.load.model import LoadParameters
from numbers_uring.load.run import run_load
from support.broker import broker_with_cluster
from support.logs import logged_once
from support.processes import CommandProcess, ServerProcess, run_command
from support.waiting import DEADLINE_S, wait_until

OLD_PARTITIONS, NEW_PARTITIONS = 2, 3
NUMBERS = 200_000


def logs(folder: Path, partitions: int) -> list[Path]:
    return [folder / log_name(partition) for partition in range(partitions)]


def union(paths: Sequence[Path]) -> set[int]:
    """Return the numbers of all logs, after a check that each is in one, once."""
    parts = [logged_once(path) for path in paths]
    everything = set().union(*parts)
    assert len(everything) == sum(map(len, parts))
    return everything


@contextmanager
def cluster(folder: Path, partitions: int) -> Iterator[ServerProcess]:
    """Run a NATS server, a node and a collector of everything; at the end these are stopped."""
    broker = broker_with_cluster(folder / "broker", partitions=partitions, max_bytes=1 << 30)
    with ExitStack() as running:
        url = running.enter_context(broker).url
        everything = ("--partitions", f"0-{partitions - 1}", "--log-dir", str(folder))
        collector = running.enter_context(CommandProcess("collect", "--nats", url, *everything))
        collector.wait_for("collecting partitions")
        forward = ("--forward", url, "--partitions", str(partitions))
        node = running.enter_context(ServerProcess(Path("no-log"), *forward, has_log=False))
        yield node
        assert node.stop(signal.SIGTERM) == 0, node.stderr
        wait_until(
            lambda: sum(log.stat().st_size for log in logs(folder, partitions)) == 10 * NUMBERS,
            "all numbers in the logs",
        )
        assert collector.stop(signal.SIGTERM) == 0, collector.stderr
        done = run_command("cluster", "verify", "--nats", url, "--log-dir", str(folder))
        assert (done.returncode, done.stderr) == (0, ""), done
        assert f"{NUMBERS} numbers in logs, {NUMBERS} in streams, clean" in done.stdout


def test_a_cluster_of_three_partitions_takes_in_the_logs_of_one_of_two(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with cluster(old, OLD_PARTITIONS) as node:
        sent = LoadParameters(port=node.port, numbers=NUMBERS, timeout_s=DEADLINE_S)
        assert run_load(sent).complete
    numbers = union(logs(old, OLD_PARTITIONS))
    assert len(numbers) == NUMBERS
    with cluster(new, NEW_PARTITIONS) as node:
        port = ("--port", str(node.port))
        done = run_command("load", *port, *map(str, logs(old, OLD_PARTITIONS)))
        assert (done.returncode, done.stderr) == (0, "")
        # A second time all of them are repeats.
        assert run_command("load", *port, *map(str, logs(old, OLD_PARTITIONS))).returncode == 0
    assert union(logs(new, NEW_PARTITIONS)) == numbers
