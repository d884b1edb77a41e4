"""A small HTTP server in a thread of its own: bounded in clients, in bytes and in time.

One thread serves all clients, none of which it waits for: one that is slow or stuck costs a
descriptor until its time is up, or until it is the oldest and another one comes. So no number of
them keeps the others from being answered, or the server from stopping.
"""

import io
import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, parse_headers
from typing import NamedTuple
from urllib.parse import urlsplit

from numbers_uring.limits import (
    HTTP_CLIENT_S,
    HTTP_CLIENTS_MAX,
    HTTP_PAUSE_S,
    HTTP_REQUEST_BYTES_MAX,
)
from numbers_uring.system.threads import start_thread

_HEAD_END = b"\r\n\r\n"
_RECEIVE_BYTES = 4096


class Request(NamedTuple):
    """What a client asked for; the names of the headers are found in any case."""

    method: str
    path: str
    query: str
    headers: HTTPMessage


class Answer(NamedTuple):
    """What it gets; Content-Length and Connection are added."""

    status: HTTPStatus
    body: bytes
    headers: Sequence[tuple[str, str]] = (("Content-Type", "text/plain; charset=utf-8"),)


class _Client:
    """One connection, of which one request is answered."""

    def __init__(self, sock: socket.socket, due_s: float) -> None:
        self.sock = sock
        self.due_s = due_s
        self.request = b""
        self.unsent = memoryview(b"")


class HttpServer:
    """Answers on the listening `listeners`, which it takes over, until it is closed.

    `answer` is called in the thread, for GET and HEAD alone. Raises StartError where no thread can
    be had.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], answer: Callable[[Request], Answer]
    ) -> None:
        self._listeners = listeners
        self._answer = answer
        self._clients: dict[int, _Client] = {}
        """By descriptor, the oldest first: it is the first whose time is up, too."""
        self._closing = False
        self._wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup_fd, selectors.EVENT_READ)
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        self._thread = start_thread(self._run, "metrics")

    def close(self) -> None:
        """End the thread and close everything; whoever is being answered is cut off."""
        self._closing = True
        os.eventfd_write(self._wakeup_fd, 1)
        self._thread.join()
        for sock in (*self._listeners, *(client.sock for client in self._clients.values())):
            sock.close()
        self._selector.close()
        os.close(self._wakeup_fd)

    # The thread.

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._patience_s()):
                if self._closing:
                    return
                client = self._clients.get(key.fd)
                if client is not None and client is key.data:
                    self._proceed(client)
                elif key.fileobj in self._listeners:
                    self._accept(key.fileobj)  # type: ignore[arg-type]
                # The interpreter is the reactor's: asked without end, this thread mostly sleeps.
                time.sleep(HTTP_PAUSE_S)
            self._drop_overdue()

    def _patience_s(self) -> float | None:
        for client in self._clients.values():
            return max(client.due_s - time.monotonic(), 0)
        return None

    def _drop_overdue(self) -> None:
        now_s = time.monotonic()
        for client in list(self._clients.values()):
            if client.due_s > now_s:
                return
            self._drop(client)

    # Clients.

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            # The client left already, or there is no descriptor for it: tried again with the next.
            return
        if len(self._clients) == HTTP_CLIENTS_MAX:
            self._drop(next(iter(self._clients.values())))
        sock.setblocking(False)
        client = _Client(sock, time.monotonic() + HTTP_CLIENT_S)
        self._clients[sock.fileno()] = client
        self._selector.register(sock, selectors.EVENT_READ, client)

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        client.sock.close()

    def _proceed(self, client: _Client) -> None:
        try:
            if not client.unsent:
                self._receive(client)
            else:
                self._send(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    def _receive(self, client: _Client) -> None:
        data = client.sock.recv(_RECEIVE_BYTES)
        if not data:
            self._drop(client)
            return
        client.request += data
        head, end, _ = client.request.partition(_HEAD_END)
        if end:
            client.unsent = memoryview(self._respond(head + end))
        elif len(client.request) > HTTP_REQUEST_BYTES_MAX:
            client.unsent = memoryview(
                _response(_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), with_body=True)
            )
        else:
            return
        self._selector.modify(client.sock, selectors.EVENT_WRITE, client)
        self._send(client)

    def _send(self, client: _Client) -> None:
        size = client.sock.send(client.unsent)
        client.unsent = client.unsent[size:]
        if not client.unsent:
            self._drop(client)

    def _respond(self, head: bytes) -> bytes:
        request = parse_request(head)
        if request is None:
            return _response(_plain(HTTPStatus.BAD_REQUEST), with_body=True)
        if request.method not in {"GET", "HEAD"}:
            answer = _plain(HTTPStatus.METHOD_NOT_ALLOWED)
            answer = answer._replace(headers=(*answer.headers, ("Allow", "GET, HEAD")))
        else:
            try:
                answer = self._answer(request)
            except Exception as error:
                answer = _plain(HTTPStatus.INTERNAL_SERVER_ERROR, repr(error))
        return _response(answer, with_body=request.method != "HEAD")


def parse_request(head: bytes) -> Request | None:
    """Return the request that `head`, up to its empty line, makes; None where it makes none."""
    line, _, rest = head.partition(b"\r\n")
    try:
        method, target, version = line.decode("ascii").split(" ")
        url = urlsplit(target)
        headers = parse_headers(io.BytesIO(rest))
    except (ValueError, HTTPException):
        return None
    if not version.startswith("HTTP/1."):
        return None
    return Request(method, url.path, url.query, headers)


def _plain(status: HTTPStatus, detail: str | None = None) -> Answer:
    return Answer(status, f"{status} {detail or status.phrase}\n".encode())


def not_found() -> Answer:
    """Return the answer for a path where nothing is."""
    return _plain(HTTPStatus.NOT_FOUND)


def _response(answer: Answer, *, with_body: bool) -> bytes:
    headers = (
        *answer.headers,
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
    )
    lines = [f"HTTP/1.1 {answer.status} {answer.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (answer.body if with_body else b"")
