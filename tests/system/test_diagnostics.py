"""Diagnostics: one line each, as text or JSON, of a level that is wanted."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from numbers_uring.config import LogFormat
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import LineWriter
from support.waiting import DEADLINE_S


class Said:
    """Diagnostics that go to a pipe."""

    def __init__(self) -> None:
        self.fd, write_fd = os.pipe()
        self.write_fd = write_fd
        self.say = Diagnostics(LineWriter(write_fd))

    def lines(self) -> list[str]:
        return os.read(self.fd, 1 << 16).decode().splitlines()


@pytest.fixture
def said() -> Iterator[Said]:
    said = Said()
    yield said
    os.close(said.fd)
    os.close(said.write_fd)


def test_text_has_the_programs_name_and_marks_errors(said: Said) -> None:
    said.say("a warning", detail=1)
    said.say.info("an information")
    said.say.error("an error")
    assert said.lines() == [
        "numbers-uring: a warning",
        "numbers-uring: an information",
        "numbers-uring: error: an error",
    ]


def test_json_has_time_level_message_and_fields(said: Said) -> None:
    said.say.form = LogFormat.JSON
    said.say('a "warning"', peer="127.0.0.1:1", path=os.devnull)
    said.say.error("an error")
    warning, error = map(json.loads, said.lines())
    assert warning.pop("time").endswith("Z")
    assert datetime.fromisoformat(error.pop("time")).tzinfo is not None
    assert warning == {
        "level": "warning",
        "message": 'a "warning"',
        "peer": "127.0.0.1:1",
        "path": os.devnull,
    }
    assert error == {"level": "error", "message": "an error"}


@pytest.mark.parametrize(
    ("level", "count"),
    [(logging.DEBUG, 4), (logging.INFO, 3), (logging.WARNING, 2), (logging.ERROR, 1)],
)
def test_what_matters_less_than_wanted_is_not_said(said: Said, level: int, count: int) -> None:
    said.say.level_min = level
    said.say.debug("debug")
    said.say.info("info")
    said.say("warning")
    said.say.error("error")
    assert len(said.lines()) == count


@pytest.mark.parametrize("form", list(LogFormat))
@pytest.mark.parametrize(
    "text",
    ["two\nlines", "a\x1b[31mcolour", "x" * 100_000, "é" * 5000, "\U0001f600" * 5000, "\udc80 bad"],
)
def test_whatever_is_said_is_one_printable_line_that_a_pipe_takes_whole(
    said: Said, form: LogFormat, text: str
) -> None:
    said.say.form = form
    said.say(text)
    (line,) = said.lines()
    assert line.isprintable()
    assert len(line.encode()) < 4096


@pytest.fixture
def taken_over(said: Said) -> Iterator[Said]:
    root = logging.getLogger()
    before = root.handlers[:], threading.excepthook, sys.unraisablehook
    said.say.take_over()
    yield said
    root.handlers[:], threading.excepthook, sys.unraisablehook = before


@pytest.mark.parametrize("form", list(LogFormat))
def test_what_libraries_log_is_a_line_like_all_others(taken_over: Said, form: LogFormat) -> None:
    taken_over.say.form = form
    library = logging.getLogger("a.library")
    library.info("not worth a line")
    library.warning("%d\nlines", 2)
    library.warning("wrong: %d", "text")
    try:
        raise ValueError("why")
    except ValueError:
        library.exception("it failed")
    warning, wrong, error = taken_over.lines()
    if form is LogFormat.TEXT:
        assert warning == "numbers-uring: a.library: 2 lines"
        assert error == "numbers-uring: a.library: it failed: ValueError('why')"
    else:
        parsed = json.loads(error)
        del parsed["time"]
        message = "it failed: ValueError('why')"
        assert parsed == {"level": "error", "message": message, "logger": "a.library"}
        json.loads(wrong)
    assert "a.library" in wrong


@pytest.mark.parametrize("error", [OSError(5, "bad disk"), MemoryError(), ZeroDivisionError("0")])
def test_a_thread_that_fails_is_one_line(taken_over: Said, error: Exception) -> None:
    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail, name="tender")
    thread.start()
    thread.join()
    (line,) = taken_over.lines()
    assert line.startswith("numbers-uring: error: the thread tender has failed: ")


def test_the_traceback_of_a_thread_that_fails_is_there_for_debugging(taken_over: Said) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    taken_over.say.level_min = logging.DEBUG
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert any("in fail" in line for line in taken_over.lines())


class _FailsAtItsEnd:
    def __del__(self) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failure_where_nothing_can_be_raised_is_one_line(taken_over: Said) -> None:
    _FailsAtItsEnd()
    (line,) = taken_over.lines()
    # Python 3.14 also says what it was calling.
    assert re.match("numbers-uring: ignored a failure(: | while )", line)
    assert os.strerror(errno.EIO) in line


STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z numbers-uring: \S")


def said_of_a_service(
    stderr: int, environment: dict[str, str], tmp_path: Path, *options: str
) -> None:
    arguments = ("--host", "127.0.0.1", "--port", "1", "--listen", "unix:/no/such/folder/s")
    done = subprocess.run(
        [sys.executable, "-m", "numbers_uring", "serve", *arguments, *options],
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        env={**os.environ, **environment},
        cwd=tmp_path,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 3


@pytest.mark.parametrize("kind", ["file", "pipe", "another journal's stream"])
def test_lines_of_a_service_have_the_time_where_nothing_else_adds_it(
    kind: str, tmp_path: Path
) -> None:
    read, write = os.pipe()
    if kind == "file":
        write = os.open(tmp_path / "err", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    said_of_a_service(write, {"JOURNAL_STREAM": "1:2"} if "journal" in kind else {}, tmp_path)
    said = os.pread(write, 9999, 0) if kind == "file" else os.read(read, 9999)
    os.close(read)
    os.close(write)
    assert all(STAMPED.match(line) for line in said.decode().splitlines()), said
    assert said


def test_a_terminal_and_the_journal_get_no_second_time(tmp_path: Path) -> None:
    read, write = os.pipe()
    state = os.fstat(write)
    said_of_a_service(write, {"JOURNAL_STREAM": f"{state.st_dev}:{state.st_ino}"}, tmp_path)
    assert os.read(read, 9999).startswith(b"numbers-uring: error: ")
    main, terminal = os.openpty()
    said_of_a_service(terminal, {}, tmp_path)
    assert os.read(main, 9999).startswith(b"numbers-uring: error: ")
    for fd in (read, write, main, terminal):
        os.close(fd)


def test_json_has_its_time_once(tmp_path: Path) -> None:
    read, write = os.pipe()
    said_of_a_service(write, {}, tmp_path, "--log-format", "json")
    for line in os.read(read, 9999).decode().splitlines():
        assert json.loads(line)["message"]
        assert line.count("Z") == 1
    os.close(read)
    os.close(write)
