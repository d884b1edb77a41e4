"""Completion in real shells: the script is read, a line is begun, TAB is pressed."""

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from numbers_uring.cli.commands import cli
from numbers_uring.cli.completion import SHELLS, completion_script
from support.processes import assert_one_line_error, run_command
from support.waiting import DEADLINE_S, wait_until

CASES = [
    ("numbers-uring se", "serve"),
    ("numbers-uring serve --max-c", "--max-clients"),
    ("numbers-uring serve --concurrent", "--concurrent-connections"),
    ("numbers-uring serve --when-full r", "refuse"),
    ("numbers-uring serve --log-file ./some-l", "./some-log"),
    ("numbers-uring check ./some-l", "./some-log"),
    ("numbers-uring completion z", "zsh"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home with one file and a completion script for each shell."""
    (tmp_path / "some-log").touch()
    for shell in SHELLS:
        (tmp_path / f"completion.{shell}").write_text(completion_script(shell))
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"HOME": str(home), "PATH": commands, "LC_ALL": "C.UTF-8", "TERM": "dumb"}


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


class Terminal:
    """A shell that takes its input for a terminal's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def shows(self, text: str) -> bool:
        while select.select([self._fd], [], [], 0)[0]:
            self.shown += os.read(self._fd, 65536).decode(errors="replace")
        return text in self.shown


@contextmanager
def terminal(home: Path, *command: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        command,
        cwd=home,
        env=environment(home),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(ours)
    finally:
        shell.kill()
        shell.wait(DEADLINE_S)
        os.close(ours)


SHELL_SETUP = {
    "bash": (
        ("bash", "--norc", "--noprofile"),
        "bind 'set enable-bracketed-paste off'; PS1=; source completion.bash; PS1='rea''dy> '\n",
    ),
    "zsh": (
        ("zsh", "--no-rcs", "--no-globalrcs"),
        "unset zle_bracketed_paste; autoload -Uz compinit; compinit -u; source completion.zsh; "
        "PS1='rea''dy> '\n",
    ),
}


@pytest.mark.parametrize("shell", SHELL_SETUP)
def test_a_tab_completes_what_was_typed(shell: str, home: Path) -> None:
    need(shell)
    command, setup = SHELL_SETUP[shell]
    with terminal(home, *command) as screen:
        screen.type(setup)
        wait_until(lambda: screen.shows("ready> "), f"the prompt of {shell}")
        for typed, completed in CASES:
            screen.shown = ""
            screen.type(f"{typed}\t")
            whole = f"{typed.rpartition(' ')[0]} {completed}"
            wait_until(lambda whole=whole: screen.shows(whole), f"{whole!r}")  # type: ignore[misc]
            # Ctrl-U: the next line begins anew.
            screen.type("\x15")


def test_fish_completes_what_was_typed(home: Path) -> None:
    need("fish")
    asked = "; ".join(f"echo '> {typed}'; complete -C '{typed}'" for typed, _ in CASES)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source completion.fish; {asked}"],
        capture_output=True,
        check=True,
        cwd=home,
        env=environment(home),
        text=True,
        timeout=DEADLINE_S,
    )
    answers = done.stdout.split("> ")[1:]
    for (typed, completed), answer in zip(CASES, answers, strict=True):
        first, *offered = answer.splitlines()
        assert first == typed
        assert [line.split("\t")[0] for line in offered] == [completed]


def test_the_command_prints_the_script() -> None:
    done = run_command("completion", "zsh")
    assert (done.returncode, done.stdout, done.stderr) == (0, completion_script("zsh"), "")


def test_every_command_and_long_option_is_offered() -> None:
    """The question that all three scripts ask, once for each command there is."""
    cli.load_all()
    for name, command in cli.commands.items():
        done = run_command(
            environment={
                "_NUMBERS_URING_COMPLETE": "bash_complete",
                "COMP_WORDS": f"numbers-uring {name} --",
                "COMP_CWORD": "2",
            }
        )
        offered = {line.removeprefix("plain,") for line in done.stdout.splitlines()}
        options = {word for parameter in command.params for word in parameter.opts}
        assert offered >= {word for word in options if word.startswith("--")}, name


def test_an_unknown_shell_is_one_line_and_exit_2() -> None:
    assert_one_line_error(run_command("completion", "ksh"), 2, "ksh", "bash")
    assert_one_line_error(run_command("completion"), 2, "SHELL")


def test_a_script_that_cannot_be_printed_is_one_line_and_exit_3() -> None:
    command = f"'{sys.executable}' -m numbers_uring completion bash > /dev/full"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, check=False, text=True, timeout=DEADLINE_S
    )
    assert_one_line_error(done, 3, "standard output")
