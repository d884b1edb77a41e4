"""Help: examples first, options in groups, nothing cut short, never wider than the terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import click
import pytest

from numbers_uring.cli.commands import cli
from numbers_uring.cli.help import grouped_options, help_text
from numbers_uring.cli.help_layout import long_help, short_help
from support.waiting import DEADLINE_S

SCREEN = (80, 24)
WITHOUT_GROUPS = {"status", "check", "completion"}
"""These commands have so few options that they need no groups."""


def contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name, command in context.command.commands.items():
            settings = command.context_settings
            yield from contexts(click.Context(command, context, name, **settings))


cli.load_all()
CONTEXTS = list(contexts(click.Context(cli, None, "numbers-uring", **cli.context_settings)))
each_command = pytest.mark.parametrize("context", CONTEXTS, ids=lambda each: each.command_path)


def is_group(context: click.Context) -> bool:
    return isinstance(context.command, click.Group)


@pytest.fixture(autouse=True)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    columns = int(getattr(request, "param", SCREEN[0]))
    monkeypatch.setenv("COLUMNS", str(columns))
    return columns


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@each_command
@pytest.mark.parametrize("width", [40, 60, 61, 72, 80, 100, 300], indirect=True)
def test_no_line_is_wider_than_the_terminal(context: click.Context, width: int) -> None:
    pages = [long_help(context)] + ([] if is_group(context) else [short_help(context)])
    for page in pages:
        lines = page.splitlines()
        assert [line for line in lines if len(line) > min(width, 100)] == []
        # No option and no name may be taken for a part of one.
        assert [line for line in lines if line.endswith(("-", " "))] == []


@pytest.mark.parametrize("width", [0, 1, 2, 5, 9, 13, 20], indirect=True)
def test_any_width_is_enough_for_a_help(width: int) -> None:
    for context in CONTEXTS:
        pages = [long_help(context)] + ([] if is_group(context) else [short_help(context)])
        assert all("Usage:" in page for page in pages), width


@each_command
def test_the_short_help_fits_on_one_screen(context: click.Context) -> None:
    page = long_help(context) if is_group(context) else short_help(context)
    # The shell's next prompt needs a line, too.
    assert len(page.splitlines()) < SCREEN[1], page


@each_command
@pytest.mark.parametrize("layout", [short_help, long_help])
def test_examples_come_before_commands_and_options(context: click.Context, layout: object) -> None:
    assert callable(layout)
    page = layout(context)
    headings = [line for line in page.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[0] == "Examples:", page
    assert f"    {context.command_path} " in f"{page} " or is_group(context)


@each_command
@pytest.mark.parametrize("width", [60, 80], indirect=True)
def test_the_help_of_a_command_has_all_of_it(context: click.Context, width: int) -> None:
    page = in_one_line(long_help(context))
    command, text = context.command, help_text(context.command)
    for part in (text.summary, *text.details, text.environment):
        assert part in page
    for status, meaning in text.exit_status:
        assert f" {status} {meaning}" in page
    for options in grouped_options(context).values():
        for option in options:
            assert in_one_line(option.help or "") in page
            assert all(f" {name}" in page for name in option.opts)
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            assert each.short_help
            assert f" {name} {each.short_help}" in page


@each_command
@pytest.mark.parametrize("width", [60, 80, 100], indirect=True)
def test_an_example_can_be_copied(context: click.Context, width: int) -> None:
    """It is one command for a shell, also where it needs several lines."""
    page = f"{long_help(context)}\n"
    for _, arguments in vars(context.command)["examples"]:
        assert f"\n    numbers-uring {arguments}\n" in re.sub(r" \\\n +", " ", page)
    # No option is without its value.
    assert set(re.findall(r" \\\n +(..)", page)) <= {"--"}


@each_command
def test_the_short_help_names_the_options_of_all_groups(context: click.Context) -> None:
    if not is_group(context):
        words = short_help(context).split()
        for option in context.command.get_params(context):
            if isinstance(option, click.Option) and hasattr(option, "group"):
                assert set(words).intersection(option.opts)


@each_command
def test_options_are_in_groups_where_there_are_many(context: click.Context) -> None:
    groups = grouped_options(context)
    rest = [option.opts[-1] for option in groups[list(groups)[-1]]]
    if context.command.name not in WITHOUT_GROUPS and not is_group(context):
        assert list(groups)[-1] == "Other options"
        assert rest == ["--version", "-h", "--help"]
    for title, options in groups.items():
        assert len(options) <= 7, title


def test_the_groups_of_serve_begin_with_the_most_used_one() -> None:
    (context,) = (each for each in CONTEXTS if each.command.name == "serve")
    groups = grouped_options(context)
    titles = ["Listening", "Clients", "Log", "Cluster", "Observing", "Tuning", "Other options"]
    assert list(groups) == titles
    firsts = [options[0].opts[0] for options in groups.values()][:-1]
    expected = ["--port", "--max-clients", "--log-file", "--forward", "--metrics", "--reactors"]
    assert firsts == expected


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_a_narrow_terminal_is_asked_for_its_width(option: str) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "numbers_uring", "serve", option]
    shown = b""
    with subprocess.Popen(command, stdout=follower, env=environment) as process:
        os.close(follower)
        try:
            while piece := os.read(leader, 65536):
                shown += piece
        except OSError:  # how a terminal without users says that it is at its end
            pass
        assert process.wait(DEADLINE_S) == 0
    os.close(leader)
    widths = [len(line) for line in shown.decode().splitlines()]
    assert 50 < max(widths) <= 60
