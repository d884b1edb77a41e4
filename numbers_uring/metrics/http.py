"""A small HTTP server in its own thread: bounded in clients, bytes, time and processor time.

The libraries weighed are http.server (which prometheus_client.start_http_server uses) and wsgiref:
a thread for each client, with no bound on clients or on what they take of the interpreter, which is
the reactor's. Ours buys that a probe is answered within a second, and the reactor keeps its rate,
whatever others do on this port: idle or slow clients, half requests, floods of connections.

How it does that:
- One thread waits for no client. When all places are taken, a new client takes
  the place of the oldest, which is reset: SO_LINGER {1, 0} is inherited from the listener.
- A request that came with the connection is answered in the pass that accepts it, so the queue of
  connections moves at the speed of accept(2). Equal requests of one pass share one answer.
- After each pass the thread sleeps: HTTP_PAUSE_S, and longer once its Budget is used up.
- Out of descriptors, the oldest client's is taken, or the one that is kept in reserve.
"""

import os
import select
import socket
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from http import HTTPStatus

from numbers_uring.errors import StartError
from numbers_uring.limits import (
    ACCEPT_WARNING_INTERVAL_S,
    HTTP_ANSWERS_PER_PASS_S,
    HTTP_BURST_S,
    HTTP_CLIENT_S,
    HTTP_CLIENTS_MAX,
    HTTP_CLOSE_S,
    HTTP_PAUSE_MAX_S,
    HTTP_PAUSE_S,
    HTTP_RECEIVE_BYTES,
    HTTP_REQUEST_BYTES_MAX,
    HTTP_RETRY_S,
    HTTP_SHARE,
)
from numbers_uring.metrics.acceptor import Acceptor
from numbers_uring.metrics.budget import Budget
from numbers_uring.metrics.messages import (
    Answer,
    Request,
    encode,
    head_of,
    parse_request,
    path_of,
    plain,
)
from numbers_uring.net.listeners import CLOSE_WITH_FIN
from numbers_uring.system.threads import start_thread


class _Client:
    """One connection, of which one request is answered."""

    __slots__ = (
        *("answered", "due_s", "events", "head"),
        *("lingers", "received", "sock", "unsent"),
    )

    def __init__(self, sock: socket.socket, due_s: float) -> None:
        self.sock = sock
        self.due_s = due_s
        self.events = 0
        """What epoll waits for; 0 as long as it does not know the socket."""
        self.received = b""
        self.head: bytes | None = None
        """The request, once it is whole."""
        self.unsent = memoryview(b"")
        self.lingers = False
        """Whether the client may still send when it has its answer: a close would be a reset."""
        self.answered = False


class HttpServer:
    """Answers on the listening `listeners`, which it takes over, until it is closed.

    `answer` is called in the thread, for GET and HEAD alone, and first for the paths that are
    `urgent`. At most `clients_max` clients are there at once. `say` takes a line for the operator
    if the server cannot do its work. Raises StartError without a descriptor or a thread.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        answer: Callable[[Request], Answer],
        *,
        say: Callable[[str], None],
        urgent: Collection[str] = (),
        clients_max: int = HTTP_CLIENTS_MAX,
    ) -> None:
        self._answer = answer
        self._say = say
        self._urgent = urgent
        self._clients_max = clients_max
        self._clients: dict[int, _Client] = {}
        """By descriptor, the oldest first: it is the first whose time is up, too."""
        self._asking: list[_Client] = []
        """Those whose request is whole and not answered yet."""
        self._warned_s = -ACCEPT_WARNING_INTERVAL_S
        self._closing = False
        with ExitStack() as undo:
            for listener in listeners:
                undo.callback(listener.close)
            try:
                self._wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                undo.callback(os.close, self._wakeup_fd)
                self._acceptor = Acceptor(self._drop_oldest, self._warn)
                undo.callback(self._acceptor.close)
                self._epoll = select.epoll()
                undo.callback(self._epoll.close)
                self._listeners = {listener.fileno(): listener for listener in listeners}
                for fd, listener in self._listeners.items():
                    listener.setblocking(False)
                    self._epoll.register(fd, select.EPOLLIN)
                self._epoll.register(self._wakeup_fd, select.EPOLLIN)
            except OSError as error:
                raise StartError(f"cannot serve metrics: {error.strerror}") from error
            self._thread = start_thread(self._run, "metrics")
            self._undo = undo.pop_all()

    def close(self) -> None:
        """End the thread and close everything; clients that are not answered yet are cut off."""
        self._closing = True
        with suppress(OSError):
            os.eventfd_write(self._wakeup_fd, 1)
        self._thread.join(HTTP_CLOSE_S)
        if self._thread.is_alive():
            # It is in a system call that Python repeats without end; the process is about to exit.
            return
        for client in list(self._clients.values()):
            self._drop(client)
        self._undo.close()

    # The thread.

    def _run(self) -> None:
        try:
            budget = Budget(HTTP_SHARE, HTTP_BURST_S)
            while not self._closing:
                try:
                    self._pass()
                except Exception as error:
                    self._warn("cannot wait for clients", error)
                    time.sleep(HTTP_RETRY_S)
                else:
                    pause_s = HTTP_RETRY_S if self._acceptor.failed else HTTP_PAUSE_S
                    time.sleep(min(max(budget.pause_s(), pause_s), HTTP_PAUSE_MAX_S))
        finally:
            if not self._closing:
                # A probe is refused then, and does not wait for an answer that never comes.
                for listener in self._listeners.values():
                    listener.close()
                for client in list(self._clients.values()):
                    self._drop(client)
                with suppress(Exception):
                    self._say("metrics and health are no longer served: their thread has ended")

    def _warn(self, what: str, error: Exception) -> None:
        now_s = time.monotonic()
        if now_s - self._warned_s >= ACCEPT_WARNING_INTERVAL_S:
            self._warned_s = now_s
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            with suppress(Exception):
                self._say(f"the metrics port {what}: {reason}; retrying")

    def _pass(self) -> None:
        """Wait until there is something to do, and do it once for each client that is ready."""
        ready = []
        self._acceptor.failed = False
        for fd, _ in self._epoll.poll(self._timeout_s()):
            if (client := self._clients.get(fd)) is not None:
                self._attend(client)
            elif fd in self._listeners:
                ready.append(self._listeners[fd])
        if self._closing:
            return
        # After the clients: descriptors that are used again meet no event of the one before.
        for listener in ready:
            for sock in self._acceptor.accept(listener):
                self._add(sock)
        self._answer_asking()
        now_s = time.monotonic()
        while self._clients and self._oldest().due_s <= now_s:
            self._drop(self._oldest())

    def _timeout_s(self) -> float | None:
        if self._asking:
            return 0
        return max(self._oldest().due_s - time.monotonic(), 0) if self._clients else None

    def _oldest(self) -> _Client:
        return next(iter(self._clients.values()))

    # Clients.

    def _add(self, sock: socket.socket) -> None:
        if len(self._clients) >= self._clients_max:
            self._drop_oldest()
        client = _Client(sock, time.monotonic() + HTTP_CLIENT_S)
        self._clients[sock.fileno()] = client
        self._attend(client)

    def _drop_oldest(self) -> bool:
        if self._clients:
            self._drop(self._oldest())
            return True
        return False

    def _drop(self, client: _Client) -> None:
        # First, so that it is removed even if a later step fails; epoll drops closed descriptors.
        self._clients.pop(client.sock.fileno(), None)
        with suppress(OSError):
            if client.answered:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_WITH_FIN)
        with suppress(OSError):
            client.sock.close()
        self._acceptor.restore_reserve()

    def _attend(self, client: _Client) -> None:
        """Receive, send or close, as far as that is possible at once."""
        try:
            with suppress(BlockingIOError):
                if client.unsent:
                    self._send(client)
                elif client.answered:
                    self._discard(client)
                elif client.head is None:
                    self._receive(client)
            if client.sock.fileno() in self._clients:
                self._await(client)
        except OSError:
            self._drop(client)
        except Exception as error:
            self._drop(client)
            self._warn("has lost a client", error)

    def _await(self, client: _Client) -> None:
        """Make epoll wait for what comes next; for nothing where that is the answer."""
        events = select.EPOLLOUT if client.unsent else select.EPOLLIN
        if client.head is not None and not client.unsent and not client.answered:
            return
        if events != client.events:
            if client.events:
                self._epoll.modify(client.sock, events)
            else:
                self._epoll.register(client.sock, events)
            client.events = events

    def _receive(self, client: _Client) -> None:
        data = client.sock.recv(HTTP_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        if not data:
            self._drop(client)
            return
        searched_bytes = len(client.received)
        client.received += data
        client.head = head_of(client.received, searched_bytes)
        if client.head is not None:
            self._asking.append(client)
        elif len(client.received) > HTTP_REQUEST_BYTES_MAX:
            client.lingers = True
            self._begin_answer(client, encode(plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)))

    def _send(self, client: _Client) -> None:
        size = client.sock.send(client.unsent, socket.MSG_DONTWAIT)
        client.unsent = client.unsent[size:]
        if not client.unsent:
            client.answered = True
            if client.lingers:
                client.sock.shutdown(socket.SHUT_WR)
            else:
                self._drop(client)

    def _discard(self, client: _Client) -> None:
        if not client.sock.recv(HTTP_RECEIVE_BYTES, socket.MSG_DONTWAIT):
            self._drop(client)

    # Answers.

    def _answer_asking(self) -> None:
        """Answer those who ask; what would take too long is left for the next pass."""
        asking, self._asking = self._asking, []
        asking.sort(key=self._can_wait)
        answers: dict[bytes, tuple[bytes, bool]] = {}
        end_s = time.thread_time() + HTTP_ANSWERS_PER_PASS_S
        for client in asking:
            if client.head is None or self._clients.get(client.sock.fileno()) is not client:
                continue
            if client.head not in answers:
                if answers and time.thread_time() > end_s:
                    self._asking.append(client)
                    continue
                request = parse_request(client.head)
                lingers = request is None or request.may_have_body
                answers[client.head] = self._respond(request), lingers
            response, client.lingers = answers[client.head]
            self._begin_answer(client, response)

    def _can_wait(self, client: _Client) -> bool:
        return client.head is not None and path_of(client.head) not in self._urgent

    def _begin_answer(self, client: _Client, response: bytes) -> None:
        client.unsent = memoryview(response)
        self._attend(client)

    def _respond(self, request: Request | None) -> bytes:
        if request is None:
            return encode(plain(HTTPStatus.BAD_REQUEST))
        if request.method not in {"GET", "HEAD"}:
            allow = [("Allow", "GET, HEAD")]
            return encode(plain(HTTPStatus.METHOD_NOT_ALLOWED, headers=allow))
        try:
            answer = self._answer(request)
        except Exception as error:
            answer = plain(HTTPStatus.INTERNAL_SERVER_ERROR, repr(error))
        return encode(answer, with_body=request.method != "HEAD")
