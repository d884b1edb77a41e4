"""Programs that a benchmark or a demonstration runs in the background, and what they say."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import click

DEADLINE_S = 120.0
"""For whatever is waited for: reached only by a failure."""

LOOK_S = 0.002
"""Between two checks of what is waited for."""

PYTHON = sys.executable


def words(python: str, *arguments: str) -> list[str]:
    """Return the command line of `numbers-uring` as that interpreter has it installed."""
    # -P, so that it is not what lies in the folder that this is run from.
    return [python, "-P", "-m", "numbers_uring", *arguments]


class Background:
    """A program in the background, with what it says in a file."""

    def __init__(self, command: Sequence[str], said: Path) -> None:
        self._command = command
        self.said = said
        with said.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match in what it says, as soon as it is there."""
        end_s = time.monotonic() + DEADLINE_S
        while (match := re.search(pattern, self.said.read_text())) is None:
            if self.process.poll() is not None or time.monotonic() > end_s:
                raise self._failure()
            time.sleep(LOOK_S)
        return match

    def stop(self) -> None:
        """Ask it to end, and see that it does so cleanly."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(DEADLINE_S) != 0:
            raise self._failure()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def _failure(self) -> click.ClickException:
        return click.ClickException(f"{' '.join(self._command)}: {self.said.read_text()}")


def run(*arguments: str, python: str = PYTHON, codes: Collection[int] = (0,)) -> str:
    """Run a command of ours to its end, with one of these exit codes; return what it prints."""
    command = words(python, *arguments)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode not in codes:
        raise click.ClickException(f"{' '.join(arguments)}: {done.returncode}, {done.stderr}")
    return done.stdout
