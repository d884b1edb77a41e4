"""Several collectors of one partition: equal logs, new copies, differences, and trimming."""

import itertools
import shutil
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from nats.js import JetStreamContext
from nats.js.errors import APIError

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.collector.identity import identify
from numbers_uring.cluster.index import Records, read_index
from numbers_uring.cluster.partitions import range_of, stream_name, subject_name
from numbers_uring.cluster.values import Copy
from numbers_uring.limits import COPY_GONE_S, LINE_BYTES
from support.broker import Broker, broker_with_cluster
from support.collectors import collector_process
from support.copies import (
    copy_in,
    environment,
    files_of,
    registered,
    stream_ends,
    want_copies,
)
from support.processes import (
    CommandProcess,
    ServerProcess,
    assert_one_line_error,
    run_command,
)
from support.waiting import wait_until

PARTITIONS = 32
STREAM_BYTES_MAX = 1_100_000
KEEP_S = 0.001


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A NATS server whose streams are small, and are trimmed once there are two copies."""
    folder = tmp_path_factory.mktemp("broker")
    with broker_with_cluster(folder, partitions=PARTITIONS, max_bytes=STREAM_BYTES_MAX) as broker:
        yield broker


@pytest.fixture(scope="module")
def _unused() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def partition(_unused: Iterator[int]) -> int:
    return next(_unused)


Collect = Callable[[str], CommandProcess]
Has = Callable[[str, int], None]


@pytest.fixture
def collect(broker: Broker, partition: int, tmp_path: Path) -> Iterator[Collect]:
    """Start a collector in a folder of this name, that compares and trims all the time."""
    settings = environment(tmp_path / "limits")
    with ExitStack() as running:

        def start(name: str) -> CommandProcess:
            process = collector_process(
                broker.url, partition, tmp_path / name, environment=settings
            )
            return running.enter_context(process)

        yield start


class Publisher:
    """Publishes messages whose numbers were not there before."""

    def __init__(self, broker: Broker, partition: int) -> None:
        self._broker = broker
        self._subject = subject_name(partition)
        self._numbers = itertools.count(range_of(partition, PARTITIONS).first)

    def __call__(self, messages: int, numbers: int = 1000) -> None:
        """Publish so many messages of so many numbers. Raises APIError."""

        async def send(js: JetStreamContext) -> None:
            for _ in range(messages):
                data = array("I", itertools.islice(self._numbers, numbers)).tobytes()
                await js.publish(self._subject, data)

        self._broker.run(send)


@pytest.fixture
def publish(broker: Broker, partition: int) -> Publisher:
    return Publisher(broker, partition)


@pytest.fixture
def has(broker: Broker, partition: int, tmp_path: Path) -> Has:
    """Wait until the copy in this folder has reported a message."""

    def wait(name: str, sequence: int) -> None:
        def reported() -> bool:
            copy = copy_in(broker, partition, tmp_path / name)
            return copy is not None and copy.sequence >= sequence

        wait_until(reported, f"message {sequence} in {name}")

    return wait


def copy_files(source: Path, target: Path, partition: int) -> None:
    """Copy what a copy needs, the index first; the log may grow meanwhile."""
    target.mkdir()
    for path in files_of(source, partition):
        shutil.copy(path, target)


def equal_logs(partition: int, *folders: Path) -> bytes:
    """Return what all of the logs have."""
    logs = {files_of(folder, partition)[1].read_bytes() for folder in folders}
    assert len(logs) == 1
    return logs.pop()


def test_a_new_copy_comes_from_files_that_were_copied_while_another_wrote_them(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
) -> None:
    collect("one")
    publish(10)
    has("one", 10)
    publishing = threading.Thread(target=publish, args=(200,))
    publishing.start()
    has("one", 30)
    copy_files(tmp_path / "one", tmp_path / "other", partition)
    index, log = files_of(tmp_path / "other", partition)
    last = read_index(index).records[-1]
    assert 10 <= last.sequence < 210
    assert last.log_bytes <= log.stat().st_size
    other = collect("other")
    publishing.join()
    has("one", 210)
    has("other", 210)
    assert len(equal_logs(partition, tmp_path / "one", tmp_path / "other")) == 2_100_000
    assert len(registered(broker, partition)) == 2
    assert f"up to message {last.sequence}," in other.stderr


def test_a_folder_that_was_copied_with_its_id_does_not_start_beside_the_first(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
) -> None:
    first = collect("one")
    publish(3)
    has("one", 3)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    arguments = ("collect", "--nats", broker.url, "--partitions", str(partition))
    done = run_command(
        *arguments,
        "--quiet",
        "--log-dir",
        str(tmp_path / "other"),
        environment=environment(tmp_path / "limits"),
    )
    assert_one_line_error(
        done,
        3,
        f"({files_of(tmp_path / 'one', partition)[1]} on ",
        "is in use by another process: if this folder was copied from there, remove "
        f"{tmp_path / 'other' / 'numbers.copy'}",
    )
    publish(1)
    has("one", 4)
    assert first.stop() == 0
    (tmp_path / "other/numbers.copy").unlink()
    collect("other")
    has("other", 4)
    equal_logs(partition, tmp_path / "one", tmp_path / "other")


def test_a_start_that_waits_for_the_last_process_of_its_copy_can_be_stopped(
    broker: Broker, partition: int, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    copy = Copy(
        partition=partition,
        copy=identify(tmp_path / "one").copy,
        run="killed",
        host="elsewhere",
        log="/numbers.log",
        place="elsewhere",
        state="collecting",
    )

    async def put(js: JetStreamContext) -> None:
        await Buckets(js).put_copy(copy)

    broker.run(put)
    arguments = ("collect", "--nats", broker.url, "--partitions", str(partition))
    process = CommandProcess(*arguments, "--log-dir", str(tmp_path / "one"))
    with process:
        process.wait_for("waiting until the last process of this copy is surely gone")
        begin_s = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begin_s < COPY_GONE_S / 2
    left = registered(broker, partition)["/numbers.log"]
    assert (left.run, left.state) == ("killed", "collecting")


def test_a_collector_ends_once_another_process_reports_as_its_copy(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
) -> None:
    process = collect("one")
    publish(1)
    has("one", 1)
    copy = copy_in(broker, partition, tmp_path / "one")
    assert copy is not None
    stranger = replace(copy, run="stranger", host="elsewhere")

    async def put(js: JetStreamContext) -> None:
        await Buckets(js).put_copy(stranger)

    broker.run(put)
    assert process.wait() == 1
    assert process.stderr_lines[-1].startswith(f"numbers-uring: error: copy {copy.copy} (")
    assert " on elsewhere) is in use by another process: " in process.stderr_lines[-1]
    left = copy_in(broker, partition, tmp_path / "one")
    assert left is not None
    assert (left.run, left.state) == ("stranger", "collecting")


def alter(folder: Path, partition: int) -> None:
    """Replace the log's last number by another one, and let the index agree."""
    index, log = files_of(folder, partition)
    records = read_index(index).records
    data = log.read_bytes()
    before = int(data[-LINE_BYTES:])
    after = before + 1
    log.write_bytes(data[:-LINE_BYTES] + b"%09d\n" % after)
    altered = Records()
    for record in records:
        is_last = record.log_bytes == len(data)
        altered.append(replace(record, sum=record.sum + is_last * (after - before)))
    index.write_bytes(altered.packed())


def test_copies_that_differ_say_so_and_their_stream_is_kept(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
) -> None:
    want_copies(broker, PARTITIONS, 0, 0)
    one, other = collect("one"), collect("other")
    publish(7)
    has("one", 7)
    has("other", 7)
    assert other.stop() == 0
    alter(tmp_path / "other", partition)
    other = collect("other")
    for process in (one, other):
        process.wait_for("differ: equal up to message ")
    want_copies(broker, PARTITIONS, 2, KEEP_S)
    publish(50)
    has("one", 57)
    has("other", 57)
    for process in (one, other):
        lines = [line for line in process.stderr_lines if "differ: " in line]
        assert len(lines) == 1
        assert lines[0].endswith("different at message 7")
        assert f"partition {partition}: copy " in lines[0]
        for name in ("one", "other"):
            assert f"({files_of(tmp_path / name, partition)[1]} on " in lines[0]
        assert process.stop() == 0
    assert stream_ends(broker, partition) == (1, 57)


def test_all_copies_wait_for_a_message_that_is_lost_until_it_is_skipped(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
) -> None:
    want_copies(broker, PARTITIONS, 0, 0)
    both = [collect("one"), collect("other")]
    publish(3)
    has("one", 3)
    has("other", 3)
    for process in both:
        assert process.stop() == 0
    publish(2)

    async def lose(js: JetStreamContext) -> None:
        assert await js.delete_msg(stream_name(partition), 4)

    broker.run(lose)
    both = [collect("one"), collect("other")]
    for process in both:
        process.wait_for(f"partition {partition} waits: ")
    skip = ("cluster", "skip", "--nats", broker.url, str(partition), "4")
    assert run_command(*skip).returncode == 0
    for name in ("one", "other"):
        has(name, 5)
    # One that comes later knows it from the start.
    late = collect("late")
    has("late", 5)
    assert "waits" not in late.stderr
    equal_logs(partition, *(tmp_path / name for name in ("one", "other", "late")))


@pytest.mark.parametrize("is_trimmed", [False, True])
def test_files_that_were_put_back_go_on_or_wait_with_a_line_that_names_the_copy_to_take(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
    is_trimmed: bool,
) -> None:
    want_copies(broker, PARTITIONS, 2, KEEP_S if is_trimmed else 0)
    collect("one")
    other = collect("other")
    publish(5)
    has("other", 5)
    assert other.stop() == 0
    copy_files(tmp_path / "other", tmp_path / "backup", partition)
    other = collect("other")
    publish(10)
    has("one", 15)
    has("other", 15)
    if is_trimmed:
        wait_until(lambda: stream_ends(broker, partition) == (15, 15), "the purge")
    assert other.stop() == 0
    for path in files_of(tmp_path / "backup", partition):
        shutil.copy(path, tmp_path / "other")
    other = collect("other")
    if is_trimmed:
        named = f"({files_of(tmp_path / 'one', partition)[1]} on "
        other.wait_for(named)
        line = next(line for line in other.stderr_lines if named in line)
        assert f"partition {partition} waits: " in line
        wait_until(
            lambda: (copy := copy_in(broker, partition, tmp_path / "other")) and copy.waits,
            "the report",
        )
        assert other.stop() == 0
        for path in files_of(tmp_path / "one", partition):
            shutil.copy(path, tmp_path / "other")
        collect("other")
    publish(1)
    has("one", 16)
    has("other", 16)
    equal_logs(partition, tmp_path / "one", tmp_path / "other")


def test_a_stream_under_load_is_trimmed_as_its_copies_go_on_and_never_past_the_slowest(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
) -> None:
    want_copies(broker, PARTITIONS, 2, KEEP_S)
    collect("one")
    other = collect("other")
    stop = threading.Event()

    def flow() -> None:
        while not stop.is_set():
            publish(5, numbers=50)

    def first() -> int:
        return stream_ends(broker, partition)[0]

    publishing = threading.Thread(target=flow)
    publishing.start()
    try:
        # All have it: it goes, and goes on.
        wait_until(lambda: first() > 20, "the first purges")
        other.process.send_signal(signal.SIGSTOP)
        slow = copy_in(broker, partition, tmp_path / "other")
        assert slow is not None
        has("one", slow.sequence + 50)
        paused = copy_in(broker, partition, tmp_path / "other")
        assert paused is not None
        has("one", slow.sequence + 100)
        assert first() <= paused.sequence
        # Awake again, it goes on from there.
        other.process.send_signal(signal.SIGCONT)
        wait_until(lambda: first() > paused.sequence + 50, "the purge behind that")
        # Stopped, it is waited for, until it is forgotten.
        assert other.stop() == 0
        stopped = copy_in(broker, partition, tmp_path / "other")
        assert stopped is not None
        assert stopped.state == "stopped"
        has("one", stopped.sequence + 50)
        assert first() <= stopped.sequence
        third = collect("third")
        third.wait_for("one/numbers.")  # It has come too late for the beginning.
        assert third.stop() == 0
        forget = ("cluster", "forget", "--nats", broker.url)
        for name in ("other", "third"):
            copy = copy_in(broker, partition, tmp_path / name)
            assert copy is not None
            assert run_command(*forget, copy.copy).returncode == 0
        has("one", stopped.sequence + 100)
        assert first() <= stopped.sequence
        want_copies(broker, PARTITIONS, 1, KEEP_S)
        wait_until(lambda: first() > stopped.sequence + 50, "the purge without the forgotten one")
    finally:
        stop.set()
        publishing.join()


def test_messages_go_as_they_grow_old_enough_while_younger_ones_come(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
) -> None:
    keep_s = 1.5
    want_copies(broker, PARTITIONS, 2, keep_s)
    collect("one")
    collect("other")
    sent_s: list[float] = []
    first = 1
    while first < 10:
        sent_s.append(time.monotonic())
        publish(1, numbers=50)
        has("one", len(sent_s))
        has("other", len(sent_s))
        first, _ = stream_ends(broker, partition)
        assert len(sent_s) < 1000, "nothing is ever old enough"
        gone_s = [time.monotonic() - each for each in sent_s[: first - 1]]
        assert all(age_s > keep_s for age_s in gone_s)


def test_a_full_stream_is_trimmed_once_there_are_the_copies_and_its_node_goes_on(
    collect: Collect,
    broker: Broker,
    partition: int,
    publish: Publisher,
    has: Has,
    tmp_path: Path,
) -> None:
    want_copies(broker, PARTITIONS, 2, KEEP_S)
    collect("one")
    with pytest.raises(APIError, match="maximum bytes exceeded"):
        publish(STREAM_BYTES_MAX // 4000)
    _, last = stream_ends(broker, partition)
    has("one", last)
    node = ServerProcess(
        tmp_path / "unused",
        *("--forward", broker.url, "--partitions", str(PARTITIONS)),
        has_log=False,
    )
    with node:
        numbers = range(
            range_of(partition, PARTITIONS).end - 1000, range_of(partition, PARTITIONS).end
        )
        node.send(b"".join(b"%09d\n" % number for number in numbers))
        node.wait_for(f"refuses {subject_name(partition)}: maximum bytes exceeded")
        collect("other")
        has("other", last + 1)
        has("one", last + 1)
        assert node.stop() == 0
    data = equal_logs(partition, tmp_path / "one", tmp_path / "other")
    assert {int(line) for line in data.split()} >= set(numbers)
