"""One session of the sweep: a traced server, a fixed script of clients, and all that came of it."""

import gzip
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from support.processes import unstamped

START_S = 15.0
"""A start that takes longer hangs."""
SAID_S = 4.0
"""When the start line has not come, and the port answers, the line itself was refused."""
WAIT_S = 3.0
"""What a client waits for an answer; longer than a retry of a full disk."""
STOP_S = 10.0
"""A stop that takes longer hangs: it is a second without a tracer on a quiet machine."""
QUIET_S = 0.2
SPIN = 0.5
"""Share of a processor that a server with nothing to do may use at most."""
SEEN = "".join(f"{number:09d}\n" for number in range(910_000_000, 910_000_200))
"""What rotated logs have; the server of the mode `resume` must not write it again."""
EARLIER = "".join(f"{number:09d}\n" for number in range(900_000_000, 900_000_100))
"""What an earlier run has left in the log."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One set of options for the server, and how its session is stopped."""

    backend: str
    reactors: int
    name: str

    @property
    def options(self) -> list[str]:
        return ["--backend", self.backend, "--reactors", str(self.reactors), *MODES[self.name]]

    @property
    def has_metrics(self) -> bool:
        return "--metrics" in MODES[self.name]

    @property
    def has_unix(self) -> bool:
        return self.name == "resume"

    @property
    def resumes(self) -> bool:
        return self.name == "resume"

    @property
    def terminates(self) -> bool:
        """A client stops the server, not a signal."""
        return self.name in {"always", "refuse"}


MODES: dict[str, list[str]] = {
    "plain": [],
    "always": ["--fsync", "always", "--verbose"],
    "metrics": ["--fsync", "never", "--metrics", "127.0.0.1:{metrics}", "--idle-timeout", "0.5"],
    "resume": ["--resume", "--listen", "unix:unix.sock", "--seen", "rotated*"],
    "refuse": ["--when-full", "refuse", "--write-behind", "off", "--log-format", "json"],
}


@dataclass
class Client:
    """What one client sent, and what it saw."""

    name: str
    sent: list[int] = field(default_factory=list)
    """Numbers that had arrived at the server's host in whole lines, before any invalid line."""
    end: str = "none"
    """fin, reset, open (nothing came in time), refused (could not connect)."""
    is_unix: bool = False
    tried: list[int] = field(default_factory=list)
    """The same with those of which it is not known."""


@dataclass
class Outcome:
    """The outcome of a session: everything that the verdict needs."""

    mode: str
    injection: str = ""
    place: str = ""
    for_ever: bool = False
    code: int | None = None
    """Exit code; negative for a signal. None where it had to be killed."""
    hang: str = ""
    started: bool = False
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    earlier: str = EARLIER
    resumes: bool = False
    logs: list[str] = field(default_factory=list)
    """What the log's files have, in the order of time."""
    clients: list[Client] = field(default_factory=list)
    probes: dict[str, str] = field(default_factory=dict)
    spin: float = 0.0
    injected: list[str] = field(default_factory=list)
    """strace's lines of the calls that failed."""
    stack: str = ""
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Launcher:
    """A process of launcher.py; see there."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("launcher.py")),
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        self._process.wait()

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the launcher's next answer. Raises TimeoutError."""
        self.control.settimeout(timeout_s)
        answer = self.control.recv(65536)
        if not answer:
            raise RuntimeError("the launcher is gone")
        answered: dict[str, Any] = json.loads(answer)
        return answered


def _collect(fd: int, into: list[str]) -> threading.Thread:
    def read() -> None:
        with os.fdopen(fd, errors="replace") as stream:
            for line in stream:
                into.append(unstamped(line.rstrip("\n")))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


class Session:
    """Runs one session; `run` returns its Outcome."""

    def __init__(self, launcher: Launcher, mode: Mode, ports: tuple[int, int]) -> None:
        self._launcher = launcher
        self._mode = mode
        self._port, self._metrics_port = ports
        self._next = 0
        self._wait_s = WAIT_S
        self._sockets: dict[str, socket.socket] = {}

    def run(
        self,
        directory: Path,
        injection: str = "",
        *,
        place: str = "",
        record: Path | None = None,
    ) -> Outcome:
        """Play the script with strace's option `injection`; or record all calls to `record`."""
        self._outcome = Outcome(
            str(self._mode), injection, place, injection.endswith("+"), resumes=self._mode.resumes
        )
        self._directory = directory
        self._log = directory / "numbers.log"
        self._log.write_text(EARLIER)
        (directory / "rotated.1").write_text(SEEN[: len(SEEN) // 2])
        (directory / "rotated.2.gz").write_bytes(gzip.compress(SEEN[len(SEEN) // 2 :].encode()))
        trace = record or directory / "trace"
        begin_s = time.monotonic()
        with ExitStack() as stack:
            self._start(stack, injection, trace)
            try:
                self._play()
            finally:
                self._end()
                for client in self._sockets.values():
                    client.close()
        self._gather(trace)
        self._outcome.seconds = round(time.monotonic() - begin_s, 2)
        return self._outcome

    # The server.

    def _start(self, stack: ExitStack, injection: str, trace: Path) -> None:
        arguments = [each.format(metrics=self._metrics_port) for each in self._mode.options]
        (out, out_w), (err, err_w) = os.pipe(), os.pipe()
        request = {
            "directory": str(self._directory),
            "arguments": [
                "serve", "--port", str(self._port), "--max-clients", "2", "--host", "127.0.0.1",
                *arguments,
            ],
        }  # fmt: skip
        socket.send_fds(self._launcher.control, [json.dumps(request).encode()], [out_w, err_w])
        for fd in (out_w, err_w):
            os.close(fd)
        self._readers = [_collect(out, self._outcome.stdout), _collect(err, self._outcome.stderr)]
        self._pid = self._launcher.receive(START_S)["pid"]
        self._wait(self._is_stopped, START_S)
        # With -yy each call would wait for a list of all of this host's connections.
        options = ["-y"]
        if injection:
            call = injection.removeprefix("inject=").partition(":")[0]
            options += ["-e", injection, "-e", f"trace={call}"]
        self._tracer = subprocess.Popen(
            ["strace", "-f", "-s", "64", *options, "-o", str(trace), "-p", str(self._pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._tracer.stderr is not None
        stack.callback(self._tracer.stderr.close)
        said = self._tracer.stderr.readline()
        os.kill(self._pid, signal.SIGCONT)
        if "attached" not in said:
            raise RuntimeError(f"strace cannot attach: {said}")

    def _is_stopped(self) -> bool:
        return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def _said(self, words: str) -> bool:
        return any(words in line for line in list(self._outcome.stderr))

    @property
    def _alive(self) -> bool:
        return not select.select([self._launcher.control], [], [], 0)[0]

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        end_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end_s or not self._alive:
                return condition()
            time.sleep(0.003)
        return True

    def _kill(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self._alive:
                os.kill(self._pid, number)

    # The script.

    def _play(self) -> None:
        self._wait(lambda: self._said("listening on"), SAID_S)
        if not self._said("listening on"):
            self._wait(self._answers, START_S - SAID_S)
            if self._alive and not self._answers():
                self._outcome.hang = "start"
                return
        if not self._alive:
            return
        self._send("first", 40, repeat=10, leave=True)
        self._send("stays", 20, cut=True)
        self._send("invalid", 15, tail=b"12345x\n", leave=False)
        self._await("invalid")
        self._kill(signal.SIGUSR1)
        self._rotate()
        self._send("rotated", 30, leave=True, unix=self._mode.has_unix)
        self._probe()
        self._send("second", 10)
        for index in range(3):
            self._send(f"waits {index}", 10, leave=index == 0)
        self._measure()
        if self._mode.terminates and not self._closed("second"):
            with suppress(OSError):
                self._sockets["second"].sendall(b"terminate\n")
            if not self._wait(lambda: not self._alive, 1.5):
                self._kill(signal.SIGTERM)
        else:
            self._kill(signal.SIGTERM)
        self._wait(lambda: not self._alive, STOP_S)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False

    def _send(
        self,
        name: str,
        count: int,
        *,
        repeat: int = 0,
        cut: bool = False,
        tail: bytes = b"",
        leave: bool | None = None,
        unix: bool = False,
    ) -> None:
        """Connect and send `count` new numbers; with `leave` shut down, and wait for the end."""
        client = Client(name, is_unix=unix)
        self._outcome.clients.append(client)
        numbers = list(range(self._next, self._next + count))
        self._next += count
        data = b"".join(b"%09d\n" % number for number in [*numbers, *numbers[:repeat]])
        if self._mode.resumes:
            # Not among what is sent: none of it may be on file.
            data += (SEEN[:50] + SEEN[-50:]).encode()
        data += tail
        try:
            if unix:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(2)
                connection.connect(str(self._directory / "unix.sock"))
            else:
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=2)
        except OSError:
            client.end = "refused"
            return
        self._sockets[name] = connection
        client.tried = numbers
        try:
            if cut:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(data[:55])
                time.sleep(0.01)
                connection.sendall(data[55:])
            else:
                connection.sendall(data)
            client.sent = numbers
            if leave:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            # The socket tells of its end once, and recv would call it a FIN.
            client.end = "reset"
        if leave and not name.startswith("waits"):
            self._await(name)

    def _client(self, name: str) -> Client:
        return next(each for each in self._outcome.clients if each.name == name)

    def _await(self, name: str, wait_s: float | None = None) -> None:
        """Wait for the server's FIN or reset."""
        connection, client = self._sockets.get(name), self._client(name)
        if connection is None or client.end not in {"none", "open"}:
            return
        connection.settimeout(self._wait_s if wait_s is None else wait_s)
        try:
            client.end = "fin" if connection.recv(1) == b"" else "data"
        except TimeoutError:
            client.end = "open"
            self._wait_s = 0.5
        except OSError:
            client.end = "reset"

    def _closed(self, name: str) -> bool:
        self._await(name, 0.001)
        return self._client(name).end not in {"none", "open"}

    def _rotate(self) -> None:
        with suppress(OSError):
            self._log.rename(self._log.with_suffix(".log.1"))
        self._kill(signal.SIGHUP)
        if not self._wait(self._log.exists, min(self._wait_s, 1)):
            self._wait_s = 0.5

    def _probe(self) -> None:
        if not self._mode.has_metrics:
            return
        for path in ("/healthz", "/metrics", "/"):
            answer = b""
            try:
                with socket.create_connection(("127.0.0.1", self._metrics_port), timeout=2) as http:
                    http.sendall(b"GET %s HTTP/1.0\r\n\r\n" % path.encode())
                    while piece := http.recv(65536):
                        answer += piece
            except OSError as error:
                answer = answer or str(error).encode()
            self._outcome.probes[path] = answer[:15].decode(errors="replace")

    def _measure(self) -> None:
        """Note which share of a processor the server uses while nothing happens."""
        for window_s in (QUIET_S, 3 * QUIET_S):
            before_s, begin_s = self._processor_s(), time.monotonic()
            self._wait(lambda: False, window_s)
            self._outcome.spin = (self._processor_s() - before_s) / (time.monotonic() - begin_s)
            if self._outcome.spin <= SPIN:
                return

    def _processor_s(self) -> float:
        try:
            state = Path(f"/proc/{self._pid}/stat").read_text()
        except OSError:
            return 0.0
        user, system = state.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    # The end.

    def _end(self) -> None:
        if self._alive and not self._outcome.hang:
            self._outcome.hang = "stop"
        if self._alive:
            self._outcome.stack = _stack(self._pid)
            self._kill(signal.SIGTERM)
            if not self._wait(lambda: not self._alive, 3 if self._outcome.hang == "start" else 0.1):
                self._kill(signal.SIGKILL)
        self._outcome.code = self._launcher.receive(START_S)["code"]
        for name in self._sockets:
            self._await(name, 1.0)
        try:
            self._tracer.wait(5)
        except subprocess.TimeoutExpired:
            self._tracer.kill()
            self._tracer.wait()
        for reader in self._readers:
            reader.join(4 * START_S)

    def _gather(self, trace: Path) -> None:
        # The port answers before the start is over, and the start line may have been refused.
        served = any(client.end == "fin" for client in self._outcome.clients)
        ran = self._outcome.code in {0, 4}
        self._outcome.started = served or ran or self._said("listening on")
        for path in (self._log.with_suffix(".log.1"), self._log):
            if path.exists():
                self._outcome.logs.append(path.read_text(errors="replace"))
        if self._outcome.injection:
            with trace.open(errors="replace") as lines:
                said = [line.rstrip() for line in lines if "INJECTED" in line or "DELAYED" in line]
            # Of calls that fail for ever, some say which descriptors are meant.
            self._outcome.injected = said if len(said) <= 400 else [*said[:200], *said[-200:]]


def _stack(pid: int) -> str:
    """Return where a server hangs, as far as can be found out."""
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        return ""
    done = subprocess.run(
        [str(spy), "dump", "--nonblocking", "--pid", str(pid)],
        capture_output=True,
        check=False,
        text=True,
        timeout=20,
    )
    return done.stdout[-1500:]


def run_session(
    launcher: Launcher, mode: Mode, ports: tuple[int, int], injection: str = "", *, place: str = "",
    record: Path | None = None,
) -> Outcome:  # fmt: skip
    """Run a session in a folder of its own, which is removed; `ports`: clients', of metrics."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
        run = Path(directory, "run")
        run.mkdir()
        session = Session(launcher, mode, ports)
        return session.run(run, injection, place=place, record=record)
