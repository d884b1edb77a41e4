"""What a collector reports of its copies, and what it says of those that differ."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.checkpoints import Checkpoints, Point
from numbers_uring.cluster.collector import copies as copies_module
from numbers_uring.cluster.collector.copies import Copies
from numbers_uring.cluster.collector.copy_report import (
    CopyInUseError,
    CopyReport,
    Progress,
    find,
)
from numbers_uring.cluster.collector.identity import Identity, identify
from numbers_uring.cluster.values import Contents, Copy, Settings
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    BROKER_REQUEST_S,
    COPY_GONE_S,
    COPY_TELL_S,
    COPY_UNCHANGED_TELLS,
    STREAM_REQUESTS_MAX,
)
from support.broker import Broker

STREAM_NS = 10**18


class Files:
    """What a copy has: message n adds the number n, from `altered_from` on another one."""

    def __init__(self, altered_from: int = 1 << 60) -> None:
        self._altered_from = altered_from
        self._points = Checkpoints()
        self._sequence = 0
        self._sum = 0
        self.started = True

    def take(self, count: int) -> None:
        """Take in so many messages, and sync."""
        for _ in range(count):
            self._sequence += 1
            self._sum += self._sequence + (self._sequence >= self._altered_from)
            self._points.note(Point(self._sequence, self._sequence, self._sum), 0)
        self._points.synced()

    def progress(self) -> Progress | None:
        if not self.started:
            return None
        return Progress(
            stream_created_ns=STREAM_NS,
            sequence=self._sequence,
            message_time_ns=STREAM_NS + self._sequence,
            log_bytes=10 * self._sequence,
            count=self._sequence,
            sum=self._sum,
            points=self._points.told,
            taken=self._sequence,
        )

    @property
    def taken(self) -> int:
        return self._sequence

    @property
    def points(self) -> tuple[Point, ...]:
        return self._points.told


@dataclass
class Process:
    """The copies of one process, in a folder of its own."""

    identity: Identity
    files: dict[int, Files]
    copies: Copies
    said: list[str] = field(default_factory=list)
    contents: Contents | None = None

    async def read(self) -> None:
        async def keep(contents: Contents) -> None:
            self.contents = contents

        await self.copies.read(keep)

    def there(self, partition: int) -> Copy | None:
        assert self.contents is not None
        return find(self.contents.copies, partition, self.identity.copy)


def process(buckets: Buckets, folder: Path, partitions: list[int], **altered: int) -> Process:
    folder.mkdir(exist_ok=True)
    identity = identify(folder)
    files = {partition: Files(**altered) for partition in partitions}
    said: list[str] = []
    reports = [
        CopyReport(
            partition,
            folder / f"numbers.{partition}.log",
            STREAM_NS,
            files[partition].progress,
            buckets=buckets,
            identity=identity,
        )
        for partition in partitions
    ]
    copies = Copies(reports, buckets, identity, say=said.append, inform=said.append)
    return Process(identity, files, copies, said)


def use(broker: Broker, session: Callable[[Buckets], Awaitable[None]]) -> None:
    async def run(js: JetStreamContext) -> None:
        await session(Buckets(js))

    broker.run(run)


def test_a_copy_is_registered_reported_and_left(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        here = process(buckets, tmp_path / "here", [partition])
        here.files[partition].take(5)
        await here.copies.register()
        assert here.copies.registered(partition) == 1
        here.files[partition].take(2)
        await here.copies.tell()
        await here.read()
        there = here.there(partition)
        assert there is not None
        assert (there.sequence, there.count, there.sum) == (7, 7, 28)
        assert there.points == here.files[partition].points
        assert (there.place, there.run) == (here.identity.place, here.identity.run)
        await here.copies.leave()
        await here.read()
        assert here.there(partition) == replace(
            there,
            state="stopped",
            revision=there.revision + 1,
            time=here.there(partition).time,  # type: ignore[union-attr]
            age_s=here.there(partition).age_s,  # type: ignore[union-attr]
            per_s=0.0,
        )

    use(broker, session)


def test_what_is_not_new_is_reported_less_often(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        here = process(buckets, tmp_path / "here", [partition])
        await here.copies.register()
        revisions = []
        for _ in range(3 * COPY_UNCHANGED_TELLS):
            await here.copies.tell()
            await here.read()
            revisions.append(here.there(partition).revision)  # type: ignore[union-attr]
        assert len(set(revisions)) == 4

    use(broker, session)


def test_a_second_process_of_one_copy_is_refused_with_one_line(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        first = process(buckets, tmp_path / "here", [partition])
        await first.copies.register()
        (tmp_path / "there").mkdir()
        (tmp_path / "there/numbers.copy").write_bytes((tmp_path / "here/numbers.copy").read_bytes())
        second = process(buckets, tmp_path / "there", [partition])
        starting = asyncio.create_task(second.copies.register())
        while not starting.done():
            first.files[partition].take(1)
            await first.copies.tell()
            await asyncio.wait([starting], timeout=0.05)
        with pytest.raises(StartError) as error:
            await starting
        await second.copies.leave()
        await first.read()
        there = first.there(partition)
        assert there is not None
        assert (there.run, there.state) == (first.identity.run, "collecting")
        assert str(error.value) == (
            f"copy {first.identity.copy} ({tmp_path}/here/numbers.{partition}.log on "
            f"{socket.gethostname()}) is in use by another process: if this folder was copied from "
            f"there, remove {tmp_path}/there/numbers.copy"
        )

    use(broker, session)


def test_two_processes_of_one_copy_that_start_at_once_do_not_both_go_on(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        first = process(buckets, tmp_path / "here", [partition])
        (tmp_path / "there").mkdir()
        (tmp_path / "there/numbers.copy").write_bytes((tmp_path / "here/numbers.copy").read_bytes())
        both = [first, process(buckets, tmp_path / "there", [partition])]
        starting = [asyncio.create_task(each.copies.register()) for each in both]
        done, waiting = await asyncio.wait(starting, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        winner = both[starting.index(done.pop())]
        while not all(task.done() for task in starting):
            winner.files[partition].take(1)
            await winner.copies.tell()
            await asyncio.wait(waiting, timeout=0.05)
        with pytest.raises(StartError, match="is in use by another process"):
            await waiting.pop()

    use(broker, session)


def test_a_report_of_this_copy_that_makes_no_sense_is_not_replaced(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def run(js: JetStreamContext) -> None:
        here = process(Buckets(js), tmp_path / "here", [partition])
        key = f"v1.copy.{partition}.{here.identity.copy}"
        await js.publish(f"$KV.numbers-cluster.{key}", b"{}")
        with pytest.raises(StartError, match=f"the value of {key} .* makes no sense"):
            await here.copies.register()
        await js.publish(f"$KV.numbers-cluster.{key}", headers={"KV-Operation": "DEL"})
        await here.copies.register()

    broker.run(run)


def test_a_killed_collector_starts_again_at_once_in_its_folder(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        for _ in range(2):
            here = process(buckets, tmp_path / "here", [partition])
            async with asyncio.timeout(COPY_GONE_S / 3):
                await here.copies.register()
        assert here.said == []

    use(broker, session)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_folder_that_was_moved_starts_as_soon_as_its_last_process_is_surely_gone(
    broker: Broker,
    partition: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
) -> None:
    if not stopped:
        monkeypatch.setattr(copies_module, "COPY_GONE_S", 1.0)

    async def session(buckets: Buckets) -> None:
        first = process(buckets, tmp_path / "here", [partition])
        await first.copies.register()
        if stopped:
            await first.copies.leave()
        (tmp_path / "there").mkdir()
        (tmp_path / "there/numbers.copy").write_bytes((tmp_path / "here/numbers.copy").read_bytes())
        begin_s = time.monotonic()
        second = process(buckets, tmp_path / "there", [partition])
        async with asyncio.timeout(COPY_GONE_S / 3):
            await second.copies.register()
        waiting = "waiting until the last process of this copy is surely gone"
        assert second.said == ([] if stopped else [waiting])
        assert stopped or time.monotonic() - begin_s > 0.5

    use(broker, session)


def test_a_copy_that_was_forgotten_while_it_runs_registers_again(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        here = process(buckets, tmp_path / "here", [partition])
        await here.copies.register()
        await buckets.forget_copy(partition, here.identity.copy)
        here.files[partition].take(1)
        await here.copies.tell()
        await here.read()
        assert here.there(partition).sequence == 1  # type: ignore[union-attr]

    use(broker, session)


def test_a_report_whose_answer_was_lost_is_no_other_process(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        here = process(buckets, tmp_path / "here", [partition])
        await here.copies.register()
        await here.read()
        stored = here.there(partition)
        assert stored is not None
        await buckets.put_copy(stored)
        here.files[partition].take(1)
        await here.copies.tell()
        await here.read()
        assert here.there(partition).sequence == 1  # type: ignore[union-attr]

    use(broker, session)


def test_a_process_ends_that_finds_another_one_in_its_place(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        here = process(buckets, tmp_path / "here", [partition])
        await here.copies.register()
        await here.read()
        stored = here.there(partition)
        assert stored is not None
        await buckets.put_copy(replace(stored, run="another", host="elsewhere"))
        here.files[partition].take(1)
        with pytest.raises(CopyInUseError, match=r"on elsewhere\) is in use by another process"):
            await here.copies.tend(asyncio.Event(), lambda _: asyncio.sleep(0))

    use(broker, session)


def test_copies_that_differ_are_said_once_by_both_and_not_before(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        sound = process(buckets, tmp_path / "sound", [partition])
        altered = process(buckets, tmp_path / "altered", [partition], altered_from=5)
        both = (sound, altered)
        for each in both:
            each.files[partition].take(4)
            await each.copies.register()
        for each in both:
            await each.read()
            assert each.said == []
            assert each.copies.differing(partition) == 0
            each.files[partition].take(4)
            await each.copies.tell()
        for each, other in (both, both[::-1]):
            for _ in range(3):
                await each.read()
            (line,) = each.said
            assert line.startswith(f"partition {partition}: copy {each.identity.copy} (")
            assert f"and copy {other.identity.copy} (" in line
            assert line.endswith(
                f"differ: equal up to message 4 of the stream numbers-{partition}, different at "
                "message 6"
            )
            assert each.copies.differing(partition) == 1

        # Without a shared point, or with one before the difference, they count as before.
        altered.files[partition] = Files()
        altered.files[partition].take(8)
        sound_points = altered.files[partition].points
        there = altered.there(partition)
        assert there is not None
        for points in ((), tuple(point for point in sound_points if point.sequence < 5)):
            await buckets.put_copy(replace(there, points=points))
            await sound.read()
            assert sound.copies.differing(partition) == 1
        await buckets.put_copy(replace(there, points=sound_points))
        await sound.read()
        assert sound.copies.differing(partition) == 0
        assert len(sound.said) == 1

    use(broker, session)


def test_a_copy_that_has_what_is_missing_is_named(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        first = process(buckets, tmp_path / "first", [partition])
        second = process(buckets, tmp_path / "second", [partition])
        await first.copies.register()
        assert await first.copies.passed_by(partition, 1) is None
        second.files[partition].take(9)
        await second.copies.register()
        log = f"{tmp_path}/second/numbers.{partition}.log"
        assert await first.copies.passed_by(partition, 9) == (
            f"copy {second.identity.copy} ({log} on {socket.gethostname()})"
        )
        assert await first.copies.passed_by(partition, 10) is None

    use(broker, session)


def test_a_new_copy_is_registered_before_it_knows_where_to_go_on(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        new = process(buckets, tmp_path / "new", [partition])
        new.files[partition].started = False
        new.files[partition].take(9)
        await new.copies.register()
        await new.read()
        there = new.there(partition)
        assert there is not None
        assert (there.state, there.sequence, there.stream_created_ns) == ("starting", 0, STREAM_NS)
        new.files[partition].started = True
        await new.copies.tell()
        await new.read()
        there = new.there(partition)
        assert there is not None
        assert (there.state, there.sequence) == ("collecting", 9)

        # What it has is known of it while it starts again.
        again = process(buckets, tmp_path / "new", [partition])
        again.files[partition].started = False
        await again.copies.register()
        await again.read()
        there = again.there(partition)
        assert there is not None
        assert (there.state, there.sequence, there.count) == ("starting", 9, 9)
        assert there.run == again.identity.run

    use(broker, session)


@pytest.mark.parametrize("was_registered", [False, True])
def test_a_start_that_fails_leaves_what_is_registered_as_it_was(
    broker: Broker, partition: int, tmp_path: Path, was_registered: bool
) -> None:
    async def session(buckets: Buckets) -> None:
        if was_registered:
            first = process(buckets, tmp_path / "here", [partition])
            first.files[partition].take(5)
            await first.copies.register()
            await first.copies.leave()
        here = process(buckets, tmp_path / "here", [partition])
        here.files[partition].started = False
        await here.copies.register()
        await here.copies.leave()
        await here.read()
        there = here.there(partition)
        assert (there and (there.state, there.sequence)) == (
            ("stopped", 5) if was_registered else None
        )

    use(broker, session)


def test_the_rate_is_that_since_the_last_report(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    async def session(buckets: Buckets) -> None:
        clock_s = 100.0
        files = Files()
        report = CopyReport(
            partition,
            tmp_path / "log",
            STREAM_NS,
            files.progress,
            buckets=buckets,
            identity=identify(tmp_path),
            clock=lambda: clock_s,
        )
        await report.register(None)
        rates = []
        for count in (40, 0, 0):
            files.take(count)
            clock_s += 4
            await report.tell()
            (there,) = (await buckets.read([partition])).copies
            rates.append(there.per_s)
        assert rates == [10, 0, 0]

    use(broker, session)


class SlowBuckets(Buckets):
    """A bucket at the end of a long line: each report takes 25 ms."""

    def __init__(self) -> None:
        self.at_once = 0
        self.at_once_max = 0
        self.sequence = 0

    async def put_copy(self, copy: Copy, *, revision: int | None = None) -> int:
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        await asyncio.sleep(0.025)
        self.at_once -= 1
        self.sequence = copy.sequence
        return (revision or 0) + 1

    async def read(self, _partitions: object = None, *, fresh: bool = False) -> Contents:  # noqa: ARG002
        await asyncio.sleep(0.025)
        return Contents(settings=Settings(partitions=256))


def test_reports_of_many_partitions_take_less_time_than_there_is_between_them(
    tmp_path: Path,
) -> None:
    async def session() -> None:
        buckets = SlowBuckets()
        here = process(buckets, tmp_path / "here", list(range(256)))
        begin_s = time.monotonic()
        await here.copies.register()
        await here.copies.leave()
        assert time.monotonic() - begin_s < COPY_TELL_S
        assert buckets.at_once_max == STREAM_REQUESTS_MAX

    asyncio.run(session())


def test_a_report_that_is_lost_holds_up_the_next_ones_for_one_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "COPY_TELL_S", 0.3)

    class ForgetfulBuckets(SlowBuckets):
        forgets = False

        async def put_copy(self, copy: Copy, *, revision: int | None = None) -> int:
            if self.forgets:
                self.forgets = False
                await asyncio.sleep(BROKER_REQUEST_S)
            return await super().put_copy(copy, revision=revision)

    async def session() -> None:
        buckets = ForgetfulBuckets()
        here = process(buckets, tmp_path / "here", [0])
        await here.copies.register()
        buckets.forgets = True
        tending = asyncio.create_task(here.copies.tend(asyncio.Event(), no_look))
        async with asyncio.timeout(BROKER_REQUEST_S / 2):
            while buckets.forgets or here.files[0].taken != buckets.sequence:
                here.files[0].take(buckets.forgets)
                await asyncio.sleep(0.01)
        tending.cancel()
        await asyncio.wait({tending})

    asyncio.run(session())


async def no_look(_: Contents) -> None:
    """Do nothing with what was read."""


def test_a_nats_server_that_does_not_answer_holds_up_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "COPY_TELL_S", 0.01)
    monkeypatch.setattr(copies_module, "COPIES_READ_S", 0.01)

    class DeadBuckets(SlowBuckets):
        dead = False
        asked = 0

        async def put_copy(self, copy: Copy, *, revision: int | None = None) -> int:
            if self.dead:
                self.asked += 1
                raise TimeoutError
            return await super().put_copy(copy, revision=revision)

        async def read(self, partitions: object = None, *, fresh: bool = False) -> Contents:
            if self.dead:
                raise TimeoutError
            return await super().read(partitions, fresh=fresh)

    async def session() -> None:
        buckets = DeadBuckets()
        here = process(buckets, tmp_path / "here", list(range(64)))
        await here.copies.register()
        buckets.dead = True
        read = asyncio.Event()

        async def after_read(_: Contents) -> None:
            read.set()

        started = asyncio.Event()
        started.set()
        tending = asyncio.create_task(here.copies.tend(started, after_read))
        while buckets.asked < 10 * STREAM_REQUESTS_MAX:
            for files in here.files.values():
                files.take(1)
            await asyncio.sleep(0)
            assert not tending.done()
        assert not read.is_set()
        buckets.dead = False
        await asyncio.wait_for(read.wait(), 10)
        tending.cancel()
        with suppress(asyncio.CancelledError):
            await tending
        buckets.dead = True
        await here.copies.leave()
        assert here.said == []

    asyncio.run(session())
