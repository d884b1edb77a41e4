"""`cluster verify`: logs and indexes that tests write, against streams of a real NATS server."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.collector.feed import Message
from numbers_uring.cluster.collector.lookup import read_state
from numbers_uring.cluster.collector.reader import Reader
from numbers_uring.cluster.collector.waits import Wait
from numbers_uring.cluster.index import Record
from numbers_uring.cluster.partitions import index_name, log_name, stream_name
from numbers_uring.cluster.values import Skip, Trim
from numbers_uring.cluster.verify.copy import CHUNK_BYTES, Copy
from numbers_uring.cluster.verify.run import verify_cluster
from numbers_uring.errors import StartError
from support.broker import PARTITIONS, Broker, broker_with_cluster
from support.collectors import publish, sample
from support.logs import lines
from support.processes import CommandProcess, assert_one_line_error, run_command
from support.waiting import wait_until

Messages = Sequence[list[int]]


class Copies:
    """Folders with the logs and indexes of one partition, as collectors would write them."""

    def __init__(self, broker: Broker, partition: int, folder: Path) -> None:
        self.broker = broker
        self.partition = partition
        self.folder = folder
        self.log = folder / "a" / log_name(partition)
        self.index = folder / "a" / index_name(partition)

    def publish(self, messages: Messages) -> None:
        publish(self.broker, self.partition, *messages)

    def write(self, messages: Messages, *names: str, base: Iterable[int] = ()) -> None:
        """Write the log of these messages, with a record for each one, to folders of these names.

        `base` are numbers that were in the log before there was the stream.
        """
        created_ns = self.broker.run(self._created_ns)
        record = Record(
            partition=self.partition, partitions=PARTITIONS, stream_created_ns=created_ns
        )
        log = list(base)
        records = [replace(record, log_bytes=10 * len(log), sum=sum(log))]
        for sequence, message in enumerate(messages, 1):
            log.extend(number for number in dict.fromkeys(message) if number not in set(log))
            records.append(
                replace(record, sequence=sequence, log_bytes=10 * len(log), sum=sum(log))
            )
        for name in names or ("a",):
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            (folder / log_name(self.partition)).write_bytes(lines(log))
            packed = b"".join(each.pack() for each in records)
            (folder / index_name(self.partition)).write_bytes(packed)

    def skip(self, sequence: int) -> None:
        skip = Skip(
            partition=self.partition,
            sequence=sequence,
            last_sequence=sequence,
            stream_created_ns=self.broker.run(self._created_ns),
            by="test",
            why="test",
        )
        self.broker.run(lambda js: Buckets(js).put_skip(skip))

    async def _created_ns(self, js: JetStreamContext) -> int:
        return (await read_state(js, stream_name(self.partition))).created_ns

    def trim(self, sequence: int) -> None:
        """Purge what is before a message, as collectors do."""

        async def run(js: JetStreamContext) -> None:
            trim = Trim(sequence, await self._created_ns(js))
            await Buckets(js).put_trim(self.partition, trim)
            await js.purge_stream(stream_name(self.partition), seq=sequence)

        self.broker.run(run)

    def verify(self, *names: str) -> subprocess.CompletedProcess[str]:
        folders = [f"--log-dir={self.folder / name}" for name in names or ("a",)]
        arguments = ("--partitions", str(self.partition), *folders, "--nats", self.broker.url)
        return run_command("cluster", "verify", *arguments)

    def findings(self, *names: str) -> list[str]:
        """Return what is found, without the partition, and without the folders' common part."""
        done = self.verify(*names)
        first, *found, total = done.stdout.splitlines()
        assert done.stderr == ""
        assert first.startswith(f"partition {self.partition}: ")
        assert done.returncode == bool(found)
        plural = "s" if len(found) > 1 else ""
        assert total.endswith(f", {len(found)} finding{plural}" if found else ", clean")
        start = f"partition {self.partition}: "
        return [line.removeprefix(start).replace(f"{self.folder}/", "") for line in found]


@pytest.fixture
def copies(broker: Broker, partition: int, tmp_path: Path) -> Copies:
    return Copies(broker, partition, tmp_path)


@pytest.fixture
def messages(partition: int) -> Messages:
    """Ten messages, of 100 numbers each and five from the one before."""
    numbers = sample(partition, 1000)
    return [numbers[max(0, at - 5) : at + 100] for at in range(0, 1000, 100)]


def test_equal_copies_with_everything_are_clean(copies: Copies, messages: Messages) -> None:
    copies.publish(messages)
    copies.write(messages, "a", "b", "c")
    done = copies.verify("a", "b", "c")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"partition {copies.partition}: 3 logs of 1000 numbers, "
        "1000 in messages 1 to 10 of the stream\n"
        "1 partition, 3 logs: 1000 numbers in logs, 1000 in streams, clean\n"
    )


def test_json_has_the_same(copies: Copies, messages: Messages) -> None:
    copies.publish(messages)
    copies.write(messages[:-1])
    done = run_command(
        *("cluster", "verify", "--json", "--nats", copies.broker.url),
        *("--partitions", str(copies.partition), "--log-dir", str(copies.folder / "a")),
    )
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["clean"] is False
    (one,) = found["partitions"]
    assert (one["partition"], one["numbers"], one["last_sequence"]) == (copies.partition, 1000, 10)
    assert one["copies"] == [{"log": str(copies.log), "numbers": 900, "sequence": 9, "log_only": 0}]
    assert len(one["findings"]) == found["totals"]["findings"] == 1


def without_a_line(data: bytes) -> bytes:
    return data[:5000] + data[5010:]


def with_a_line_twice(data: bytes) -> bytes:
    return data[:5000] + data[4000:4010] + data[5010:]


def with_another_number(data: bytes) -> bytes:
    number = int(data[5000:5009])
    return data[:5000] + b"%09d\n" % (number + 1) + data[5010:]


def with_a_number_of_another_partition(data: bytes) -> bytes:
    return data[:5000] + b"000000000\n" + data[5010:]


def with_a_flipped_bit_in_a_newline(data: bytes) -> bytes:
    return data[:5009] + b"\x0b" + data[5010:]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_a_line, ["differs", "it has 9990 of", "another sum", "not in the log"]),
        (with_a_line_twice, ["differs", "second time", "not in the log"]),
        (with_another_number, ["differs", "another sum", "not in the log", "is in no message"]),
        (
            with_a_number_of_another_partition,
            ["differs", "of another partition", "not in the log"],
        ),
        (with_a_flipped_bit_in_a_newline, ["differs", "is no number", "not in the log"]),
    ],
)
def test_damage_to_a_log_is_named_with_its_number_message_and_offset(
    copies: Copies, messages: Messages, damage: Callable[[bytes], bytes], words: list[str]
) -> None:
    copies.publish(messages)
    copies.write(messages, "a", "b")
    good = copies.log.read_bytes()
    damaged = copies.folder / "b" / copies.log.name
    damaged.write_bytes(damage(good))
    number = good[5000:5009].decode()
    findings = copies.findings("a", "b")
    for word in words:
        (finding,) = (each for each in findings if word in each)
        assert finding.startswith(f"b/{copies.log.name}")
        if word == "not in the log":
            # It came with the sixth message.
            assert f"number {number} of message 6 is not in the log" in finding
        elif word == "another sum":
            assert "message 6" in finding
        elif word != "it has 9990 of":
            assert "byte 5000" in finding
    assert all(each.startswith(f"b/{copies.log.name}") for each in findings)


def test_numbers_that_no_message_has_are_found_behind_the_index_too(
    copies: Copies, messages: Messages
) -> None:
    copies.publish(messages)
    copies.write(messages)
    with copies.log.open("ab") as log:
        log.write(lines(sample(copies.partition, 3, seed=2)))
    assert copies.findings() == [f"a/{copies.log.name}: its last 30 bytes are not in its index"]


def test_a_log_behind_its_stream_is_found(copies: Copies, messages: Messages) -> None:
    copies.publish(messages)
    copies.write(messages[:7])
    copies.write(messages, "b")
    # What it has written and not synced is no harm.
    with copies.log.open("ab") as log:
        log.write(lines(messages[7])[:333])
    assert copies.findings("a", "b") == [
        f"a/{copies.log.name}: it is 3 messages behind: its index ends at message 7, and the "
        "stream at message 10"
    ]


def test_a_trimmed_stream_is_clean_and_numbers_only_in_logs_are_counted(
    copies: Copies, messages: Messages
) -> None:
    copies.publish(messages)
    copies.write(messages, "a", "b")
    copies.trim(8)
    done = copies.verify("a", "b")
    assert done.returncode == 0, done
    assert "2 logs of 1000 numbers, 305 in messages 8 to 10 of the stream, 695 only in logs" in (
        done.stdout
    )
    # A foreign number is one behind what was trimmed, and only there.
    log = bytearray(copies.log.read_bytes())
    for at, is_found in ((6000, False), (8500, True)):
        other = bytearray(log)
        other[at : at + 10] = lines([sample(copies.partition, 1001)[-1]])
        copies.log.write_bytes(other)
        found = [each for each in copies.findings() if "is in no message" in each]
        assert len(found) == is_found
        assert all(f"at byte {at} " in each for each in found)


def test_a_purged_stream_has_nothing_to_compare(copies: Copies, messages: Messages) -> None:
    copies.publish(messages)
    copies.write(messages)
    copies.trim(11)
    done = copies.verify()
    assert done.returncode == 0, done
    assert "1 log of 1000 numbers, an empty stream, 1000 only in logs" in done.stdout


def test_a_missing_message_is_found_unless_it_is_skipped(
    copies: Copies, messages: Messages
) -> None:
    copies.publish(messages)
    # This one had read it before it went missing, the other one has not, and passed over it.
    copies.write(messages, "a")
    copies.write([*messages[:4], [], *messages[5:]], "b")
    stream = stream_name(copies.partition)
    copies.broker.run(lambda js: js.delete_msg(stream, 5))
    assert copies.findings("a") == [f"message 5 is missing in the stream {stream}"]
    copies.skip(5)
    assert copies.findings("a") == []
    done = copies.verify("b")
    assert done.returncode == 0, done
    assert "1 message skipped" in done.stdout
    (difference,) = copies.findings("a", "b")
    assert difference.startswith(f"b/{copies.log.name} differs from a/{copies.log.name} from the ")


def test_a_skipped_message_that_is_there_may_be_in_a_log_or_not(
    copies: Copies, messages: Messages
) -> None:
    copies.publish(messages)
    copies.skip(5)
    for taken in (messages, [*messages[:4], [], *messages[5:]]):
        copies.write(taken)
        assert copies.findings() == []


def test_a_stream_that_begins_late_without_a_trim_has_a_gap(
    copies: Copies, messages: Messages
) -> None:
    copies.publish(messages)
    copies.write(messages)
    stream = stream_name(copies.partition)
    copies.broker.run(lambda js: js.purge_stream(stream, seq=5))
    assert copies.findings() == [f"messages 1 to 4 are missing in the stream {stream}"]


def test_each_gap_is_found(copies: Copies, messages: Messages) -> None:
    copies.publish(messages)
    copies.write(messages)
    stream = stream_name(copies.partition)
    for sequence in (3, 4, 7):
        copies.broker.run(lambda js, sequence=sequence: js.delete_msg(stream, sequence))  # type: ignore[misc]
    assert copies.findings() == [
        f"messages 3 to 4 are missing in the stream {stream}, and 1 more like it"
    ]


@pytest.mark.parametrize("bad", [b"", b"abc", b"\0\0\0\0"], ids=["empty", "torn", "foreign"])
def test_a_message_that_is_no_batch_is_found(
    copies: Copies, messages: Messages, bad: bytes
) -> None:
    publish(copies.broker, copies.partition, messages[0], bad, messages[1])
    copies.write([messages[0], [], messages[1]])
    (finding,) = copies.findings()
    assert finding.startswith(f"message 2 of the stream {stream_name(copies.partition)} ")


def test_numbers_from_before_the_stream_are_counted(copies: Copies, messages: Messages) -> None:
    copies.publish(messages)
    copies.write(messages, base=sample(copies.partition, 1100)[-100:])
    done = copies.verify()
    assert done.returncode == 0, done
    assert "of 1100 numbers, 1000 in messages 1 to 10 of the stream, 100 only in logs" in (
        done.stdout
    )


@pytest.mark.parametrize("has_index", [False, True])
def test_a_log_of_a_stream_without_messages_is_empty_and_clean(
    copies: Copies, messages: Messages, has_index: bool
) -> None:
    copies.write([])
    if not has_index:
        copies.index.unlink()
    done = copies.verify()
    assert done.returncode == 0, done
    assert "1 log of 0 numbers, an empty stream" in done.stdout
    copies.publish(messages)
    assert copies.findings() == [
        f"a/{copies.log.name}: it is 10 messages behind: its index ends at message 0, and the "
        "stream at message 10"
    ]


def test_a_record_that_is_just_being_written_is_no_damage(
    copies: Copies, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies.write(messages)
    whole = copies.index.read_bytes()
    copies.index.write_bytes(whole[:-7])
    monkeypatch.setattr("time.sleep", lambda _seconds: copies.index.write_bytes(whole))
    with Copy(copies.log.parent, copies.partition, PARTITIONS) as copy:
        assert copy.findings == []
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    copies.index.write_bytes(whole[:-7])
    with Copy(copies.log.parent, copies.partition, PARTITIONS) as copy:
        assert copy.findings == [f"{copies.index}: the record at byte 800 has 73 bytes"]


def remove_log(copies: Copies) -> None:
    copies.log.unlink()


def remove_index(copies: Copies) -> None:
    copies.index.unlink()


def remove_both(copies: Copies) -> None:
    copies.log.unlink()
    copies.index.unlink()


def empty_index(copies: Copies) -> None:
    copies.index.write_bytes(b"")


def tear_index(copies: Copies) -> None:
    copies.index.write_bytes(copies.index.read_bytes()[:-1])


def flip_index(copies: Copies) -> None:
    data = bytearray(copies.index.read_bytes())
    data[-60] ^= 1
    copies.index.write_bytes(data)


def change_stream(copies: Copies) -> None:
    change_records(copies, stream_created_ns=1)


def change_partition(copies: Copies) -> None:
    change_records(copies, partition=copies.partition - 1)


def change_records(copies: Copies, **values: int) -> None:
    data = copies.index.read_bytes()
    records = [
        replace(Record.unpack(data[at : at + 80]), **values) for at in range(0, len(data), 80)
    ]
    copies.index.write_bytes(b"".join(record.pack() for record in records))


def lead_stream(copies: Copies) -> None:
    data = copies.index.read_bytes()
    record = Record.unpack(data[-80:])
    copies.index.write_bytes(data + replace(record, sequence=record.sequence + 1).pack())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove_log, "the log is missing"),
        (remove_index, "it has no index"),
        (remove_both, "there is no log of it"),
        (empty_index, "has no record"),
        (tear_index, "the record at byte 800 has"),
        (flip_index, "the record at byte 800 has"),
        (change_stream, "its index is of another stream"),
        (change_partition, "its index is of partition"),
        (lead_stream, "the stream was put back"),
    ],
)
def test_an_index_or_a_log_that_is_not_what_it_should_be_is_found(
    copies: Copies, messages: Messages, change: Callable[[Copies], None], expected: str
) -> None:
    copies.publish(messages)
    copies.write(messages)
    change(copies)
    assert any(expected in finding for finding in copies.findings())


def test_a_log_of_something_else_is_not_read_to_its_end(
    copies: Copies, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numbers_uring.cluster.verify.copy.VERIFY_LINES_MAX", 100)
    copies.write(messages)
    copies.log.write_bytes(lines(range(1000)))
    with Copy(copies.log.parent, copies.partition, PARTITIONS) as copy:
        copy.read_index(None)
        read_bytes: list[int] = []
        copy.scan(read_bytes.append)
    assert sum(read_bytes) == 1010
    assert copy.findings == [
        f"{copies.log}: number 000000000 at byte 0 is of another partition, and 100 more like it",
        f"{copies.log}: with so many lines that should not be there it was not read to its end",
    ]
    assert not copy.is_comparable


def test_a_line_longer_than_a_chunk_is_one_finding(copies: Copies, messages: Messages) -> None:
    copies.write(messages)
    whole = copies.log.read_bytes()
    # Its end looks like a line of its own, at the beginning of the next chunk.
    long = b"1" * (CHUNK_BYTES - 5000) + whole[:10]
    copies.log.write_bytes(whole[:5000] + long + whole[5000:])
    copies.index.unlink()
    with Copy(copies.log.parent, copies.partition, PARTITIONS) as copy:
        copy.read_index(None)
        copy.scan(lambda _size: None)
    assert copy.findings[1:] == [f"{copies.log}: the line at byte 5000 is no number"]
    assert copy.report.numbers == 1000


def test_an_interrupt_ends_a_verification_that_reads_a_log(
    copies: Copies, messages: Messages
) -> None:
    copies.write(messages)
    with copies.log.open("ab") as log:
        log.truncate(1 << 40)  # of zero bytes, which takes no space, and hours to read
    copies.index.unlink()
    arguments = ("--partitions", str(copies.partition), "--log-dir", str(copies.log.parent))
    with CommandProcess(
        "cluster", "verify", "--nats", copies.broker.url, *arguments
    ) as verification:
        wait_until(lambda: copies.log.name in open_files(verification.process.pid), "an open log")
        assert verification.stop(signal.SIGINT) == 130
        assert verification.stderr == ""


def test_a_stream_that_no_server_answers_for_ends_the_verification(
    copies: Copies, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unanswered(Reader):
        waits = Wait("broker", 1, 1, "the stream has no server that answers; retrying")

        async def read(self) -> list[Message]:
            return []

    async def use(js: JetStreamContext) -> None:
        await verify_cluster(js, [copies.folder], str(copies.partition), lambda _size: None)

    copies.publish(messages)
    monkeypatch.setattr("numbers_uring.cluster.verify.partition.Reader", Unanswered)
    with pytest.raises(
        StartError, match=f"^cannot verify partition {copies.partition}: .* that answers$"
    ):
        copies.broker.run(use)


def open_files(pid: int) -> set[str]:
    names = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.add(link.readlink().name)
    return names


def test_all_partitions_are_verified_unless_some_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with broker_with_cluster(tmp_path / "broker", partitions=3) as broker:
        arguments = ("cluster", "verify", "--nats", broker.url, "--log-dir", str(folder))
        every = run_command(*arguments)
        two = run_command(*arguments, "--partitions", "0,2")
    assert (every.returncode, two.returncode) == (1, 1)
    for done, numbers in ((every, [0, 1, 2]), (two, [0, 2])):
        found = [
            line for line in done.stdout.splitlines() if line.endswith("there is no log of it")
        ]
        assert found == [f"partition {number}: there is no log of it" for number in numbers]


def test_what_prevents_a_verification_is_one_line(broker: Broker, tmp_path: Path) -> None:
    def verify(*options: str) -> "subprocess.CompletedProcess[str]":
        return run_command("cluster", "verify", *options)

    here, missing = f"--log-dir={tmp_path}", f"--log-dir={tmp_path / 'missing'}"
    assert_one_line_error(verify("--nats", broker.url, missing), 3, "No such file or directory")
    assert_one_line_error(verify("--nats", broker.url, here, here), 2, "twice")
    assert_one_line_error(
        verify("--nats", broker.url, here, "--partitions", "7-99"), 3, "0 to", "7-99"
    )
