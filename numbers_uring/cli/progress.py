"""A progress bar on standard error, for commands that read files."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from numbers_uring.limits import CHECK_PROGRESS_BYTES


@contextmanager
def bar_of_bytes(label: str, size_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show a bar where standard error is a terminal; what it gives is called with sizes read."""
    # Standard error is None where it was closed at the start.
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _size: None
        return
    with click.progressbar(
        length=size_bytes, label=label, file=sys.stderr, update_min_steps=CHECK_PROGRESS_BYTES
    ) as bar:
        yield bar.update
