"""What a collector does where a group of NATS servers without a leader loses what it is asked."""

import asyncio
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nats.errors import Error, NoRespondersError

from numbers_uring.cluster.collector import collector, lease
from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.collector.lease import Lease, Progress, log_identity
from numbers_uring.cluster.partitions import range_of
from numbers_uring.config import Fsync
from numbers_uring.limits import BITMAP_BYTES, COLLECTOR_BATCH_BYTES
from numbers_uring.log.writer import NumbersLog
from support.logs import lines
from support.waiting import DEADLINE_S


async def never(*_: object, **__: object) -> Any:
    """What a lost question is answered."""
    await asyncio.Event().wait()


class Message:
    """One of the stream, with numbers."""

    def __init__(self, numbers: list[int]) -> None:
        self.data = array("I", numbers).tobytes()
        self.metadata = SimpleNamespace(num_delivered=1)
        self.acknowledged = asyncio.Event()

    async def ack(self) -> None:
        self.acknowledged.set()


class Subscription:
    """Has lost its leader at first, then brings a message."""

    def __init__(self, message: Message) -> None:
        self._answers: list[Error | list[Message]] = [NoRespondersError(), [message]]

    async def fetch(self, _count: int, timeout: float) -> list[Message]:
        if not self._answers:
            await asyncio.sleep(timeout)
            raise TimeoutError
        answer = self._answers.pop(0)
        if isinstance(answer, Error):
            raise answer
        return answer


def test_a_collector_does_not_wait_for_the_answer_to_a_question_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "COLLECTOR_BROKER_ANSWER_S", 0.01)
    path = tmp_path / "numbers.0.log"

    async def run() -> None:
        message, stop = Message([5, 6]), asyncio.Event()
        subscription = Subscription(message)

        async def bind(*_: object) -> Subscription:
            return subscription

        log = NumbersLog(path, say=print, inform=print, fsync=Fsync.ALWAYS)
        with ThreadPoolExecutor(1) as pool:
            collected: Any = PartitionCollector(
                0,
                js=SimpleNamespace(pull_subscribe_bind=bind, stream_info=never),  # type: ignore[arg-type]
                kernel=CollectKernel(range_of(0, 1), mmap(-1, BITMAP_BYTES), COLLECTOR_BATCH_BYTES),
                log=log,
                lease=SimpleNamespace(fresh=True),  # type: ignore[arg-type]
                pool=pool,
                halt=threading.Event(),
                say=print,
                inform=print,
            )
            running = asyncio.create_task(collected.run(stop))
            await asyncio.wait_for(message.acknowledged.wait(), DEADLINE_S)
            stop.set()
            await running
        log.close()

    asyncio.run(run())
    assert path.read_bytes() == lines([5, 6])


def test_a_lease_whose_refresh_is_lost_is_refreshed_again_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_REFRESH_S", 0.01)
    held = Lease(
        0,
        leases=SimpleNamespace(update=never),  # type: ignore[arg-type]
        settings=SimpleNamespace(),  # type: ignore[arg-type]
        log_path=tmp_path,
        log_identity=log_identity(tmp_path),
        say=print,
    )

    async def refresh() -> None:
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(TimeoutError):
                await held.refresh(Progress())

    asyncio.run(refresh())
    assert not held.fresh
