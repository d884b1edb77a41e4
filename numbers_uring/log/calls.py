"""The log's system calls that can fail, for tests to replace, and their repeat after a signal."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileCalls:
    """The functions of `os`, or stand-ins that fail as told."""

    open: Callable[[Path, int, int], int] = os.open
    fstat: Callable[[int], os.stat_result] = os.fstat
    write: Callable[[int, memoryview], int] = os.write
    ftruncate: Callable[[int, int], None] = os.ftruncate
    fdatasync: Callable[[int], None] = os.fdatasync
    close: Callable[[int], None] = os.close


def again(call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Make the call until it is not interrupted."""
    while True:
        try:
            return call(*arguments, **keywords)
        except InterruptedError:
            continue
