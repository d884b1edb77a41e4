"""A NATS server far away, with many partitions."""

import time
from pathlib import Path

from support.broker import Broker, init
from support.clients import sees_fin
from support.logs import lines
from support.processes import CommandProcess, ServerProcess
from support.slow_link import slow_link
from support.waiting import wait_until

PARTITIONS = 256
DELAY_S = 0.025


def test_what_has_many_partitions_does_not_ask_for_one_after_the_other(tmp_path: Path) -> None:
    one_by_one_s = PARTITIONS * 2 * DELAY_S
    log = tmp_path / "logs" / "numbers.0.log"
    with Broker(tmp_path / "broker") as broker:
        init(broker.url, partitions=PARTITIONS, max_bytes=2_000_000)
        with slow_link(broker.port, DELAY_S) as port:
            url = f"nats://127.0.0.1:{port}"
            collect = ("collect", "--nats", url, "--partitions", f"0-{PARTITIONS - 1}")
            begin_s = time.monotonic()
            with (
                ServerProcess(
                    Path("no-log"),
                    *("--forward", url, "--partitions", str(PARTITIONS)),
                    has_log=False,
                ) as node,
                CommandProcess(*collect, "--log-dir", str(log.parent)) as collector,
            ):
                collector.wait_for("collecting partitions")
                with node.connect() as client:
                    client.sendall(lines([7]))
                    assert node.stop() == 0
                    assert sees_fin(client)
                wait_until(lambda: log.read_bytes() == lines([7]), "the number")
                assert collector.stop() == 0
            assert time.monotonic() - begin_s < one_by_one_s
