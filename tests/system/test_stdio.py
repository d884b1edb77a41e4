"""Lines to every kind of stream: whole, in order, and without waiting for a reader."""

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from numbers_uring.errors import StartError
from numbers_uring.system import nonblocking, threads
from numbers_uring.system.nonblocking import Stream
from numbers_uring.system.stdio import LineWriter
from support.streams import (
    MANY,
    STREAM_KINDS,
    StreamPair,
    numbered_line,
    numbers_of,
    write_until_full,
)
from support.waiting import DEADLINE_S, wait_until


@pytest.fixture(params=[*STREAM_KINDS, "without /proc"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StreamPair]:
    """Each kind of stream that has a reader, and a terminal that can't be opened anew."""
    if request.param == "without /proc":

        def refuse(_fd: int) -> Callable[[bytes], int]:
            raise OSError(errno.ENOENT, "no /proc here")

        monkeypatch.setattr(nonblocking, "_reopen", refuse)
    with closing(STREAM_KINDS.get(request.param, STREAM_KINDS["terminal"])(tmp_path)) as pair:
        yield pair


def test_a_stream_that_no_one_reads_is_not_waited_for_and_what_it_took_is_whole(
    pair: StreamPair,
) -> None:
    writer = LineWriter(pair.write_fd)
    taken = write_until_full(writer)
    assert taken
    for number in range(MANY, MANY + 10):
        assert not writer.write(numbered_line(number))
    data = b""
    last = MANY + 10

    def goes_on() -> bool:
        nonlocal data
        data += pair.read()
        return writer.write(numbered_line(last))

    wait_until(goes_on, "the stream to take lines again")

    def all_read() -> bool:
        nonlocal data
        data += pair.read()
        return data.endswith(f"\n{numbered_line(last)}\n".encode())

    wait_until(all_read, "the last line")
    assert numbers_of(data) == [*taken, last]


def test_a_stream_is_not_waited_for_where_no_descriptor_is_left(
    pair: StreamPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", refuse)
        patch.setattr(nonblocking, "_reopen", refuse)
        writer = pair.writer()
        assert writer.write(numbered_line(0))
    refused = threading.Event()

    def fill() -> None:
        write_until_full(writer)
        refused.set()

    threading.Thread(target=fill, daemon=True).start()
    assert refused.wait(DEADLINE_S), "it waits for a reader"


def test_the_flags_that_others_share_are_left_alone(pair: StreamPair) -> None:
    before = fcntl.fcntl(pair.write_fd, fcntl.F_GETFL)
    assert LineWriter(pair.write_fd).write(numbered_line(0))
    assert fcntl.fcntl(pair.write_fd, fcntl.F_GETFL) == before
    assert not before & os.O_NONBLOCK


def test_threads_that_write_at_once_fuse_no_lines(pair: StreamPair) -> None:
    writer = LineWriter(pair.write_fd)
    count, each = 8, 200
    begin = threading.Barrier(count)

    def write(thread: int) -> None:
        begin.wait(DEADLINE_S)
        for number in range(thread * each, (thread + 1) * each):
            while not writer.write(numbered_line(number), wait_s=0.001):
                pass

    writers = [threading.Thread(target=write, args=(i,), daemon=True) for i in range(count)]
    for thread in writers:
        thread.start()
    data = b""

    def all_there() -> bool:
        nonlocal data
        data += pair.read()
        return data.count(b"\n") == count * each

    wait_until(all_there, "all lines")
    numbers = numbers_of(data)
    assert sorted(numbers) == list(range(count * each))
    for i in range(count):
        own = [number for number in numbers if number // each == i]
        assert own == sorted(own)


def test_a_line_waits_for_its_reader_as_long_as_asked(pair: StreamPair) -> None:
    writer = LineWriter(pair.write_fd)
    taken = write_until_full(writer)
    assert not writer.write(numbered_line(MANY), wait_s=0.05)
    data = b""
    end = threading.Event()

    def read() -> None:
        nonlocal data
        while not end.is_set():
            data += pair.read()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert writer.write(numbered_line(MANY), wait_s=DEADLINE_S)
    wait_until(lambda: data.endswith(f"{numbered_line(MANY)}\n".encode()), "the last line")
    end.set()
    reader.join(DEADLINE_S)
    assert numbers_of(data) == [*taken, MANY]


def test_a_reader_that_is_gone_is_no_failure(pair: StreamPair) -> None:
    writer = LineWriter(pair.write_fd)
    pair.close_reader()
    wait_until(lambda: not writer.write(numbered_line(0)), "the stream to refuse lines")


def test_a_fifo_whose_reader_comes_late_or_again_is_written_to_then(tmp_path: Path) -> None:
    with closing(STREAM_KINDS["fifo"](tmp_path)) as pair:
        writer = LineWriter(pair.write_fd)
        for number in range(3):
            pair.close_reader()
            assert not writer.write(numbered_line(MANY))
            pair.read_fd = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
            assert writer.write(numbered_line(number))
            assert numbers_of(pair.read()) == [number]


@pytest.mark.parametrize(("path", "taken"), [("/dev/null", True), ("/dev/full", False)])
def test_devices_take_lines_or_refuse_them(path: str, taken: bool) -> None:
    fd = os.open(path, os.O_WRONLY)
    assert LineWriter(fd).write(numbered_line(0)) is taken
    os.close(fd)


def test_a_closed_stream_refuses_lines() -> None:
    fd = os.open(os.devnull, os.O_WRONLY)
    os.close(fd)
    assert not LineWriter(fd).write(numbered_line(0))


@pytest.mark.parametrize("threads_can_start", [True, False])
def test_a_file_has_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_can_start: bool
) -> None:
    def refuse(_run: Callable[[], None], _name: str) -> threading.Thread:
        raise StartError("too little memory")

    if not threads_can_start:
        monkeypatch.setattr(threads, "start_thread", refuse)
    path = tmp_path / "file"
    with path.open("wb") as file:
        writer = LineWriter(file.fileno())
        for number in range(1000):
            assert writer.write(numbered_line(number), wait_s=DEADLINE_S)
    assert numbers_of(path.read_bytes()) == list(range(1000))


def test_a_full_disk_tears_no_line(small_disk: Path) -> None:
    path, filler = small_disk / "file", small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    with path.open("wb") as file:
        writer = LineWriter(file.fileno())
        taken = write_until_full(writer)
        filler.unlink()
        wait_until(lambda: writer.write(numbered_line(MANY), wait_s=0.1), "the disk to have space")
    assert numbers_of(path.read_bytes()) == [*taken, MANY]


class Interrupted:
    """A stream in the middle of whose writes something else happens."""

    def __init__(self, stream: Stream, happens: Callable[[], None]) -> None:
        self._stream = stream
        self._happens = happens

    def begin(self, data: bytes) -> None:
        self._happens()
        self._stream.begin(data)

    def finish(self) -> bool:
        return self._stream.finish()


def test_a_signal_handler_that_writes_in_the_middle_of_a_line_does_not_hang() -> None:
    with closing(STREAM_KINDS["pipe"](Path())) as pair:
        writer = LineWriter(pair.write_fd)
        assert writer.write(numbered_line(0))
        inner: list[bool] = []
        stream = writer._stream
        assert stream is not None
        writer._stream = Interrupted(stream, lambda: inner.append(writer.write(numbered_line(1))))
        assert writer.write(numbered_line(2))
        assert inner == [False]
        assert numbers_of(pair.read()) == [0, 2]


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "no descriptors"), ImportError("gone")])
def test_a_line_is_written_even_where_modules_can_no_longer_be_imported(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Refusing:
        @staticmethod
        def find_spec(*_: object) -> None:
            raise error

    name = "numbers_uring.system.nonblocking"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("numbers_uring.system.nonblocking")
    monkeypatch.setattr(sys, "meta_path", [Refusing])
    read_fd, write_fd = os.pipe()
    try:
        assert LineWriter(write_fd).write("too many open files")
        assert os.read(read_fd, 100) == b"too many open files\n"
    finally:
        os.close(read_fd)
        os.close(write_fd)
