"""A file for a plot by matplotlib at the end of a run, found to be possible at its start."""

import logging
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import click

from numbers_uring.errors import ExtraLibraryError
from numbers_uring.system.output_file import OutputFile

FORMATS = ("svg", "png", "pdf")


class PlotFile(OutputFile):
    """An OutputFile whose name's ending says the format.

    Raises click.UsageError for an ending that is none of FORMATS, StartError where matplotlib can't
    be loaded or the file can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._format = path.suffix.removeprefix(".").lower()
        if self._format not in FORMATS:
            names = ", ".join(f".{name}" for name in FORMATS)
            raise click.UsageError(f"--plot {path}: the name must end in one of {names}.")
        # It warns of a home directory where it may keep no cache, which does not matter here.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        try:
            # Not at the top: it is an extra, and takes half a second.
            import_module("matplotlib.figure")
        except ImportError as error:
            raise ExtraLibraryError("--plot", "matplotlib", "plot", error) from error
        super().__init__(path)

    def save(self, figure: Any) -> None:
        """Write a matplotlib Figure; the same one makes the same file. Raises OSError."""
        import matplotlib  # noqa: PLC0415

        picture = BytesIO()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        with matplotlib.rc_context({"svg.hashsalt": "numbers-uring"}):
            figure.savefig(picture, format=self._format, metadata=dates.get(self._format))
        self.write(picture.getvalue())
