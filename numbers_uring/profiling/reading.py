"""Reads what a tool prints of a recording, for a limited time."""

import subprocess
import tempfile
import threading
from collections.abc import Iterator

from numbers_uring.profiling.recording import RecordError, reason


class Reading:
    """A bound on the time that recordings are read for; any thread may call `cut`.

    Raises RecordError without memory for the thread that watches the time.
    """

    def __init__(self, seconds: float) -> None:
        self.was_cut = False
        self._child: subprocess.Popen[str] | None = None
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError as error:
            raise RecordError("there is too little memory to read it") from error

    def cut(self) -> None:
        """End the reading; what was read until now counts."""
        self.was_cut = True
        child = self._child
        if child is not None:
            child.kill()

    def lines(self, command: list[str]) -> Iterator[str]:
        """Yield the lines that `command` prints. Raises RecordError if it fails by itself."""
        # Messages go to a file: the tool would wait for the reader of a pipe.
        with (
            tempfile.TemporaryFile() as messages,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as child,
        ):
            self._child = child
            if self.was_cut:
                child.kill()
            try:
                assert child.stdout is not None
                yield from child.stdout
            except BaseException:
                child.kill()
                raise
            finally:
                child.wait()
                self._child = None
            if child.returncode and not self.was_cut:
                messages.seek(0)
                raise RecordError(reason(messages.read().decode(errors="replace"), command[0]))

    def close(self) -> None:
        self._timer.cancel()
