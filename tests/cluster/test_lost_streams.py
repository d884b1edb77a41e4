"""A stream that loses what it has acknowledged ends its nodes: they would take that for repeats."""

import asyncio
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.cluster.node import kept as kept_room
from numbers_uring.cluster.node.kept import Kept, StreamLostError
from numbers_uring.cluster.partitions import stream_name
from support.broker import Broker, init
from support.clients import sees_fin
from support.logs import lines
from support.processes import ServerProcess

PARTITIONS = 2


def put_back(broker: Broker, backup: Path) -> None:
    broker.kill()
    shutil.rmtree(broker.store)
    shutil.copytree(backup, broker.store)
    broker.start()


def emptied(broker: Broker, _backup: Path) -> None:
    broker.kill()
    shutil.rmtree(broker.store)
    broker.start()
    init(broker.url, partitions=PARTITIONS)


def made_again_and_used(broker: Broker, _backup: Path) -> None:
    """The node stays connected, and learns of it from what the stream acknowledges."""

    async def make_again(js: Any) -> None:
        config = (await js.stream_info(stream_name(0))).config
        await js.delete_stream(stream_name(0))
        await js.add_stream(config)

    broker.run(make_again)


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (put_back, "was put back to before message 2"),
        (emptied, "was deleted and made again"),
        (made_again_and_used, "was put back to before message 2"),
    ],
)
def test_a_node_ends_once_a_stream_has_lost_what_it_acknowledged(
    lose: Callable[[Broker, Path], None], words: str, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    with Broker(tmp_path / "broker") as broker:
        init(broker.url, partitions=PARTITIONS)
        with ServerProcess(
            Path("no-log"),
            *("--forward", broker.url, "--partitions", str(PARTITIONS)),
            has_log=False,
        ) as node:

            def store(number: int) -> bool:
                with node.connect() as client:
                    client.sendall(lines([number]))
                    client.shutdown(socket.SHUT_WR)
                    return sees_fin(client)

            assert store(1)
            broker.stop()
            shutil.copytree(broker.store, backup)
            broker.start()
            assert store(2)
            lose(broker, backup)
            if lose is made_again_and_used:
                store(3)
            assert node.wait() == 4
            (error,) = [line for line in node.stderr_lines if "error: " in line]
            assert f"the stream {stream_name(0)} {words}; restart the node" in error


@pytest.fixture
def infos(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any] | None]:
    """What the NATS server will tell of the stream of partition 0, one after the other."""
    scripted: list[dict[str, Any] | None] = []

    async def stream_info(_js: object, _name: str) -> dict[str, Any] | None:
        return scripted.pop(0)

    monkeypatch.setattr(kept_room, "stream_info", stream_info)
    monkeypatch.setattr(kept_room, "FORWARD_LOST_PAUSE_S", 0)
    return scripted


def info(last: int, *, created: str = "2026-01-01T00:00:00Z", replicas: int = 3) -> dict[str, Any]:
    config = {"num_replicas": replicas}
    return {"created": created, "state": {"last_seq": last}, "config": config}


def look(kept: Kept) -> bool:
    return asyncio.run(kept.look(None))  # type: ignore[arg-type]


@pytest.fixture
def kept() -> Kept:
    """A stream that has acknowledged message 7."""
    made = Kept([info(3)])
    made.note(0, 7, above=0)
    return made


def test_a_replica_that_knows_less_for_a_while_is_asked_again(
    kept: Kept, infos: list[dict[str, Any] | None]
) -> None:
    infos += [info(6), info(6), info(6), info(7)]
    assert look(kept)
    assert infos == []
    infos += [info(6)] * 4
    with pytest.raises(StreamLostError):
        look(kept)
    infos += [info(6, replicas=1), info(7)]
    with pytest.raises(StreamLostError):
        look(kept)


def test_a_stream_that_is_not_there_may_come_back(
    kept: Kept, infos: list[dict[str, Any] | None]
) -> None:
    infos += [None, info(7)]
    assert not look(kept)
    assert look(kept)


def test_acknowledgements_may_come_in_another_order_than_messages_were_stored(kept: Kept) -> None:
    first, second = kept.last(0), kept.last(0)
    kept.note(0, 9, above=second)
    kept.note(0, 8, above=first)
    assert kept.last(0) == 9
    kept.note(0, 8, above=None)
    with pytest.raises(StreamLostError, match="was put back to before message 9"):
        kept.note(0, 9, above=9)
