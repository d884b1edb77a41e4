"""One random script of clients against every kind of server and a plain model: all must agree.

A script is made from a seed. It is played to a server with epoll and with io_uring, with one
reactor and with two, by compiled passes and, with the kernel in Python, by the plain loop; the
model is a set in Python. Equal must be: the log as a set of numbers, the
reports, the counters, and what each client sees by the contract. `make differential SECONDS=600`
goes on for so long, with a new seed each time, and prints the seed that fails.
"""

import argparse
import fcntl
import json
import random
import re
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.metrics_client import scrape
from support.processes import ServerProcess
from support.waiting import DEADLINE_S, wait_until

SERVERS = [
    *(("epoll", 1, "auto"), ("epoll", 2, "auto"), ("uring", 1, "auto"), ("uring", 2, "auto")),
    *(("epoll", 1, "python"), ("uring", 1, "python")),
]
_LINE = re.compile(rb"[0-9]{9}\n")
_IDLE_S = 2.0
_WAITING_BYTES_MAX = 20_000
"""What a client that waits in the backlog may send: it must be on the server's host as a whole."""
_INVALID = [
    b"12345\n", b"1234567890\n", b"12345678\r\n", b"-12345678\n", b"terminate\r\n", b"TERMINATE\n",
    b"\n", b"\0\0\0\0\0\0\0\0\0\n", b"12345678 \n", "٣".encode() * 9 + b"\n", b"terminat\n",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Script:
    """What one client does: sends `data` in the pieces of `cuts`, and then `then`."""

    data: bytes
    cuts: list[int]
    then: str
    """half-close, reset, close, or stay."""


@dataclass(frozen=True, slots=True)
class Play:
    """A whole run: clients that come and go, those that stay to the end, those that wait."""

    seed: int
    options: list[str]
    connections_max: int
    idle: bool
    """Clients that stay are disconnected for being idle."""
    come_and_go: list[Script]
    stay: list[Script]
    wait: list[Script]
    terminates: bool
    """A client stops the server, not a signal."""


@dataclass
class Expected:
    """What the model says of a play."""

    numbers: set[int] = field(default_factory=set)
    lines: int = 0
    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)


@dataclass
class Seen:
    """What one client saw."""

    end: str = ""
    log_bytes: int = 0
    """How long the log was when it saw its FIN."""


# The model.


def valid_lines(data: bytes) -> tuple[list[int], bytes]:
    """Return the numbers of a stream, and the bytes behind the last complete line of them."""
    numbers, start = [], 0
    while match := _LINE.match(data, start):
        numbers.append(int(match[0]))
        start = match.end()
    return numbers, data[start:]


def is_invalid(rest: bytes) -> bool:
    """Return whether what follows the last valid line can't become one, or `terminate`."""
    return not re.fullmatch(rb"[0-9]{0,9}", rest) and not b"terminate".startswith(rest)


def reason(script: Script) -> str:
    """Return how the connection of a client that comes and goes ends, to the server."""
    _, rest = valid_lines(script.data)
    if is_invalid(rest):
        return "invalid"
    if rest:
        return "incomplete"
    return "reset" if script.then == "reset" else "eof"


def expect(play: Play) -> Expected:
    """Return what must come of the play."""
    expected = Expected()
    for script in [*play.come_and_go, *play.stay, *play.wait]:
        numbers, _ = valid_lines(script.data)
        expected.numbers.update(numbers)
        expected.lines += len(numbers)
        expected.accepted += 1
    expected.ended.update(map(reason, play.come_and_go))
    if play.idle:
        expected.ended["idle"] += len(play.stay)
    return expected


# The script.


def make_play(seed: int) -> Play:
    """Return the play of this seed, the same each time."""
    chance = random.Random(seed)
    idle = chance.random() < 0.1
    connections_max = chance.choice([2, 3, 5, 20])
    span = chance.choice([50, 5_000, 10**9])
    options = ["--fsync", chance.choice(["never", "interval", "always"])]
    options += ["--report-interval", chance.choice(["10", "0.02"])]
    options += ["--write-behind", chance.choice(["on", "off"])]
    if idle:
        options += ["--idle-timeout", str(_IDLE_S)]

    def script(then: list[str], *, lines_max: int, invalid: float) -> Script:
        count = chance.choice([0, 1, chance.randrange(20), chance.randrange(lines_max)])
        data = b"".join(b"%09d\n" % chance.randrange(span) for _ in range(count))
        kind = chance.random()
        if kind < invalid:
            data += chance.choice(_INVALID) + b"000000007\n" * chance.randrange(3)
        elif kind < invalid + 0.2:
            data += b"%09d" % chance.randrange(10**9)
            data = data[: len(data) - chance.randrange(9)]
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6)))
        return Script(data, cuts, chance.choice(then))

    ends = ["half-close", "half-close", "close", "reset"]
    come_and_go = [
        script(ends, lines_max=10_000, invalid=0.25) for _ in range(chance.randrange(1, 30))
    ]
    stay = [
        script(["stay"], lines_max=2_000, invalid=0)
        for _ in range(chance.randint(1, connections_max))
    ]
    wait: list[Script] = []
    if not idle and len(stay) == connections_max:
        wait = [
            script(["stay", "half-close"], lines_max=_WAITING_BYTES_MAX // 10, invalid=0.1)
            for _ in range(chance.randrange(6))
        ]
    return Play(
        seed, options, connections_max, idle, come_and_go, stay, wait, chance.random() < 0.5
    )


# The players.


class _Player:
    """One client: plays its script."""

    def __init__(self, server: ServerProcess, script: Script) -> None:
        self._server = server
        self.script = script
        self.seen = Seen()
        self.connection = server.connect()

    def send(self) -> None:
        """Send everything; the server may have closed meanwhile."""
        script = self.script
        with suppress(ConnectionResetError, BrokenPipeError):
            for start, end in zip([0, *script.cuts], [*script.cuts, len(script.data)], strict=True):
                self.connection.sendall(script.data[start:end])

    def come_and_go(self) -> None:
        """Send, and leave as the script says; look at the log the moment the FIN is seen."""
        self.send()
        invalid = reason(self.script) == "invalid"
        with self.connection:
            if invalid or self.script.then == "half-close":
                if not invalid:
                    self.connection.shutdown(socket.SHUT_WR)
                self.watch()
            elif self.script.then == "reset":
                # A reset takes back what has not arrived yet.
                wait_until(self._has_arrived, "all that was sent to arrive")
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _has_arrived(self) -> bool:
        try:
            return not any(fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return True

    def watch(self) -> None:
        """Wait for the end, and note how long the log is then."""
        self.connection.settimeout(DEADLINE_S)
        try:
            self.seen.end = "fin" if self.connection.recv(1) == b"" else "data"
        except ConnectionResetError:
            self.seen.end = "reset"
        except TimeoutError:
            self.seen.end = "nothing"
        self.seen.log_bytes = self._server.log_path.stat().st_size


def run(play: Play, server: ServerProcess) -> list[str]:
    """Play to a server, and stop it; return what differs from the model."""
    expected = expect(play)
    players = _play_come_and_go(play, server)
    staying = [_Player(server, script) for script in play.stay]
    for player in staying:
        player.send()
    open_clients = 0 if play.idle else len(staying)
    _wait_for_clients(server, len(players) + len(staying), open_clients)
    if not play.idle:
        # A client that has sent half of a line is still of the same mind.
        _wait_for_bytes(server, play)
    waiting = [_Player(server, script) for script in play.wait]
    for player, script in zip(waiting, play.wait, strict=True):
        player.send()
        if script.then == "half-close":
            with suppress(OSError):
                player.connection.shutdown(socket.SHUT_WR)
    begin_s = time.monotonic()
    code = _stop(play, server, staying)
    if time.monotonic() - begin_s > DEADLINE_S / 2:
        return ["the stop took too long"]
    for player in [*staying, *waiting]:
        with player.connection:
            player.watch()
    differences = [] if code == 0 else [f"exit code {code}: {server.stderr}"]
    differences += _compare_clients(server, players, [*staying, *waiting])
    return differences + _compare(play, server, expected)


def _play_come_and_go(play: Play, server: ServerProcess) -> list[_Player]:
    players: list[_Player] = []
    left = threading.Semaphore(play.connections_max + 2)

    def one(script: Script) -> None:
        with left:
            player = _Player(server, script)
            players.append(player)
            player.come_and_go()

    with ThreadPoolExecutor(len(play.come_and_go)) as pool:
        list(pool.map(one, play.come_and_go))
    return players


def _stop(play: Play, server: ServerProcess, staying: list[_Player]) -> int:
    if play.terminates and not play.idle and not valid_lines(play.stay[0].data)[1]:
        staying[0].connection.sendall(b"terminate\n")
        return server.wait()
    return server.stop(signal.SIGTERM)


def _wait_for_clients(server: ServerProcess, accepted: int, connected: int) -> None:
    def settled() -> bool:
        now = scrape(server)
        return (
            now["numbers_uring_connections_accepted_total"] == accepted
            and now["numbers_uring_connections"] == connected
        )

    wait_until(settled, f"{accepted} clients to be accepted, and {connected} left")


def _wait_for_bytes(server: ServerProcess, play: Play) -> None:
    lines = sum(len(valid_lines(script.data)[0]) for script in [*play.come_and_go, *play.stay])

    def taken() -> float:
        now = scrape(server)
        return sum(now[f"numbers_uring_numbers_total {kind}"] for kind in ("unique", "duplicate"))

    wait_until(lambda: taken() == lines, f"{lines} lines, it has {taken()}")


# What came of it.


def _compare_clients(
    server: ServerProcess, players: list[_Player], to_the_end: list[_Player]
) -> list[str]:
    found = []
    ends = {number: 10 * (index + 1) for index, number in enumerate(server.logged())}
    for player in players:
        script, seen = player.script, player.seen
        if script.then == "half-close" and reason(script) != "invalid" and seen.end != "fin":
            found.append(f"a client that half-closed saw {seen.end!r}")
        elif reason(script) == "invalid" and seen.end not in {"fin", "reset"}:
            found.append(f"a client with an invalid line saw {seen.end!r}")
    for player in to_the_end:
        may_reset = reason(player.script) == "invalid"
        if player.seen.end != "fin" and not (may_reset and player.seen.end == "reset"):
            found.append(f"a client that was there at the stop saw {player.seen.end!r}")
    for player in [*players, *to_the_end]:
        numbers, _ = valid_lines(player.script.data)
        late = sum(ends.get(number, sys.maxsize) > player.seen.log_bytes for number in numbers)
        if player.seen.end == "fin" and late:
            end = f"{reason(player.script)}, {player.script.then}"
            missing = f"{late} of its numbers were not on file"
            found.append(f"a client ({end}) saw a FIN, {missing}")
    return found


def _compare(play: Play, server: ServerProcess, expected: Expected) -> list[str]:
    found = []
    logged = server.logged_set()
    if logged != expected.numbers:
        lost, more = len(expected.numbers - logged), len(logged - expected.numbers)
        found.append(f"the log lacks {lost} numbers, and has {more} that no client sent")
    unique, duplicate, _ = server.reported()
    wanted = len(expected.numbers), expected.lines - len(expected.numbers)
    if (unique, duplicate) != wanted:
        found.append(f"reported {unique} unique and {duplicate} duplicate, expected {wanted}")
    last = json.loads(server.stderr_lines[-1])
    if (last["unique"], last["duplicate"]) != wanted:
        found.append(f"the last line says {last}")
    if (last["accepted"], last["ended"]["refused"]) != (expected.accepted, 0):
        found.append(f"accepted {last['accepted']} clients, expected {expected.accepted}")
    # Those that were there at the stop may have ended by themselves a moment before.
    open_ends = len(play.wait) + (0 if play.idle else len(play.stay))
    ended = Counter({key: count for key, count in last["ended"].items() if count})
    if sum((expected.ended - ended).values()) or sum((ended - expected.ended).values()) > open_ends:
        found.append(f"clients ended by {dict(ended)}, expected {dict(expected.ended)} and a stop")
    return found


def differences(play: Play) -> list[str]:
    """Play to every kind of server; return what differs from the model, each with its server."""
    found = []

    def one(kind: tuple[str, int, str]) -> list[str]:
        backend, reactors, kernel = kind
        with tempfile.TemporaryDirectory(prefix="differential-") as directory:
            options = ["--backend", backend, "--reactors", str(reactors), *play.options]
            options += ["--kernel", kernel]
            options += ["--max-clients", str(play.connections_max), "--log-format", "json"]
            options += ["--metrics", "127.0.0.1:0"]
            with ServerProcess(Path(directory) / "numbers.log", *options) as server:
                return [f"{backend}, {reactors}, {kernel}: {each}" for each in run(play, server)]

    with ThreadPoolExecutor(2) as pool:
        for each in pool.map(one, SERVERS):
            found += each
    return found


def play_for(seconds: float, seed: int) -> int:
    """Play one play after another, from `seed` on; return how many. Stops at the first difference.

    Raises AssertionError, which names the seed.
    """
    end_s = time.monotonic() + seconds
    plays = 0
    while time.monotonic() < end_s:
        try:
            found = differences(make_play(seed + plays))
        except AssertionError as error:
            found = [str(error)]
        assert not found, f"seed {seed + plays}: {found}"
        plays += 1
    return plays


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    asked = parser.parse_args()
    print(f"from seed {asked.seed}", flush=True)
    print(f"{play_for(asked.seconds, asked.seed)} plays, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
