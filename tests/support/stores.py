"""What a NATS server has on its disk, and damage to it."""

import os
from pathlib import Path

from support.broker import Broker

BLOCK_BYTES = 8_000_000
"""A stream of nats-server 2.15 begins a new file about each so many bytes."""


def blocks(broker: Broker, stream: str) -> list[Path]:
    """Return the files with the stream's messages, oldest first."""
    folder = broker.store / "jetstream" / "$G" / "streams" / stream / "msgs"
    return sorted(folder.glob("*.blk"), key=lambda path: int(path.stem))


def flip_bit(path: Path, at: int) -> None:
    """Flip a bit of byte `at`, as a disk or a memory does that has lost one."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
        file.flush()
        os.fsync(file.fileno())


def set_byte(broker: Broker, stream: str, mark: bytes, offset: int, value: int) -> None:
    """Set a byte of a stored message, `offset` bytes behind `mark`: its checksum may then be wrong.

    The server must not run. After a stop in order it does not read all of its blocks at its next
    start, and then has all messages but this one, unless it is in the last block, of 8 MB.
    """
    assert broker.process is None
    for block in blocks(broker, stream):
        with block.open("r+b") as file:
            start = file.read().find(mark)
            if start >= 0:
                file.seek(start + offset)
                file.write(bytes([value]))
                return
    raise AssertionError(f"{stream} of {broker.name} has no {mark!r}")
