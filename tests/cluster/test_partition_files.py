"""The log and the index of a partition: whatever was done to them, the log becomes the same again.

No NATS server: a stream is a list of messages here, which are taken in as a collector does.
"""

import errno
import os
import shutil
from array import array
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numbers_uring.cluster.collector.files import PartitionFiles, Stream
from numbers_uring.cluster.collector.kernel import CollectKernel
from numbers_uring.cluster.index import RECORD_BYTES, Record, read_index
from numbers_uring.cluster.partitions import index_name, log_name, range_of
from numbers_uring.errors import SinkError, StartError, StopRequestedError
from numbers_uring.limits import BITMAP_BYTES, INDEX_RECORDS_KEPT, INDEX_RECORDS_MAX
from numbers_uring.log.calls import FileCalls

PARTITION, PARTITIONS = 5, 1024
NUMBERS = range_of(PARTITION, PARTITIONS)
STREAM = Stream(created_ns=10**18, first_sequence=1)
BITMAP = mmap(-1, BITMAP_BYTES)

Messages = Sequence[Sequence[int]]


def message(*places: int) -> list[int]:
    """Return numbers of the partition, by their place in it."""
    return [NUMBERS.first + place for place in places]


def log_of(messages: Messages) -> bytes:
    """Return the log of a stream: the specification."""
    numbers = dict.fromkeys(chain.from_iterable(messages))
    return b"".join(b"%09d\n" % number for number in numbers)


class Session:
    """The files in `folder`, opened and started, and the kernel that goes with them."""

    def __init__(
        self,
        folder: Path,
        *,
        stream: Stream = STREAM,
        replay: bool = False,
        partition: int = PARTITION,
        partitions: int = PARTITIONS,
        calls: FileCalls | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.said: list[str] = []
        self.told: list[str] = []
        self.kernel = CollectKernel(range_of(partition, partitions), BITMAP, 1_000_000)
        self.kernel.reset()
        self.files = PartitionFiles(
            folder,
            partition,
            partitions,
            say=self.said.append,
            inform=lambda _text: None,
            calls=calls,
        )
        try:
            self.files.start(
                self.kernel,
                stream,
                replay=replay,
                progress=self.told.append,
                stop_requested=stop_requested,
            )
        except BaseException:
            self.files.close()
            raise
        self.sequence = self.files.record.sequence

    def close(self) -> None:
        self.files.close()

    def take_in(self, messages: Messages, end: int | None = None, commit_every: int = 1) -> None:
        """Take in the messages of a stream up to `end`, the last one if it is not given."""
        for sequence in range(self.sequence + 1, (len(messages) if end is None else end) + 1):
            self.kernel.take(array("I", messages[sequence - 1]).tobytes())
            lines = self.kernel.lines()
            assert self.files.append(lines) == len(lines)
            self.kernel.clear()
            self.sequence = sequence
            if sequence % commit_every == 0:
                self.commit()

    def commit(self) -> bool:
        record = self.record()
        if record != self.files.record and not self.files.commit(record):
            return False
        return self.files.sync()

    def record(self) -> Record:
        return replace(
            self.files.record,
            sequence=self.sequence,
            message_time_ns=self.sequence,
            log_bytes=10 * self.kernel.unique,
            sum=self.kernel.sum,
        )


def log_in(folder: Path) -> Path:
    return folder / log_name(PARTITION)


def index_in(folder: Path) -> Path:
    return folder / index_name(PARTITION)


def collect(
    folder: Path, messages: Messages, end: int | None = None, commit_every: int = 1
) -> list[str]:
    """Run a collector up to `end`; return what it said."""
    with closing(Session(folder)) as session:
        session.take_in(messages, end, commit_every)
        return session.said


def assert_collects_the_same_log(folder: Path, messages: Messages) -> list[str]:
    said = collect(folder, messages)
    assert log_in(folder).read_bytes() == log_of(messages)
    reading = read_index(index_in(folder))
    assert reading.damage is None
    last = reading.records[-1]
    assert (last.sequence, last.log_bytes) == (len(messages), len(log_of(messages)))
    assert last.sum == sum({number for each in messages for number in each})
    return said


STREAM_OF_MESSAGES = [
    message(*range(0, 12)),
    message(5, 6, 7),
    message(*range(10, 40, 3)),
    message(*range(100, 90, -1)),
    message(2),
    message(*range(30, 36)),
]
"""With repeats within messages, and a message of nothing else."""

messages_strategy = st.lists(
    st.lists(st.integers(0, 60), min_size=1, max_size=12).map(lambda each: message(*each)),
    min_size=1,
    max_size=8,
)


def test_the_log_does_not_depend_on_when_it_was_synced(tmp_path: Path) -> None:
    for every in range(1, 8):
        folder = tmp_path / str(every)
        folder.mkdir()
        with closing(Session(folder)) as session:
            session.take_in(STREAM_OF_MESSAGES, commit_every=every)
        assert log_in(folder).read_bytes() == log_of(STREAM_OF_MESSAGES)


def test_a_log_of_every_length_becomes_the_same_again(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES, commit_every=2)
    index = index_in(tmp_path).read_bytes()
    whole = log_of(STREAM_OF_MESSAGES)
    for size in range(len(whole)):
        log_in(tmp_path).write_bytes(whole[:size])
        index_in(tmp_path).write_bytes(index)
        said = assert_collects_the_same_log(tmp_path, STREAM_OF_MESSAGES)
        assert any("has not what its index says" in line for line in said)
        assert any("damaged bytes" in line for line in said) == (size % 10 != 0)


def test_an_index_of_every_length_makes_the_same_log(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    index = index_in(tmp_path).read_bytes()
    for size in range(len(index) + 1):
        index_in(tmp_path).write_bytes(index[:size])
        with closing(Session(tmp_path)) as session:
            # Of the seven records the first one is the base.
            assert session.sequence == max(size // RECORD_BYTES - 1, 0)
        said = assert_collects_the_same_log(tmp_path, STREAM_OF_MESSAGES)
        assert bool(said) == (size % RECORD_BYTES != 0)


def test_every_flipped_bit_of_an_index_makes_the_same_log(tmp_path: Path) -> None:
    messages = STREAM_OF_MESSAGES[:2]
    collect(tmp_path, messages)
    index = index_in(tmp_path).read_bytes()
    for bit in range(8 * len(index)):
        bad = bytearray(index)
        bad[bit // 8] ^= 1 << bit % 8
        index_in(tmp_path).write_bytes(bad)
        with closing(Session(tmp_path)) as session:
            session.take_in(messages)
            assert any("is damaged" in line for line in session.said)
        assert log_in(tmp_path).read_bytes() == log_of(messages)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages_strategy, st.data())
def test_a_log_and_an_index_of_any_two_moments_make_the_same_log(
    messages: Messages, data: st.DataObject
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        moments = []
        for end in range(len(messages) + 1):
            collect(folder, messages, end)
            index = index_in(folder)
            moments.append(
                (log_in(folder).read_bytes(), index.read_bytes() if index.exists() else None)
            )
        log = data.draw(st.sampled_from(moments))[0]
        index_bytes = data.draw(st.sampled_from(moments))[1]
        if data.draw(st.booleans()):
            log = log[: data.draw(st.integers(0, len(log)))] + data.draw(
                # Not digits and a newline: with what is before it, that may be another number.
                st.sampled_from(
                    [b"", bytes(7), bytes(4096), b"12345", b"\n", b" 12\n", b"\xff" * 33]
                )
            )
        log_in(folder).write_bytes(log)
        index_in(folder).unlink(missing_ok=True)
        if index_bytes is not None:
            index_in(folder).write_bytes(index_bytes)
        ends = data.draw(st.lists(st.integers(0, len(messages)), max_size=3).map(sorted))
        for end in ends:
            collect(folder, messages, end, commit_every=data.draw(st.integers(1, 3)))
        # Damage behind all that the stream has stays until it goes on with another number.
        assert_collects_the_same_log(folder, [*messages, message(61)])


def test_bytes_that_are_right_are_not_written_again(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    index_in(tmp_path).unlink()
    before = log_in(tmp_path).stat()
    with closing(Session(tmp_path)) as session:
        assert session.files.tail_bytes == len(log_of(STREAM_OF_MESSAGES))
        session.take_in(STREAM_OF_MESSAGES)
        assert (session.files.tail_bytes, session.files.written_bytes) == (0, 0)
    assert log_in(tmp_path).stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("index", ["whole", "missing", "first record"])
def test_no_changed_digit_of_a_log_is_overwritten_or_believed(tmp_path: Path, index: str) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    whole, records = log_of(STREAM_OF_MESSAGES), index_in(tmp_path).read_bytes()
    for offset in range(0, len(whole), 1 if index == "whole" else 7):
        if offset % 10 == 9:
            continue
        altered = bytearray(whole)
        altered[offset] = ord("0") + (altered[offset] - ord("0") + 1) % 10
        log_in(tmp_path).write_bytes(altered)
        index_in(tmp_path).write_bytes(records)
        if index == "missing":
            index_in(tmp_path).unlink()
        elif index == "first record":
            index_in(tmp_path).write_bytes(records[:RECORD_BYTES])
        line = offset - offset % 10
        with closing(Session(tmp_path)) as session:
            assert session.files.record.log_bytes <= line
            with pytest.raises(SinkError, match=f"another number at byte {line} "):
                session.take_in(STREAM_OF_MESSAGES)
        assert log_in(tmp_path).read_bytes() == altered


def test_a_line_that_was_damaged_before_the_last_sync_is_written_again(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    whole = log_of(STREAM_OF_MESSAGES)
    for offset in range(0, len(whole), 7):
        log_in(tmp_path).write_bytes(whole[:offset] + b"\0" + whole[offset + 1 :])
        said = assert_collects_the_same_log(tmp_path, STREAM_OF_MESSAGES)
        assert any(f"cut off at byte {offset - offset % 10}," in line for line in said)


def test_the_log_of_another_folder_is_refused_as_it_is(tmp_path: Path) -> None:
    other = [message(*range(50, 70)), message(1, 2)]
    collect(tmp_path, other)
    index_in(tmp_path).unlink()
    with closing(Session(tmp_path)) as session, pytest.raises(SinkError, match="from elsewhere"):
        session.take_in(STREAM_OF_MESSAGES)
    assert log_in(tmp_path).read_bytes() == log_of(other)


def test_what_the_stream_does_not_bring_stays_in_the_log(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    index_in(tmp_path).unlink()
    with closing(Session(tmp_path)) as session:
        session.take_in(STREAM_OF_MESSAGES[:3])
        rest = len(log_of(STREAM_OF_MESSAGES)) - len(log_of(STREAM_OF_MESSAGES[:3]))
        assert session.files.tail_bytes == rest
    assert log_in(tmp_path).read_bytes() == log_of(STREAM_OF_MESSAGES)


def test_files_of_another_partition_do_not_start(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    for partition, partitions in ((PARTITION + 1, PARTITIONS), (PARTITION, PARTITIONS - 1)):
        for name in (log_name, index_name):
            shutil.copy(tmp_path / name(PARTITION), tmp_path / f"copy.{name(0)}")
            (tmp_path / f"copy.{name(0)}").rename(tmp_path / name(partition))
        before = (tmp_path / log_name(partition)).read_bytes()
        words = f"of partition {PARTITION} of {PARTITIONS}, not of partition {partition} of"
        with pytest.raises(StartError, match=words):
            Session(tmp_path, partition=partition, partitions=partitions)
        assert (tmp_path / log_name(partition)).read_bytes() == before


# Another stream of the same name.

NEW = Stream(created_ns=2 * 10**18, first_sequence=4)
NEW_MESSAGES = [[], [], [], message(3, 200, 201), message(200, 7, 202)]


def test_a_new_stream_of_the_name_needs_a_word_and_is_added_to_the_log_then(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    before = [path.read_bytes() for path in (log_in(tmp_path), index_in(tmp_path))]
    with pytest.raises(StartError, match="of another stream numbers-5, which was deleted: --repl"):
        Session(tmp_path, stream=NEW)
    assert [path.read_bytes() for path in (log_in(tmp_path), index_in(tmp_path))] == before
    with closing(Session(tmp_path, stream=NEW, replay=True)) as session:
        assert session.sequence == 3
        session.take_in(NEW_MESSAGES)
    expected = log_of([*STREAM_OF_MESSAGES, *NEW_MESSAGES])
    assert log_in(tmp_path).read_bytes() == expected
    for replay in (False, True):
        # The old stream is over, and the word is needed once.
        with closing(Session(tmp_path, stream=NEW, replay=replay)) as session:
            assert (session.sequence, session.kernel.unique) == (5, len(expected) // 10)
            assert session.said == []
    with pytest.raises(StartError, match="of another stream"):
        Session(tmp_path)


def test_a_log_that_is_shorter_than_when_its_stream_began_does_not_start(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    with closing(Session(tmp_path, stream=NEW, replay=True)) as session:
        session.take_in(NEW_MESSAGES)
    log = log_in(tmp_path).read_bytes()
    base_bytes = len(log_of(STREAM_OF_MESSAGES))
    for size in (0, 10, base_bytes - 10, base_bytes - 1):
        log_in(tmp_path).write_bytes(log[:size])
        with pytest.raises(StartError, match=f"of {base_bytes} bytes: put that back, or keep"):
            Session(tmp_path, stream=NEW)
        assert log_in(tmp_path).read_bytes() == log[:size]
    for size in range(base_bytes, len(log)):
        log_in(tmp_path).write_bytes(log[:size])
        with closing(Session(tmp_path, stream=NEW)) as session:
            session.take_in(NEW_MESSAGES)
        assert log_in(tmp_path).read_bytes() == log


def test_a_log_without_an_index_is_kept_where_its_stream_was_trimmed(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    index_in(tmp_path).unlink()
    with log_in(tmp_path).open("ab") as log:
        log.write(b"0048")
    trimmed = replace(STREAM, first_sequence=4)
    with closing(Session(tmp_path, stream=trimmed)) as session:
        assert session.sequence == 0  # Its reader waits for message 1.
    with closing(Session(tmp_path, stream=trimmed, replay=True)) as session:
        assert session.sequence == 3
        session.take_in([*STREAM_OF_MESSAGES, message(300)])
    assert log_in(tmp_path).read_bytes() == log_of([*STREAM_OF_MESSAGES, message(300)])


def test_a_replay_that_is_not_needed_changes_nothing(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES, 4)
    trimmed = replace(STREAM, first_sequence=5)
    with closing(Session(tmp_path, stream=trimmed, replay=True)) as session:
        assert session.sequence == 4
    assert_collects_the_same_log(tmp_path, STREAM_OF_MESSAGES)


@pytest.mark.parametrize(
    "bad", [b"00488287x\n", b"%09d\n" % NUMBERS.end, b"%09d\n" % NUMBERS.first]
)
def test_what_is_no_log_of_the_partition_is_not_kept(tmp_path: Path, bad: bytes) -> None:
    log = log_of([message(0, 1)]) + bad + log_of([message(2)])
    log_in(tmp_path).write_bytes(log)
    with pytest.raises(StartError, match="the line at byte 20 is not a number of this partition"):
        Session(tmp_path, stream=NEW, replay=True)
    assert log_in(tmp_path).read_bytes() == log


# While it runs.


def test_a_log_that_others_change_ends_the_run(tmp_path: Path) -> None:
    def remove(path: Path) -> None:
        path.unlink()

    def replace_it(path: Path) -> None:
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").rename(path)

    def truncate(path: Path) -> None:
        os.truncate(path, 10)

    def append(path: Path) -> None:
        with path.open("ab") as log:
            log.write(b"%09d\n" % NUMBERS.first)

    for number, change in enumerate((remove, replace_it, truncate, append)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with closing(Session(folder)) as session:
            session.take_in(STREAM_OF_MESSAGES, 2)
            change(log_in(folder))
            with pytest.raises(SinkError, match="removed, replaced or changed by another process"):
                session.take_in(STREAM_OF_MESSAGES, 3)


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, RECORD_BYTES + 1),
        lambda path: path.write_bytes(2 * path.read_bytes()),
    ],
    ids=["removed", "emptied", "torn", "longer"],
)
def test_an_index_that_others_change_is_written_again(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    with closing(Session(tmp_path)) as session:
        session.take_in(STREAM_OF_MESSAGES, 3)
        change(index_in(tmp_path))
        session.take_in(STREAM_OF_MESSAGES)
        assert len(session.said) == 1
        assert "changed by another process: writing it again" in session.said[0]
    assert [each.sequence for each in read_index(index_in(tmp_path)).records] == list(range(7))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with closing(Session(tmp_path)), pytest.raises(StartError, match="another process has locked"):
        Session(tmp_path)


def test_a_stop_is_heeded_while_a_log_is_read(tmp_path: Path) -> None:
    collect(tmp_path, STREAM_OF_MESSAGES)
    with pytest.raises(StopRequestedError):
        Session(tmp_path, stop_requested=lambda: True)
    assert_collects_the_same_log(tmp_path, STREAM_OF_MESSAGES)


class FullDisk:
    """write(2) for files that take `free_bytes` more."""

    def __init__(self) -> None:
        self.free_bytes = 1_000_000

    def write(self, fd: int, data: memoryview) -> int:
        if self.free_bytes <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = os.write(fd, data[: self.free_bytes])
        self.free_bytes -= size
        return size


def test_an_index_without_space_is_written_when_there_is_some(tmp_path: Path) -> None:
    for free_bytes in range(0, 3 * RECORD_BYTES, 11):
        folder = tmp_path / str(free_bytes)
        folder.mkdir()
        disk = FullDisk()
        with closing(Session(folder, calls=FileCalls(write=disk.write))) as session:
            session.take_in(STREAM_OF_MESSAGES, 2)
            for end in (4, 6):
                session.take_in(STREAM_OF_MESSAGES, end, commit_every=100)
                disk.free_bytes = free_bytes
                done = session.commit()
                assert done == (free_bytes >= RECORD_BYTES)
                whole = free_bytes >= RECORD_BYTES
                assert session.files.record.sequence == (end if whole else end - 2)
                assert session.files.synced == session.files.record
                assert read_index(index_in(folder)).records[-1] == session.files.record
                disk.free_bytes = 1_000_000
                if not whole:
                    assert session.commit()
        assert_collects_the_same_log(folder, STREAM_OF_MESSAGES)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("failing", range(2, 7))
def test_an_index_whose_sync_lacks_space_has_no_record_twice(
    tmp_path: Path, code: int, failing: int
) -> None:
    failed = []

    def sync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.name.startswith(index_name(PARTITION)):
            failed.append(path)
            if len(failed) == failing:
                raise OSError(code, os.strerror(code))
        os.fdatasync(fd)

    with closing(Session(tmp_path, calls=FileCalls(fdatasync=sync))) as session:
        for end in range(1, len(STREAM_OF_MESSAGES) + 1):
            session.take_in(STREAM_OF_MESSAGES, end, commit_every=100)
            if not session.commit():
                assert len(failed) == failing
                assert session.commit()
        reading = read_index(index_in(tmp_path))
        assert (reading.damage, reading.records[-1]) == (None, session.files.record)
    assert not assert_collects_the_same_log(tmp_path, STREAM_OF_MESSAGES)


def test_a_start_tells_how_much_of_the_whole_log_it_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Session(tmp_path)) as session:
        session.take_in(STREAM_OF_MESSAGES)
    monkeypatch.setattr("numbers_uring.log.progress.RESUME_PROGRESS_S", 0)
    with closing(Session(tmp_path)) as session:
        shares = [int(text.removesuffix(" % of 0.0 GB").split()[-1]) for text in session.told]
    assert shares == sorted(set(shares))
    assert shares[0] == 0
    assert len(shares) > 2


def test_a_failed_sync_is_never_recorded(tmp_path: Path) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(Session(tmp_path)) as session:
        session.take_in(STREAM_OF_MESSAGES, 2)
    with (
        closing(Session(tmp_path, calls=FileCalls(fdatasync=fail))) as session,
        pytest.raises(SinkError, match="cannot sync the log"),
    ):
        session.take_in(STREAM_OF_MESSAGES, 3)
    assert read_index(index_in(tmp_path)).records[-1].sequence == 2
    assert_collects_the_same_log(tmp_path, STREAM_OF_MESSAGES)


def test_an_index_that_grew_long_is_thinned_on_the_way(tmp_path: Path) -> None:
    with closing(Session(tmp_path)) as session:
        session.take_in(STREAM_OF_MESSAGES)
        record = session.files.record
        records = [
            replace(record, sequence=record.sequence + at) for at in range(1, INDEX_RECORDS_MAX)
        ]
        session.files.commit(*records)
        assert len(session.files.records) > INDEX_RECORDS_MAX
        session.files.commit(replace(record, sequence=records[-1].sequence + 1))
        kept = session.files.records
        assert INDEX_RECORDS_KEPT <= len(kept) < INDEX_RECORDS_KEPT + 64
        assert kept[0].sequence == 0
        assert kept[-1].sequence == records[-1].sequence + 1
    assert read_index(index_in(tmp_path)).records.packed() == kept.packed()
