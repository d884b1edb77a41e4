"""The log of a real server when its file is removed, replaced, written to by others or fails."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from support.faults import needs_strace, strace
from support.logs import lines
from support.processes import ServerProcess, failure, run_command, run_text, unstamped
from support.waiting import DEADLINE_S, wait_until

Serve = Callable[..., ServerProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the log is."""
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def server(folder: Path, backend: str) -> Iterator[ServerProcess]:
    with ServerProcess(folder / "numbers.log", "--backend", backend) as started:
        yield started


def counted_and_lost(server: ServerProcess) -> tuple[int, int]:
    """Return how many numbers were reported, and how many the last line says are lost."""
    lost = re.search(r"(\d+) counted numbers are lost", server.stderr_lines[-1])
    return server.reported()[0], int(lost[1]) if lost else 0


# A log that was removed, and that can't be made anew.


@contextmanager
def no_folder(log: Path) -> Iterator[None]:
    shutil.rmtree(log.parent)
    yield
    log.parent.mkdir()


@contextmanager
def folder_in_its_place(log: Path) -> Iterator[None]:
    log.unlink()
    log.mkdir()
    yield
    log.rmdir()


@contextmanager
def dangling_link_in_its_place(log: Path) -> Iterator[None]:
    log.unlink()
    log.symlink_to(log.parent / "nowhere" / "numbers.log")
    yield
    log.unlink()


@contextmanager
def locked_file_in_its_place(log: Path) -> Iterator[None]:
    other = log.with_name("other")
    with other.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other.rename(log)
        yield


@contextmanager
def folder_not_writable(log: Path) -> Iterator[None]:
    log.unlink()
    if subprocess.run(["chattr", "+i", log.parent], capture_output=True, check=False).returncode:
        pytest.skip("no folder can be made immutable here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", log.parent], check=True)


OBSTACLES = [
    no_folder,
    folder_in_its_place,
    dangling_link_in_its_place,
    locked_file_in_its_place,
    folder_not_writable,
]
obstacles = pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda one: one.__name__)


@obstacles
def test_clients_are_held_back_until_a_removed_log_can_be_made_anew(
    server: ServerProcess, obstacle: Callable[[Path], AbstractContextManager[None]]
) -> None:
    with server.connect() as client:
        client.sendall(lines(range(100)))
        wait_until(lambda: server.logged() == list(range(100)), "the first numbers")
        with obstacle(server.log_path):
            client.sendall(lines(range(100, 400)))
            server.wait_for("holding the clients back, retrying every 1 s")
            client.shutdown(1)
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
        client.settimeout(DEADLINE_S)
        assert client.recv(1) == b""
    assert server.logged() == list(range(100, 400))
    assert server.terminate() == 0
    said = server.stderr
    assert said.count("was removed with all lines in it") == 1
    assert said.count("holding the clients back") == 1
    assert said.count("can be written again: continuing") == 1
    assert "400 numbers written to" in server.stderr_lines[-1]
    assert "100 of them to a removed file" in server.stderr_lines[-1]
    assert "Traceback" not in said


@obstacles
@pytest.mark.parametrize("number", [signal.SIGTERM, None], ids=["SIGTERM", "terminate"])
def test_a_stop_while_no_log_can_be_made_says_how_many_numbers_are_lost(
    server: ServerProcess,
    obstacle: Callable[[Path], AbstractContextManager[None]],
    number: signal.Signals | None,
) -> None:
    with server.connect() as client:
        client.sendall(lines(range(100)))
        wait_until(lambda: server.logged() == list(range(100)), "the first numbers")
        with obstacle(server.log_path):
            client.sendall(lines(range(100, 400)) + (b"" if number else b"terminate\n"))
            server.wait_for("holding the clients back")
            if number:
                server.process.send_signal(number)
            assert server.wait() == 4, server.stderr
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    counted, lost = counted_and_lost(server)
    assert (counted, lost) == (400, 300)
    assert "Traceback" not in server.stderr


def test_a_rotation_of_a_removed_log_that_cannot_be_made_is_said_once(
    server: ServerProcess,
) -> None:
    with server.connect() as client:
        client.sendall(lines(range(100)))
        wait_until(lambda: server.logged() == list(range(100)), "the first numbers")
        with no_folder(server.log_path):
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("was removed")
            client.sendall(lines(range(100, 400)))
            server.wait_for("holding the clients back")
        server.wait_for("continuing")
    assert server.terminate() == 0
    assert server.logged() == list(range(100, 400))


def test_a_log_that_is_renamed_without_a_signal_is_mentioned(server: ServerProcess) -> None:
    old = server.log_path.with_name("old")
    sent = 0
    with server.connect() as client:
        client.sendall(lines([sent]))
        wait_until(lambda: server.logged() == [0], "the first number")
        server.log_path.rename(old)

        def mentioned() -> bool:
            nonlocal sent
            sent += 1
            client.sendall(lines([sent]))
            return "was renamed or replaced" in server.stderr

        wait_until(mentioned, "the advice to send SIGHUP")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("is reopened")
        client.sendall(lines([sent + 1]))
    assert server.terminate() == 0
    assert server.stderr.count("renamed or replaced") == 1
    logged = [int(line) for line in old.read_bytes().split()] + server.logged()
    assert logged == list(range(sent + 2))


@pytest.mark.parametrize("what", ["file", "folder", "replaced"])
def test_a_log_whose_name_leads_elsewhere_at_the_stop_is_mentioned(
    server: ServerProcess, what: str
) -> None:
    log = server.log_path
    old = log.with_name("old")
    server.send(lines(range(100)))
    wait_until(lambda: server.logged() == list(range(100)), "the numbers")
    if what == "folder":
        old = log.parent.rename(log.parent.with_name("moved")) / log.name
    else:
        log.rename(old)
    if what == "replaced":
        log.write_bytes(b"another one")
    assert server.stop() == 0
    said = f"the log {log} was renamed or replaced: the last 100 lines are in the old file"
    assert server.stderr.count(said) == 1
    assert old.read_bytes() == lines(range(100))


# What others append to it.


@pytest.mark.parametrize("foreign", [b"123", b"123\n", b"\0" * 10, b"999999999\nx"])
def test_our_lines_stay_whole_beside_another_process_that_appends(
    server: ServerProcess, foreign: bytes
) -> None:
    with server.connect() as client:
        for number in range(10):
            client.sendall(lines([number]))
            wait_until(
                lambda: server.log_path.read_bytes().endswith(lines([number])),  # noqa: B023
                "the number",
            )
            with server.log_path.open("ab") as other:
                other.write(foreign)
    assert server.terminate() == 0
    data = server.log_path.read_bytes()
    whole = foreign[: foreign.rfind(b"\n") + 1]
    assert data == b"".join(lines([number]) + whole for number in range(10))
    assert server.stderr.count("another process appended") == 1
    done = run_command("check", str(server.log_path))
    assert done.returncode == (1 if whole else 0), done.stdout


def test_what_others_leave_in_an_append_only_log_is_ended(folder: Path, backend: str) -> None:
    log = folder / "numbers.log"
    log.write_bytes(lines([7]))
    with append_only(log):
        code, said = failure(log, "--port", "0")
        assert code == 3
        assert said == [
            f"numbers-uring: error: cannot truncate the log {log}: Operation not permitted"
        ]
        with ServerProcess(log, "--resume", "--backend", backend) as server:
            server.send(lines([7, 8]))
            wait_until(lambda: server.logged() == [7, 8], "the number")
            with log.open("ab") as other:
                other.write(b"12")
            server.send(lines([9]))
            wait_until(lambda: log.read_bytes().endswith(lines([9])), "the number")
            assert server.terminate() == 0
            assert server.reported() == (2, 1, 2)
            assert "ended with a newline" in server.stderr
    assert log.read_bytes() == lines([7, 8]) + b"12\n" + lines([9])


@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("fsync", ["never", "always"])
def test_clients_are_held_back_while_there_is_no_space_to_end_what_others_left(
    serve: Serve, backend: str, tmp_path: Path, error: str, fsync: str
) -> None:
    server = serve("--backend", backend, "--fsync", fsync)
    with server.connect() as client:
        client.sendall(lines([1]))
        wait_until(lambda: server.logged() == [1], "the number")
        with server.log_path.open("ab") as other:
            other.write(b"123")
        # As an append-only file on a full disk.
        faults = ("inject=ftruncate:error=EPERM", f"inject=write:error={error}:when=1..2")
        options = [word for fault in faults for word in ("-e", fault)]
        log = ("-P", str(server.log_path))
        with strace(server, tmp_path / "trace", "-e", "trace=write,ftruncate", *options, *log):
            client.sendall(lines([2]))
            server.wait_for("no space for the log")
            server.wait_for("there is space")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            assert server.log_path.read_bytes() == lines([1]) + b"123\n" + lines([2])
            assert server.stop() == 0
    assert server.stderr.count("another process appended") == 1


@contextmanager
def append_only(log: Path) -> Iterator[None]:
    if subprocess.run(["chattr", "+a", log], capture_output=True, check=False).returncode:
        pytest.skip("no file can be made append-only here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-a", log], check=True)


# Failing calls.


@needs_strace
@pytest.mark.parametrize("times", ["1", "1+"], ids=["once", "for ever"])
@pytest.mark.parametrize("error", ["ESTALE", "EIO"])
def test_a_log_whose_fstat_fails_has_failed(
    server: ServerProcess, tmp_path: Path, error: str, times: str
) -> None:
    with server.connect() as client:
        client.sendall(lines(range(100)))
        wait_until(lambda: server.logged() == list(range(100)), "the first numbers")
        inject = f"inject=fstat,newfstatat:error={error}:when={times}"
        calls = ("-e", "trace=fstat,newfstatat", "-e", inject, "-P", str(server.log_path))
        with strace(server, tmp_path / "trace", *calls):
            client.sendall(lines(range(100, 200)))
            assert server.wait() == 4, server.stderr
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert "cannot check the log" in server.stderr_lines[-1]
    assert os.strerror(getattr(errno, error)) in server.stderr_lines[-1]
    assert counted_and_lost(server) == (200, 100)
    assert server.logged() == list(range(100))
    assert "Traceback" not in server.stderr


@pytest.mark.same_with_reactors
@needs_strace
@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
@pytest.mark.parametrize("rotated", [False, True], ids=["at the end", "at a rotation"])
@pytest.mark.parametrize("error", ["EIO", "EDQUOT"])
def test_a_log_whose_close_fails_has_failed(
    serve: Serve, backend: str, tmp_path: Path, error: str, rotated: bool, fsync: str
) -> None:
    server = serve("--backend", backend, "--fsync", fsync)
    old = server.log_path.with_name("old")
    server.send(lines(range(100)))
    wait_until(lambda: server.logged() == list(range(100)), "the numbers")
    # By the name that the file has when it is closed.
    closed = old if rotated else server.log_path
    inject = ("-e", "trace=close", "-e", f"inject=close:error={error}", "-P", str(closed))
    with strace(server, tmp_path / "trace", *inject):
        if rotated:
            server.log_path.rename(old)
            server.process.send_signal(signal.SIGHUP)
        else:
            server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 4, server.stderr
    assert "cannot close the log" in server.stderr_lines[-1]
    assert counted_and_lost(server) == (100, 0)
    assert closed.read_bytes() == lines(range(100))


# Standard streams.


@pytest.mark.same_with_reactors
@pytest.mark.parametrize("stream", [1, 2], ids=["output", "error"])
@pytest.mark.parametrize("mode", [os.O_TRUNC, os.O_APPEND], ids=["truncated", "appended"])
@pytest.mark.parametrize("name", ["numbers.log", "link", "/dev/stdout"])
def test_a_log_that_a_standard_stream_goes_to_is_refused(
    tmp_path: Path, stream: int, mode: int, name: str
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(lines([1]))
    (tmp_path / "link").symlink_to(log)
    fd = os.open(log, os.O_WRONLY | mode)
    path = "/dev/stderr" if name == "/dev/stdout" and stream == 2 else tmp_path / name
    try:
        done = run_text(
            [
                *(sys.executable, "-m", "numbers_uring", "serve", "--port", "0"),
                *("--log-file", str(path)),
            ],
            stdout=fd if stream == 1 else subprocess.PIPE,
            stderr=fd if stream == 2 else subprocess.PIPE,
            timeout=DEADLINE_S,
        )
    finally:
        os.close(fd)
    assert done.returncode == 3
    before = lines([1]) if mode == os.O_APPEND else b""
    if stream == 1:
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"numbers-uring: error: the log {path} is the file that standard ")
        assert log.read_bytes() == before
    else:
        assert unstamped(log.read_text()).startswith(
            before.decode() + "numbers-uring: error: the log "
        )


@pytest.mark.same_with_reactors
def test_a_rotation_to_the_file_of_standard_output_is_refused(tmp_path: Path, backend: str) -> None:
    out = tmp_path / "out"
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        options = ("--backend", backend)
        with ServerProcess(tmp_path / "numbers.log", *options, stdout=fd) as server:
            server.send(lines([1]))
            wait_until(lambda: server.logged() == [1], "the number")
            old = server.log_path.rename(tmp_path / "old")
            out.rename(server.log_path)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("still writing to the old file")
            server.send(lines([2]))
            assert server.terminate() == 0
    finally:
        os.close(fd)
    assert "standard output" in server.stderr
    assert old.read_bytes() == lines([1, 2])
    assert server.log_path.read_bytes().startswith(b"Received 2 unique numbers")
