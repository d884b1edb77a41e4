"""Takes a copy that is gone for good out of the bucket, so that streams are trimmed without it."""

import re
from typing import TYPE_CHECKING

from numbers_uring.cluster.bucket import Buckets
from numbers_uring.cluster.comparison import copy_text, is_alive
from numbers_uring.cluster.connection import broker_errors
from numbers_uring.errors import StartError

if TYPE_CHECKING:
    from nats.js import JetStreamContext


async def forget_copy(js: "JetStreamContext", name: str, *, force: bool) -> list[int]:
    """Forget the copy with this id, also where its report makes no sense; return its partitions.

    Raises StartError if there is none, and, without `force`, if its collector still reports.
    """
    buckets = Buckets(js)
    with broker_errors("read the registered copies"):
        contents = await buckets.read(fresh=True)
    copies = contents.copies
    found = [copy for copy in copies if copy.copy == name]
    key = re.compile(rf"\.copy\.([0-9]+)\.{re.escape(name)} ")
    broken = [int(match[1]) for match in map(key.search, contents.unreadable) if match]
    if not found and not broken:
        known = ", ".join(sorted({copy.copy for copy in copies})) or "none"
        raise StartError(f"no copy {name} is registered; registered copies: {known}")
    alive = [copy for copy in found if is_alive(copy)]
    if alive and not force:
        raise StartError(
            f"{copy_text(alive[0])} has reported {alive[0].age_s:.0f} s ago: stop its collector "
            "first; --force forgets a copy that was killed a moment ago"
        )
    with broker_errors(f"forget the copy {name}"):
        partitions = sorted({*broken, *(copy.partition for copy in found)})
        for partition in partitions:
            await buckets.forget_copy(partition, name)
    return partitions
