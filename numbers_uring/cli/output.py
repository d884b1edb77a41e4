"""What a command was asked for, on standard output."""

import sys

import click

from numbers_uring.errors import StartError


def print_whole(text: str) -> None:
    """Print the text and a newline. Raises StartError where not all of it can be written."""
    try:
        click.echo(text.encode())
    except OSError as error:
        # What is left in its buffer must not be tried again at exit.
        sys.stdout = None
        raise StartError(f"cannot write to standard output: {error.strerror}") from error
