"""What has to be true of the logs: at any moment, and in the end.

A partition's log is a function of its stream. So all copies of it have the same bytes as far as
they go, and in the end these can be computed from the stream's messages.
"""

import array
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from numbers_uring.cluster.partitions import range_of, stream_name
from numbers_uring.limits import LINE_BYTES, NUMBERS
from support.rounds.clients import numbers_of
from support.rounds.parts import PARTITIONS, Cluster
from support.waiting import wait_until

CAUGHT_UP_S = 120.0

Done = subprocess.CompletedProcess[str]


class NumberSet:
    """Any of the billion numbers, in little memory."""

    def __init__(self) -> None:
        self._bytes = bytearray(NUMBERS // 8)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return bool(self._bytes[number >> 3] >> (number & 7) & 1)

    def add(self, number: int) -> bool:
        """Return whether it is new."""
        if number in self:
            return False
        self._bytes[number >> 3] |= 1 << (number & 7)
        self._count += 1
        return True


class Judge:
    """Knows the longest log of each partition that was seen."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._logs = [bytearray() for _ in range(PARTITIONS)]
        self.logged = NumberSet()

    def look(self) -> None:
        """Check what can be checked while everything runs."""
        for copy in self._cluster.copies:
            for partition in range(PARTITIONS):
                self._compare(partition, copy.log(partition))

    def _compare(self, partition: int, path: Path) -> None:
        known = self._logs[partition]
        data = path.read_bytes()
        data = data[: len(data) // LINE_BYTES * LINE_BYTES]
        common = min(len(data), len(known))
        if data[:common] != known[:common]:
            at = next(at for at in range(common) if data[at] != known[at])
            where = slice(at // LINE_BYTES * LINE_BYTES, at // LINE_BYTES * LINE_BYTES + 30)
            raise AssertionError(
                f"{path} differs from another copy, or from what it was, at byte {at} of {common}: "
                f"{bytes(data[where])!r}, not {bytes(known[where])!r}"
            )
        new = data[common:]
        assert re.fullmatch(rb"(?:[0-9]{9}\n)*", new), f"{path} has something else than lines"
        collected = range_of(partition, PARTITIONS)
        for line in new.split():
            number = int(line)
            assert collected.first <= number < collected.end, f"{number} is in {path}"
            assert self.logged.add(number), f"{number} is in {path} twice"
        known += new

    def wait_for_all(self) -> None:
        """Wait until each copy has all that the streams have, once nothing is sent any more."""
        folders = [str(copy.folder) for copy in self._cluster.copies]
        verify = ("verify", *(part for folder in folders for part in ("--log-dir", folder)))
        self._wait_for(verify, lambda done: done.returncode == 0)
        self.look()
        for copy in self._cluster.copies:
            assert copy.sizes() == [len(log) for log in self._logs], f"{copy.name} is behind"
        for partition, log in enumerate(self._logs):
            self._compare_with_stream(partition, log)
        self._wait_for(("status", "--json"), _has_no_problem)

    def _wait_for(self, command: tuple[str, ...], passes: Callable[[Done], bool]) -> None:
        done = self._cluster.run(*command)

        def is_content() -> bool:
            nonlocal done
            done = self._cluster.run(*command)
            return passes(done)

        try:
            wait_until(is_content, f"'cluster {command[0]}'", CAUGHT_UP_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: {done.stdout}{done.stderr}") from error

    def _compare_with_stream(self, partition: int, log: bytearray) -> None:
        """Compute the log from its stream; if that was trimmed, look for its numbers in the log."""
        first, numbers = self._cluster.ask(lambda js: _read(js, partition), CAUGHT_UP_S)
        seen = NumberSet()
        new = [number for number in numbers if seen.add(number)]
        self._cluster.tally["messages trimmed"] += first - 1
        if first == 1:
            expected = b"".join(b"%09d\n" % number for number in new)
            assert log == expected, f"log {partition} is not what its stream has"
        else:
            missing = [number for number in new if number not in self.logged]
            assert not missing, f"log {partition} lacks {len(missing)} numbers of its stream"

    def judge_sessions(self) -> None:
        """Check that nothing is missing that a client saw acknowledged, and nothing was made up."""
        sent = NumberSet()
        sessions = self._cluster.sessions
        for session in sessions:
            assert session.end != "silence", f"{session.node} did not close a connection"
            numbers = [number for chunk in session.sent for number in numbers_of(chunk)]
            if session.end == "fin":
                missing = [number for number in numbers if number not in self.logged]
                assert not missing, (
                    f"{len(missing)} of {len(numbers)} numbers that {session.node} has "
                    f"acknowledged with a FIN are in no log: {missing[:5]}"
                )
            for number in numbers:
                sent.add(number)
        ends = [session.end for session in sessions]
        tally = self._cluster.tally
        tally["connections closed"] = ends.count("fin")
        tally["connections reset"] = ends.count("reset")
        tally["numbers sent"] = len(sent)
        tally["numbers logged"] = len(self.logged)
        for log in self._logs:
            assert all(int(line) in sent for line in log.split()), "a log has what no client sent"


def _has_no_problem(done: Done) -> bool:
    """Return whether there is none but killed nodes, which are shown for an hour."""
    problems = json.loads(done.stdout)["problems"] if done.stdout else [{"kind": "no answer"}]
    return all(problem["kind"] == "node_gone" for problem in problems)


async def _read(js: JetStreamContext, partition: int) -> tuple[int, "array.array[int]"]:
    """Return the first sequence of a stream, and all numbers from there on."""
    name = stream_name(partition)
    numbers = array.array("I")
    state = (await js.stream_info(name)).state
    left = state.messages
    assert left == state.last_seq - state.first_seq + 1, "messages are missing in the stream"
    look = await js.pull_subscribe(
        "", stream=name, config=ConsumerConfig(ack_policy=AckPolicy.NONE)
    )
    while left > 0:
        for message in await look.fetch(min(left, 200), timeout=5):
            left -= 1
            numbers.frombytes(message.data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return state.first_seq, numbers
