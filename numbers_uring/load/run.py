"""Sends numbers to a server from many clients and measures how fast it takes them in."""

import errno
import math
import mmap
import os
import resource
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numbers_uring._native import ffi, lib
from numbers_uring.addresses import host_bytes
from numbers_uring.errors import StartError
from numbers_uring.limits import (
    LINE_BYTES,
    LOAD_ARENA_BYTES,
    LOAD_CHUNK_BYTES,
    LOAD_CONNECT_WAIT_S,
    LOAD_PREPARE_STEP_NUMBERS,
    LOAD_SLICE_S,
)
from numbers_uring.load.latency import bucket_latency, exact_latency
from numbers_uring.load.lines import make_sequence
from numbers_uring.load.model import LoadParameters, LoadResult

TERMINATE_LINE = b"terminate\n"

Progress = Callable[[str, int, int], None]
"""Told the stage (`prepare` or `send`), numbers so far and numbers in all."""


def run_load(
    parameters: LoadParameters, progress: Progress | None = None, *, slice_s: float = LOAD_SLICE_S
) -> LoadResult:
    """Run one load to its end, its time limit or KeyboardInterrupt, and return what became of it.

    `progress` is told at the begin of each stage and then every `slice_s` while numbers are sent.

    Two times are measured. `drained_ms`, one sample a client: from the begin of its last send call
    until the server's close was seen, which follows the client's half-close and the server's
    reading of every byte before it. It says how far a server is behind at the end, nothing about
    single lines on the way. `acknowledged_ms`, one sample a millisecond at most: from the begin of
    a send call until its last byte was confirmed by the server's host, seen up to about 0.2 ms
    late, or by 1 % of the time where many samples are under way. It contains the wait in this
    host's send queue, not the wait in the server's receive queue: the server may not have read the
    line yet. What is not confirmed when the run is cut short is not counted.

    The caller sees to it that the process may have a descriptor open for each client.

    Raises StartError where the server can't be reached or there is not enough memory for the lines.
    KeyboardInterrupt before the first send is passed on.
    """
    return _Run(parameters, progress or (lambda _stage, _numbers, _all: None), slice_s).run()


class _Run:
    """A load under way. Whatever C points to is held by an attribute."""

    def __init__(self, parameters: LoadParameters, progress: Progress, slice_s: float) -> None:
        self._parameters = parameters
        self._progress = progress
        self._slice_s = slice_s
        self._sequence = ffi.NULL if parameters.files else make_sequence(parameters)
        self._files: Any = ffi.new("struct nu_line_file[]", len(parameters.files))
        self._clients: Any = ffi.new("struct nu_client[]", parameters.clients)
        self._queue: Any = ffi.new("uint32_t[]", parameters.clients)
        self._load: Any = ffi.new("struct nu_load *")
        self._errors: dict[str, int] = {}
        self._prepare_seconds = 0.0
        self._deadline_ns: float = math.inf
        self._address: tuple[socket.AddressFamily, Any] | None = None
        self._interrupted = self._timed_out = self._terminated = False

    def run(self) -> LoadResult:
        self._make_memory()
        for index in range(self._parameters.clients):
            self._clients[index].fd = -1
        epoll = select.epoll()
        try:
            self._fill_load(epoll.fileno())
            if self._parameters.timeout_s:
                self._deadline_ns = time.monotonic_ns() + self._parameters.timeout_s * 1e9
            self._connect_all()
            return self._measure()
        finally:
            epoll.close()
            for index in range(self._parameters.clients):
                if self._clients[index].fd >= 0:
                    os.close(self._clients[index].fd)

    def _make_memory(self) -> None:
        parameters = self._parameters
        if parameters.prepared:
            self._lines = _memory(parameters.numbers * LINE_BYTES)
            self._prepare()
            self._load.prepared = self._lines
            return
        share_bytes = min(LOAD_CHUNK_BYTES, LOAD_ARENA_BYTES // parameters.clients)
        sends = max(1, share_bytes // parameters.send_bytes)
        # A line may be cut at both ends, and is made whole.
        lines = (sends * parameters.send_bytes + 2 * (LINE_BYTES - 1)) // LINE_BYTES + 1
        chunk_bytes = lines * LINE_BYTES
        count = min(parameters.clients, max(1, LOAD_ARENA_BYTES // chunk_bytes))
        self._arena = _memory(count * chunk_bytes)
        self._chunks = ffi.new("struct nu_chunk[]", [{"client": 2**32 - 1}] * count)
        self._load.arena = self._arena
        self._load.chunks = self._chunks
        self._load.chunk_count = count
        self._load.chunk_bytes = chunk_bytes

    def _prepare(self) -> None:
        numbers = self._parameters.numbers
        begin_s = time.monotonic()
        self._progress("prepare", 0, numbers)
        for first in range(0, numbers, LOAD_PREPARE_STEP_NUMBERS):
            count = min(LOAD_PREPARE_STEP_NUMBERS, numbers - first)
            lib.nu_lines(self._sequence, first, count, self._lines + first * LINE_BYTES)
            self._progress("prepare", first + count, numbers)
        self._prepare_seconds = time.monotonic() - begin_s

    def _fill_load(self, epoll_fd: int) -> None:
        parameters, load = self._parameters, self._load
        load.epoll_fd = epoll_fd
        load.sequence = self._sequence
        load.files = self._files
        load.file_count = len(parameters.files)
        first = 0
        for index, file in enumerate(parameters.files):
            self._files[index] = {"fd": file.fd, "first": first, "count": file.numbers}
            first += file.numbers
        load.clients = self._clients
        load.client_count = parameters.clients
        load.queue = self._queue
        load.send_bytes = parameters.send_bytes
        load.bytes_per_s = parameters.rate * LINE_BYTES
        load.block_lines = parameters.block_numbers
        load.lines = parameters.numbers
        if parameters.duration_s:
            return
        for index in range(parameters.clients):
            first = parameters.numbers * index // parameters.clients
            end = parameters.numbers * (index + 1) // parameters.clients
            self._clients[index].first = first
            self._clients[index].bytes = (end - first) * LINE_BYTES

    def _connect_all(self) -> None:
        """The first client finds the address; the others are not waited for one by one."""
        first = self._connect_first()
        self._adopt(0, first, lib.NU_CLIENT_SENDING)
        for index in range(1, self._parameters.clients):
            self._connect(index)
        _demand(lib.nu_load_open(self._load))
        until_ns = min(time.monotonic_ns() + LOAD_CONNECT_WAIT_S * 1e9, self._deadline_ns)
        while self._load.connecting and time.monotonic_ns() < until_ns:
            _demand(lib.nu_load_connect(self._load, self._slice_end_ns(until_ns)))

    def _connect_first(self) -> socket.socket:
        host, port = self._parameters.host, self._parameters.port
        problem = "no address"
        for family, address in _addresses(host, port):
            try:
                connection = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                problem = _reason(error)
                continue
            try:
                connection.settimeout(self._left_s())
                connection.connect(address)
            except OSError as error:
                connection.close()
                problem = _reason(error)
                continue
            except BaseException:
                connection.close()
                raise
            self._address = (family, address)
            return connection
        raise StartError(f"cannot connect to {host} port {port}: {problem}")

    def _connect(self, index: int) -> None:
        assert self._address is not None
        family, address = self._address
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise StartError(f"cannot create client {index + 1}: {error.strerror}") from error
        connection.setblocking(False)
        code = connection.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            self._adopt(index, connection, lib.NU_CLIENT_CONNECTING)
            return
        connection.close()
        self._clients[index].state = lib.NU_CLIENT_FAILED
        self._clients[index].error = code

    def _adopt(self, index: int, connection: socket.socket, state: int) -> None:
        """Give the connection to C, which closes it when it is done."""
        connection.setblocking(False)
        # Small sends are packets of their own, and paced ones leave at once.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[index].state = state
        self._clients[index].fd = connection.detach()

    def _measure(self) -> LoadResult:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        begin_ns = time.monotonic_ns()
        try:
            self._send()
            end_ns = self._load.last_close_ns
        except KeyboardInterrupt:
            self._interrupted = True
        if self._interrupted or self._timed_out or not end_ns:
            end_ns = time.monotonic_ns()
        used = resource.getrusage(resource.RUSAGE_SELF)
        if self._parameters.terminate and not (self._interrupted or self._timed_out):
            self._say_terminate()
        return self._result(
            seconds=max(end_ns - begin_ns, 1) / 1e9,
            cpu_user_seconds=used.ru_utime - usage.ru_utime,
            cpu_system_seconds=used.ru_stime - usage.ru_stime,
        )

    def _send(self) -> None:
        load, numbers = self._load, self._parameters.numbers
        if self._parameters.duration_s:
            load.stop_ns = time.monotonic_ns() + int(self._parameters.duration_s * 1e9)
        self._progress("send", 0, numbers)
        while load.open:
            if time.monotonic_ns() >= self._deadline_ns:
                self._timed_out = True
                self._count_error(f"not done after {self._parameters.timeout_s:g} s", load.open)
                return
            until_ns = self._deadline_ns
            if load.stop_ns > time.monotonic_ns():
                until_ns = min(until_ns, load.stop_ns)
            _demand(lib.nu_load_run(load, self._slice_end_ns(until_ns)))
            self._progress("send", load.bytes_sent // LINE_BYTES, numbers)

    def _say_terminate(self) -> None:
        """A clean close is the answer; any other is an error."""
        assert self._address is not None
        family, address = self._address
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._left_s())
                connection.connect(address)
                connection.sendall(TERMINATE_LINE)
                answer = connection.recv(1)
            self._terminated = not answer
            if answer:
                self._count_error("terminate was answered")
        except OSError as error:
            self._count_error(f"terminate failed: {_reason(error)}")
        except KeyboardInterrupt:
            self._interrupted = True

    def _result(
        self, *, seconds: float, cpu_user_seconds: float, cpu_system_seconds: float
    ) -> LoadResult:
        load, parameters = self._load, self._parameters
        taken = load.bytes_taken // LINE_BYTES
        clients = [self._clients[index] for index in range(parameters.clients)]
        drained_ns = [
            client.drained_ns - client.last_send_ns
            for client in clients
            if client.state == lib.NU_CLIENT_DRAINED and client.bytes
        ]
        lost = 0
        for client in clients:
            if client.state == lib.NU_CLIENT_FAILED:
                self._count_error(_failure(client.error))
                reached_bytes = client.sent - client.unacknowledged
                lost += self._asked_bytes(client) // LINE_BYTES - reached_bytes // LINE_BYTES
            elif client.state != lib.NU_CLIENT_DRAINED:
                lost += self._asked_bytes(client) // LINE_BYTES - client.sent // LINE_BYTES
        return LoadResult(
            parameters=parameters,
            prepared=parameters.prepared,
            prepare_seconds=self._prepare_seconds,
            seconds=seconds,
            numbers_sent=sum(client.sent // LINE_BYTES for client in clients),
            numbers_taken=taken,
            numbers_not_taken_min=lost,
            numbers_per_s=taken / seconds,
            bytes_per_s=taken * LINE_BYTES / seconds,
            cpu_user_seconds=cpu_user_seconds,
            cpu_system_seconds=cpu_system_seconds,
            drained_ms=exact_latency(drained_ns),
            acknowledged_ms=bucket_latency(list(load.acknowledged), load.acknowledged_max_ns),
            clients_drained=load.drained,
            clients_failed=load.failed,
            clients_unfinished=load.open,
            errors=self._errors,
            terminated=self._terminated,
            timed_out=self._timed_out,
            interrupted=self._interrupted,
        )

    def _asked_bytes(self, client: Any) -> int:
        """Return how much the client was to send; with a duration, what it did send."""
        return int(client.sent if self._parameters.duration_s else client.bytes)

    def _count_error(self, text: str, clients: int = 1) -> None:
        self._errors[text] = self._errors.get(text, 0) + clients

    def _slice_end_ns(self, until_ns: float) -> int:
        return int(min(time.monotonic_ns() + self._slice_s * 1e9, until_ns))

    def _left_s(self) -> float | None:
        """What is left of the time limit, as settimeout() takes it."""
        if self._deadline_ns == math.inf:
            return None
        return max((self._deadline_ns - time.monotonic_ns()) / 1e9, 0.001)


def _memory(size_bytes: int) -> Any:
    """Return a char pointer to fresh memory, in huge pages if there are any. Raises StartError."""
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise StartError(f"not enough memory for {size_bytes} bytes of lines") from error
    with suppress(OSError):  # a kernel without them is only slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    return ffi.from_buffer("uint8_t[]", memory, require_writable=True)


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(
            host_bytes(host), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
    except (OSError, UnicodeError, LookupError) as error:
        # For an international name Python needs the codec idna, which may be lacking.
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot connect to host {host!r}: {reason}") from error
    return [(family, address) for family, _, _, _, address in found]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _failure(code: int) -> str:
    if code == 0:
        return "closed by the server before it had read everything"
    if code == errno.EPROTO:
        return "the server answered, which this protocol's servers do not"
    if code == -errno.ENODATA:
        return "a file was truncated while it was sent"
    if code < 0:
        return f"a file cannot be read: {os.strerror(-code)}"
    return os.strerror(code)


def _demand(result: int) -> None:
    if result < 0:
        raise StartError(f"cannot watch the clients: {os.strerror(-result)}")
