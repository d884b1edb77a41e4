"""What fails, wherever it fails, is one line and an exit code; an interrupt is silent."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from numbers_uring.cli.commands import cli
from support.processes import assert_one_line_error, run_command, run_text
from support.waiting import DEADLINE_S

BOUNDARY = """
import errno, importlib.abc, os, resource, signal, sys

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

kind, arguments, left = sys.argv[1], sys.argv[3:], int(sys.argv[2])
sys.argv[1:] = arguments

class Faults(importlib.abc.MetaPathFinder):
    over = False

    def find_spec(self, name, path, target=None):
        global left
        # What the error itself is written with.
        self.over = self.over or name == "numbers_uring.system.nonblocking"
        if self.over:
            return
        left -= 1
        if left == 0:
            if kind == "SIGINT":
                os.kill(os.getpid(), signal.SIGINT)
            elif kind in {"cause", "context"}:
                try:
                    raise KeyboardInterrupt
                except KeyboardInterrupt as interrupt:
                    error = RuntimeError("Error calling __set_name__")
                    if kind == "context":
                        raise error
                    raise error from interrupt
            elif kind != "none":
                raise {"OSError": OSError(errno.EIO, os.strerror(errno.EIO)),
                       "MemoryError": MemoryError(),
                       "ImportError": ImportError("broken")}[kind]

from numbers_uring.cli.main import main
sys.meta_path.insert(0, Faults())
try:
    main()
finally:
    if kind == "none":
        print(-left, file=sys.stderr)
"""
"""Runs the program; while the Nth module is looked for, something happens."""


def run_with_fault(kind: str, nth: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_text(
        [sys.executable, "-c", BOUNDARY, kind, str(nth), *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
    )


ARGUMENTS = ("serve", "--max-clients", "999999")
"""Fails, after everything has been imported, and before signals are caught."""


@pytest.fixture(scope="module")
def imports() -> int:
    """How many modules are looked for on the way."""
    done = run_with_fault("none", 0, *ARGUMENTS)
    return int(done.stderr.splitlines()[-1])


def places(imports: int) -> Iterator[int]:
    """Yield the first modules, the last ones, and some between."""
    assert imports > 50
    yield from {1, 2, 3, *range(4, imports, imports // 12), imports - 1, imports}


@pytest.mark.parametrize("kind", ["SIGINT", "cause", "context"])
def test_an_interrupt_while_modules_are_imported_is_silent(kind: str, imports: int) -> None:
    """Also where it reaches us as the cause, or in the context, of another error."""
    for nth in places(imports):
        done = run_with_fault(kind, nth, *ARGUMENTS)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), nth


@pytest.mark.parametrize(
    ("kind", "word"),
    [("OSError", "Input/output"), ("MemoryError", "emory"), ("ImportError", "broken")],
)
def test_a_module_that_cannot_be_imported_is_one_line_and_exit_3(
    kind: str, word: str, imports: int
) -> None:
    for nth in places(imports):
        done = run_with_fault(kind, nth, *ARGUMENTS)
        # Without some of the standard library's modules it is done in another way.
        assert_one_line_error(done, 3, "" if "descriptors" in done.stderr else word)


# What no one expected.

UNEXPECTED = """
import sys
from numbers_uring.server import steps

def fails(*_, **__):
    raise {error}

steps.choose_kernel = fails
sys.argv[1:] = ["serve", "--port", "0", *sys.argv[1:]]
from numbers_uring.cli.main import main
main()
"""


def run_unexpected(error: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_text(
        [sys.executable, "-c", UNEXPECTED.format(error=error), *options],
        capture_output=True,
        cwd=cwd,
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("OSError(5, 'Input/output error')", ("OSError", "Input/output error", "server/steps.py")),
        ("MemoryError", ("not enough memory",)),
        ("RuntimeError('two\\nlines')", ("RuntimeError", "two lines")),
        ("ZeroDivisionError", ("ZeroDivisionError",)),
    ],
)
def test_what_no_one_expected_has_a_traceback_only_with_verbose(
    error: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_one_line_error(run_unexpected(error, cwd=tmp_path), 3, *words)
    done = run_unexpected(error, "--verbose", cwd=tmp_path)
    assert done.returncode == 3
    first, *others = done.stderr.splitlines()
    assert first.startswith("numbers-uring: error: ")
    assert all(line.startswith("numbers-uring: ") for line in others)
    assert any("Traceback" in line for line in others)
    assert list(tmp_path.iterdir()) == []


# Standard output.


def all_commands(group: click.Group = cli, *before: str) -> Iterator[tuple[str, ...]]:
    cli.load_all()
    yield before
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, *before, name)
        else:
            yield (*before, name)


PRINTS = [
    *((*command, option) for command in all_commands() for option in ("--help", "--version")),
    *(("completion", shell) for shell in ("bash", "zsh", "fish")),
    ("check", os.devnull),
    ("doctor", "--port", "0"),
    ("doctor", "--port", "0", "--json"),
]


@pytest.mark.parametrize("arguments", PRINTS, ids=" ".join)
def test_what_cannot_be_printed_is_one_line_and_exit_3(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    if arguments == ("check", os.devnull):
        arguments = ("check", str(tmp_path / "numbers.log"))
        (tmp_path / "numbers.log").touch()
    for redirection, word in ((">/dev/full", "No space left"), (">&-", "closed")):
        shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
        done = run_command(*arguments, prefix=shell, cwd=tmp_path)
        assert_one_line_error(done, 3, "cannot write to standard output", word)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    process = run_text(
        [sys.executable, "-m", "numbers_uring", *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=write_fd,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
    )
    os.close(write_fd)
    process.stdout = ""
    assert_one_line_error(process, 3, "cannot write to standard output", "Broken pipe")


@pytest.mark.parametrize("command", list(all_commands()), ids=" ".join)
def test_every_command_has_a_version(command: tuple[str, ...]) -> None:
    done = run_command(*command, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("numbers-uring, version ")


def test_a_printed_line_waits_for_room_in_a_pipe_that_does_not_block() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    filled = 0
    while True:
        try:
            filled += os.write(write_fd, bytes(4096))
        except BlockingIOError:
            break
    command = [sys.executable, "-m", "numbers_uring", "--help"]
    with subprocess.Popen(command, stdout=write_fd, stderr=subprocess.PIPE, text=True) as process:
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as pipe:
            printed = pipe.read()[filled:]
        assert process.wait(DEADLINE_S) == 0
    assert b"serve" in printed


# Standard error.


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&1 | true"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("cluster",), 2), (("collect",), 2), (("nonsense",), 2), (("check", "missing"), 3)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_exit_code_does_not_depend_on_standard_error(
    arguments: tuple[str, ...], code: int, redirection: str, tmp_path: Path
) -> None:
    shell = ("bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash")
    done = run_command(*arguments, prefix=shell, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


# A working directory that is gone.


@pytest.mark.parametrize(
    ("arguments", "codes", "words"),
    [
        (("--version",), {0}, ""),
        (("serve", "--port", "0"), {3}, "cannot open the log numbers.log"),
        (("serve", "--port", "0", "--profile", "flames.svg"), {3}, "flames.svg"),
        (("serve", "--listen", "unix:numbers.sock"), {3}, "numbers.sock"),
        (("doctor", "--port", "0"), {1}, "would not start: cannot open the log numbers.log"),
        (("check", "numbers.log"), {3}, "numbers.log"),
        (("check", "--repair", "numbers.log"), {3}, "numbers.log"),
        (("load", "--port", "1", "--numbers", "1"), {3}, "refused"),
        (("load", "--port", "1", "--plot", "rate.svg"), {3}, ""),
        (
            ("collect", "--partitions", "0", "--log-dir", "logs", "--nats", "nats://[::1]:1"),
            {3},
            "",
        ),
        (("cluster", "status", "--nats", "nats://[::1]:1"), {3}, ""),
        (("completion", "bash"), {0}, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_working_directory_that_is_gone_is_one_line(
    arguments: tuple[str, ...], codes: set[int], words: str, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    prefix = ("sh", "-c", f'rmdir "{gone}" && exec "$@"', "sh")
    done = run_command(*arguments, prefix=prefix, cwd=gone)
    assert done.returncode in codes, done.stderr
    assert words in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (1 if done.returncode == 3 else 0)


# What is imported.

HEAVY = ("asyncio", "ssl", "nats", "numbers_uring.server", "numbers_uring.cluster.connection")
"""Too heavy for an answer that a person, or a shell at each TAB, waits for."""

LISTING = """
import os, sys
from numbers_uring.cli.main import main
sys.argv[1:] = sys.argv[2:] if len(sys.argv) > 1 else []
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def questions() -> Iterator[tuple[str, ...]]:
    for command in all_commands():
        yield (*command, "--version")
        yield (*command, "--help")
        yield (*command, "-h")


def completions() -> Iterator[str]:
    yield from ("", "se", "--")
    for command in all_commands():
        yield " ".join((*command, "--"))
    yield "serve --when-full "


def imported(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    modules = done.stderr.split()
    assert "click" in modules
    return [module for module in modules if module.startswith(HEAVY)]


def run_listing(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return run_text(
        [sys.executable, "-c", LISTING, "--", *arguments],
        capture_output=True,
        env={**os.environ, **(environment or {})},
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize("arguments", list(questions()), ids=" ".join)
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert imported(run_listing(*arguments)) == []


def test_what_lays_out_the_help_is_imported_by_no_start(tmp_path: Path) -> None:
    done = run_listing("serve", "--listen", f"unix:{tmp_path}/missing/socket")
    assert done.returncode == 3
    modules = done.stderr.split()
    assert "numbers_uring.server.run" in modules
    assert [module for module in modules if module.startswith("cloup")] == []
    assert "cloup" in run_listing("serve", "--help").stderr.split()


@pytest.mark.parametrize("line", list(completions()))
def test_a_tab_imports_nothing_heavy(line: str) -> None:
    words = f"numbers-uring {line}"
    environment = {
        "_NUMBERS_URING_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = run_listing(environment=environment)
    assert imported(done) == []
    assert done.stdout.strip()


def test_the_overview_imports_no_command() -> None:
    modules = run_listing("--help").stderr.split()
    commands = {f"numbers_uring.cli.{name}" for name in cli.commands}
    assert commands.isdisjoint(modules)


def test_after_the_end_of_a_command_signals_do_nothing() -> None:
    script = (
        "import atexit, os, signal, sys\n"
        "from numbers_uring.cli.main import main\n"
        "sys.argv[1:] = ['--version']\n"
        "numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]\n"
        "atexit.register(lambda: [os.kill(os.getpid(), number) for number in numbers])\n"
        "main()\n"
    )
    done = run_text(
        [sys.executable, "-c", script],
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
