"""Everything at once, for as long as asked: floods, rotation, a full disk, failing calls, kills.

Each round is a server of a random kind on a file system of its own, with clients that come, send
numbers that were not sent before, and wait for the FIN. Meanwhile the log is rotated, the disk is
filled and emptied, calls fail, the process stands still; in the end it is stopped, or killed. After
each round the log, the reports and what the clients saw must agree. Needs root, for the file
system; a seed, which is printed, makes the same rounds.
"""

import argparse
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.processes import ServerProcess
from support.waiting import DEADLINE_S
from sweep.session import Client, Outcome
from sweep.verdict import Violation, judge

_CLIENTS = 6
_DISK = "32m"
_STOP_S = 15.0
_CALLS = {
    "accept4": "EMFILE ECONNABORTED ENOBUFS",
    "close": "EIO",
    "epoll_ctl": "ENOMEM",
    "epoll_wait": "EINTR",
    "fdatasync": "EIO EINTR",
    "fsync": "EINVAL",
    "ftruncate": "EIO",
    "io_uring_enter": "EAGAIN EBUSY EINTR",
    "newfstatat": "ESTALE",
    "openat": "EMFILE EACCES",
    "write": "ENOSPC EINTR EIO EFBIG",
}
_DELAYS_US = ["1000", "4000", "20000"]
"""Of a call that takes long: one that is no failure, one that is just not slow, one that is."""
_SHARED_FIRST = 9 * 10**8
_SHARED_PER_S = 20
_SHARED = 0.3
"""The share of clients whose numbers others send at the same time."""


@dataclass
class Round:
    """One server, and what happens to it."""

    seed: int
    options: list[str]
    seconds: float
    end: str
    """SIGTERM, SIGINT, terminate or SIGKILL."""
    clients: list[Client] = field(default_factory=list)


def make_round(seed: int) -> Round:
    """Return the round of this seed."""
    chance = random.Random(seed)
    options = ["--backend", chance.choice(["epoll", "uring"])]
    options += ["--reactors", chance.choice(["1", "2", "4"])]
    options += ["--fsync", chance.choice(["never", "interval", "always"])]
    options += ["--write-behind", chance.choice(["on", "off"])]
    options += ["--max-clients", chance.choice(["2", "5", "50"])]
    options += ["--report-interval", chance.choice(["10", "0.1"])]
    options += chance.choice([[], ["--verbose"], ["--idle-timeout", "0.5"]])
    end = chance.choice(["SIGTERM", "SIGTERM", "SIGINT", "terminate", "SIGKILL"])
    return Round(seed, options, chance.uniform(0.5, 6), end)


def _shared(count: int) -> list[int]:
    """Return numbers that other clients send now, too: each is new in one reactor's batch."""
    first = _SHARED_FIRST + int(time.monotonic() * _SHARED_PER_S) % 10_000 * 1000
    return list(range(first, first + count))


class _Clients:
    """Threads that send numbers of their own until they are told to stop."""

    def __init__(self, server: ServerProcess, chance: random.Random) -> None:
        self._server = server
        self._stopping = threading.Event()
        self.sent: list[Client] = []
        self._threads = [
            threading.Thread(target=self._work, args=(index, random.Random(chance.random())))
            for index in range(_CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, index: int, chance: random.Random) -> None:
        first = index * 10**8
        while not self._stopping.is_set() and self._server.process.poll() is None:
            count = chance.choice([1, 10, 500, 20_000])
            if chance.random() < _SHARED:
                client = Client(f"{index}", _shared(min(count, 500)))
            else:
                client = Client(f"{index}", list(range(first, first + count)))
                first += count
            self.sent.append(client)
            self._session(client, chance)
            time.sleep(chance.uniform(0, 0.1))

    def _session(self, client: Client, chance: random.Random) -> None:
        data = b"".join(b"%09d\n" % number for number in client.sent)
        cut = chance.randrange(len(data))
        try:
            with socket.create_connection(
                (self._server.host, self._server.port), timeout=DEADLINE_S
            ) as connection:
                connection.sendall(data[:cut])
                connection.sendall(data[cut:])
                connection.shutdown(socket.SHUT_WR)
                client.end = "fin" if connection.recv(1) == b"" else "data"
        except TimeoutError:
            client.end = "open"
        except OSError:
            client.end = "reset"
            time.sleep(0.01)

    def stop(self) -> None:
        """Wait for all of them; the server is gone, so each sees an end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_S)
            assert not thread.is_alive(), "a client neither sees a FIN nor a reset"


class _Faults:
    """What happens to the server: one thing after another, at random."""

    def __init__(
        self, server: ServerProcess, disk: Path, archive: Path, chance: random.Random
    ) -> None:
        self._server = server
        self._disk = disk
        self._archive = archive
        self._chance = chance
        self._rotations = 0
        self.injected = ""

    def go_on(self, end_s: float) -> None:
        """Inject faults until that time; leaves the disk with room."""
        kinds = [
            *(self._rotate, self._fill, self._stand_still, self._report),
            *(self._fail, self._delay, self._limit),
        ]
        while time.monotonic() < end_s and self._server.process.poll() is None:
            self._chance.choice(kinds)(end_s)
            time.sleep(self._chance.uniform(0, 0.2))
        with suppress(OSError):
            self._filler.unlink()

    @property
    def _filler(self) -> Path:
        return self._disk / "filler"

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._server.process.send_signal(number)

    def _rotate(self, _: float) -> None:
        log = self._server.log_path
        self._rotations += 1
        with suppress(OSError):
            log.rename(log.with_name(f"numbers.log.{self._rotations:04}"))
        self._signal(signal.SIGHUP)
        self._move_old_logs()

    def _move_old_logs(self) -> None:
        """Make space: move the rotated logs that the server has closed."""
        fds = Path(f"/proc/{self._server.process.pid}/fd")
        with suppress(OSError):
            in_use = {fd.stat().st_ino for fd in fds.iterdir() if fd.exists()}
            for path in self._disk.glob("numbers.log.*"):
                if path.stat().st_ino not in in_use:
                    shutil.move(path, self._archive / path.name)

    def _report(self, _: float) -> None:
        self._signal(signal.SIGUSR1)

    def _fill(self, end_s: float) -> None:
        with suppress(OSError), self._filler.open("wb") as file:
            while True:
                file.write(bytes(65536))
                file.flush()
        time.sleep(min(self._chance.uniform(0, 1.5), max(end_s - time.monotonic(), 0)))
        with suppress(OSError):
            self._filler.unlink()

    def _stand_still(self, _: float) -> None:
        self._signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(0, 0.3))
        self._signal(signal.SIGCONT)

    def _fail(self, end_s: float) -> None:
        call = self._chance.choice(sorted(_CALLS))
        error = self._chance.choice(_CALLS[call].split())
        self._inject(call, f"error={error}", self._chance.choice(["1", "3", "1+7"]), end_s)

    def _delay(self, end_s: float) -> None:
        call = self._chance.choice(["write", "write", "newfstatat", "fdatasync"])
        delay = self._chance.choice(["delay_enter", "delay_exit"])
        action = f"{delay}={self._chance.choice(_DELAYS_US)}"
        self._inject(call, action, self._chance.choice(["1+", "1+3"]), end_s)

    def _limit(self, _: float) -> None:
        """Let writes end short of their line, and the next one fail."""
        pid, free = self._server.process.pid, resource.RLIM_INFINITY
        with suppress(OSError):
            end_bytes = self._server.log_path.stat().st_size
            size = end_bytes + self._chance.choice([1, 10, 105, 200_001])
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, free))
            time.sleep(self._chance.uniform(0, 0.01))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (free, free))

    def _inject(self, call: str, action: str, when: str, end_s: float) -> None:
        self.injected += f" {call}:{action}:{when}"
        tracer = subprocess.Popen(
            [
                *("strace", "-f", "-o", "/dev/null", "-e", f"trace={call}"),
                *("-e", f"inject={call}:{action}:when={when}"),
                *("-p", str(self._server.process.pid)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(min(self._chance.uniform(0, 1), max(end_s - time.monotonic(), 0)))
        tracer.terminate()
        tracer.wait(DEADLINE_S)


@contextmanager
def _disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        options = ["-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", directory]
        subprocess.run(["mount", *options], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


def run_round(asked: Round) -> tuple[Outcome, list[Violation]]:
    """Run a round; return what came of it and what was wrong with it."""
    chance = random.Random(asked.seed + 1)
    outcome = Outcome(f"{asked.options} {asked.end}", earlier="")
    with ExitStack() as stack:
        disk = stack.enter_context(_disk())
        server = stack.enter_context(ServerProcess(disk / "numbers.log", *asked.options))
        outcome.started = True
        clients = _Clients(server, chance)
        archive = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        faults = _Faults(server, disk, archive, chance)
        faults.go_on(time.monotonic() + asked.seconds)
        _end(server, asked.end)
        try:
            outcome.code = server.process.wait(_STOP_S)
            server.wait()
        except subprocess.TimeoutExpired:
            outcome.hang = "stop"
            server.kill()
        clients.stop()
        outcome.injection = faults.injected
        outcome.clients = clients.sent
        outcome.stdout, outcome.stderr = server.reports, server.stderr_lines
        rotated = [*archive.iterdir(), *disk.glob("numbers.log.*")]
        logs = [*sorted(rotated, key=lambda path: path.name), disk / "numbers.log"]
        outcome.logs = [path.read_text(errors="replace") for path in logs if path.exists()]
    return outcome, _judge(asked, outcome)


def _end(server: ServerProcess, end: str) -> None:
    with suppress(OSError):
        if end != "terminate":
            server.process.send_signal(signal.Signals[end])
            return
        with server.connect() as client:
            client.sendall(b"terminate\n")
            client.settimeout(2)
            client.recv(1)
    # All slots may be taken for longer than a test waits.
    server.process.send_signal(signal.SIGTERM)


def _judge(asked: Round, outcome: Outcome) -> list[Violation]:
    if outcome.code == -signal.SIGKILL and asked.end == "SIGKILL":
        # A torn tail is all that a kill may leave; the rest is judged as of a failed backend.
        last = outcome.logs[-1] if outcome.logs else ""
        outcome.logs[-1:] = [last[: len(last) // 10 * 10]]
        kinds = {"a FIN that lies", "log", "traceback", "something else on stdout"}
        return [each for each in judge(outcome) if each.kind in kinds]
    # Faults may be said more often than a single failure, and clients that come after the stop are
    # reset.
    allowed = {"flood", "less service without a word"}
    return [each for each in judge(outcome) if each.kind not in allowed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    asked = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("this needs strace")
    print(f"from seed {asked.seed}", flush=True)
    end_s = time.monotonic() + asked.seconds
    rounds = bad = numbers = 0
    while time.monotonic() < end_s:
        planned = make_round(asked.seed + rounds)
        outcome, violations = run_round(planned)
        rounds += 1
        numbers += sum(len(re.findall("\n", log)) for log in outcome.logs)
        for each in violations:
            detail = each.detail[:300]
            print(f"seed {planned.seed} {outcome.mode}{outcome.injection}: {each.kind}: {detail}")
            print("  " + "\n  ".join(outcome.stderr[-4:]), flush=True)
        bad += bool(violations)
    print(f"{rounds} rounds, {numbers} numbers on file, {bad} rounds with violations")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
