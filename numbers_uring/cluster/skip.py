"""Records an operator's decision that all copies of a partition skip messages of its stream."""

import getpass
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.collector.feed import Message
from numbers_uring.cluster.collector.lookup import (
    Lookup,
    NoAnswerError,
    NoStreamError,
    StreamState,
    read_state,
)
from numbers_uring.cluster.collector.reader import malformed
from numbers_uring.cluster.comparison import copy_text
from numbers_uring.cluster.connection import broker_errors
from numbers_uring.cluster.partitions import NUMBER_BYTES, Range, range_of, stream_name, unpacked
from numbers_uring.cluster.values import Copy, Skip
from numbers_uring.errors import StartError

if TYPE_CHECKING:
    from nats.js import JetStreamContext


async def skip_messages(
    js: "JetStreamContext", partition: int, first: int, last: int, *, why: str, force: bool
) -> str:
    """Make all copies skip messages `first` to `last`; return a line for the operator.

    Raises StartError if the stream never had one of them, and, without `force`, if one of them is
    there and is a batch, or a registered copy has passed it.
    """
    buckets, stream = Buckets(js), stream_name(partition)
    with broker_errors("read what is recorded of the partition"):
        contents = await buckets.read([partition], fresh=True)
    partitions = contents.settings.partitions
    if partition >= partitions:
        raise StartError(f"the cluster has partitions 0 to {partitions - 1}, not {partition}")
    with broker_errors(f"ask for the stream {stream}"):
        try:
            state = await read_state(js, stream)
        except NoStreamError as error:
            raise StartError(f"the NATS server has no stream {stream}") from error
    if last > state.last_sequence:
        raise StartError(
            f"message {last} is not yet in the stream {stream}, which ends at message "
            f"{state.last_sequence}"
        )
    if not force:
        _require_not_passed(contents.copies, partition, first, state)
        await _require_no_batch(js, stream, first, last, range_of(partition, partitions))
    before = (
        skip.last_sequence
        for skip in contents.skips
        if (skip.partition, skip.sequence) == (partition, first)
        and skip.stream_created_ns == state.created_ns
    )
    skip = Skip(
        partition=partition,
        sequence=first,
        last_sequence=max([last, *before]),
        stream_created_ns=state.created_ns,
        by=f"{_user()}@{socket.gethostname()}",
        why=why,
    )
    with broker_errors("record the skip"):
        await buckets.put_skip(skip)
    which = f"message {first}" if first == last else f"messages {first} to {last}"
    return f"all copies of partition {partition} skip {which} of the stream {stream}"


def _require_not_passed(
    copies: Iterable[Copy], partition: int, first: int, state: StreamState
) -> None:
    for copy in copies:
        of_stream = (copy.partition, copy.stream_created_ns) == (partition, state.created_ns)
        if of_stream and copy.sequence >= first:
            raise StartError(
                f"{copy_text(copy)} has passed message {first}: copy its log and index to where "
                "they are missing; --force makes the others skip it, and the copies then differ"
            )


async def _require_no_batch(
    js: "JetStreamContext", stream: str, first: int, last: int, collected: Range
) -> None:
    lookup = Lookup(js, stream)
    while first <= last:
        try:
            message = await lookup.first_there(first, last)
        except NoAnswerError as error:
            raise StartError(
                f"cannot ask whether message {first} is in the stream {stream}: no answer"
            ) from error
        if message is None:
            return
        if _is_batch(message, collected):
            raise StartError(
                f"message {message.sequence} of the stream {stream} is there, and a proper batch: "
                "its numbers would be in no log; --force skips it all the same"
            )
        first = message.sequence + 1


def _is_batch(message: Message, collected: Range) -> bool:
    if malformed(message) is not None or len(message.data) % NUMBER_BYTES:
        return False
    numbers = unpacked(message.data)
    return collected.first <= min(numbers) and max(numbers) < collected.end


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # It has no name.
