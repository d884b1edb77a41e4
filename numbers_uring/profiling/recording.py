"""The process of a tool that records another process, and the folder of its files."""

import re
import signal
import subprocess
import tempfile
from pathlib import Path

from numbers_uring.limits import PROFILE_STOP_S


class RecordError(Exception):
    """A recording cannot be made or read; its text is the reason."""


class Recording:
    """One run of the command `tool`: `data` is for its output, `messages` has what it prints.

    It runs in a session of its own, which signals from the terminal do not reach. Raises
    RecordError.
    """

    def __init__(self, tool: str) -> None:
        self.tool = tool
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="numbers-uring-profile-")
        except OSError as error:
            raise RecordError(
                f"{tool} cannot create a folder for its files: {error.strerror}"
            ) from error
        self.data = Path(self._folder.name) / "recording"
        self._messages = Path(self._folder.name) / "messages"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str], *, pass_fds: tuple[int, ...] = ()) -> None:
        """Start the process. Raises RecordError."""
        try:
            with self._messages.open("wb") as messages:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
        except (OSError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RecordError(f"cannot run {command[0]}: {reason}") from error

    @property
    def messages(self) -> str:
        return self._messages.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> None:
        """Return when the process has ended."""
        if self._process is not None:
            self._process.wait()

    def failure(self) -> RecordError:
        """End a process that did not begin to record; return the reason."""
        self._kill()
        return RecordError(reason(self.messages, self.tool))

    def stop(self) -> None:
        """Let the process finish its output and end, if it has not ended. Raises RecordError."""
        if self._process is None:
            return
        if self.runs:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PROFILE_STOP_S)
        except subprocess.TimeoutExpired as error:
            self._kill()
            raise RecordError(f"{self.tool} did not end") from error

    def discard(self) -> None:
        """End the process, and remove all files."""
        self._kill()
        self._folder.cleanup()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def reason(messages: str, tool: str) -> str:
    """Return the first line of a tool's messages that is a sentence."""
    noise = re.compile(r"\W*$|Error:$|Events (dis|en)abled$")
    lines = (line.strip() for line in messages.splitlines())
    return next(
        (line for line in lines if not noise.match(line)), f"{tool} failed, and gave no reason"
    )
