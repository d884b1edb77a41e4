"""The close of descriptors that hold nothing."""

import os
from contextlib import suppress
from typing import Protocol


class Closable(Protocol):
    """A socket, or what else is closed like one."""

    def close(self) -> None: ...


def close_all(*opened: int | Closable) -> None:
    """Close each of them, also after one whose close fails.

    Linux frees a descriptor whatever close(2) says, and only of a file can that be news of data.
    """
    for each in opened:
        with suppress(OSError):
            if isinstance(each, int):
                os.close(each)
            else:
                each.close()
