"""What has to be true of the logs: at any moment, and in the end.

A partition's log is a function of its stream. So all copies of it have the same bytes as far as
they go, and in the end these can be computed from the stream's messages.
"""

import array
import re
import sys
from pathlib import Path

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from numbers_uring.cluster.partitions import range_of, stream_name
from numbers_uring.limits import LINE_BYTES, NUMBERS
from support.processes import run_command
from support.rounds.clients import numbers_of
from support.rounds.parts import PARTITIONS, Cluster
from support.waiting import wait_until

CAUGHT_UP_S = 120.0


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
        expected = [self._log_of_stream(partition) for partition in range(PARTITIONS)]
        sizes = [len(log) for log in expected]
        for copy in self._cluster.copies:
            try:
                wait_until(
                    lambda copy=copy: copy.sizes() == sizes,  # type: ignore[misc]
                    f"the logs of {copy.name}",
                    CAUGHT_UP_S,
                )
            except AssertionError as error:
                said = "" if copy.process is None else copy.process.stderr
                raise AssertionError(f"{error}: {copy.sizes()}, not {sizes}; {said}") from error
        self.look()
        for partition, log in enumerate(expected):
            assert self._logs[partition] == log, f"log {partition} is not what its stream has"
        self._verify()

    def _verify(self) -> None:
        """Let the command for it come to the same result."""
        folders = [str(copy.folder) for copy in self._cluster.copies]
        urls = ",".join(broker.url for broker in self._cluster.brokers)
        options = [option for folder in folders for option in ("--log-dir", folder)]
        done = run_command(
            *("cluster", "verify", "--nats", urls), *options, prefix=self._cluster.command
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _log_of_stream(self, partition: int) -> bytes:
        """Compute a log from its stream."""

        async def read(js: JetStreamContext) -> bytes:
            seen = NumberSet()
            log: list[bytes] = []
            state = (await js.stream_info(stream_name(partition))).state
            assert state.messages == state.last_seq, "messages are missing in the stream"
            look = await js.pull_subscribe(
                "", stream=stream_name(partition), config=ConsumerConfig(ack_policy=AckPolicy.NONE)
            )
            left = state.messages
            while left > 0:
                for message in await look.fetch(min(left, 200), timeout=5):
                    left -= 1
                    numbers = filter(seen.add, _unpacked(message.data))
                    log.append(b"".join(b"%09d\n" % number for number in numbers))
            return b"".join(log)

        return self._cluster.ask(read, CAUGHT_UP_S)

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


def _unpacked(data: bytes) -> "array.array[int]":
    numbers = array.array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
