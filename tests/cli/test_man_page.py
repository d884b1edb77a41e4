"""The manual page: accepted by roff's own checkers, complete, and each character as it was."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

import build_share
from numbers_uring.cli.commands import cli
from support.waiting import DEADLINE_S

CHECKERS = [
    ["mandoc", "-T", "lint", "-W", "warning"],
    ["groff", "-man", "-ww", "-z", "-T", "utf8"],
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "numbers-uring.1"
    path.write_text(build_share.man_page("2026-01-31"), encoding="ascii")
    return path


def shown(page: Path) -> str:
    """Return the page as a reader sees it, with each run of white space as one space."""
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(
        ["mandoc", "-T", "utf8", "-O", "width=1000", str(page)],
        capture_output=True,
        check=True,
        text=True,
        timeout=DEADLINE_S,
    )
    # Bold and italic are a character, a backspace and the character or an underline.
    plain = "".join(
        character
        for index, character in enumerate(done.stdout)
        if character != "\b" and done.stdout[index + 1 : index + 2] != "\b"
    )
    return " ".join(plain.split())


@pytest.mark.parametrize("checker", CHECKERS, ids=["mandoc", "groff"])
def test_the_page_has_nothing_to_be_warned_of(checker: list[str], page: Path) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"{checker[0]} is not installed")
    done = subprocess.run(
        [*checker, str(page)], capture_output=True, check=False, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_command_option_variable_and_exit_status_is_there(page: Path) -> None:
    text = shown(page)
    sections = "NAME SYNOPSIS DESCRIPTION OPTIONS COMMANDS", "EXIT STATUS", "ENVIRONMENT FILES"
    for section in [*sections[0].split(), sections[1], *sections[2].split(), "SIGNALS", "SEE ALSO"]:
        assert f" {section} " in text
    cli.load_all()
    for name, command in cli.commands.items():
        assert f"numbers-uring {name} [OPTIONS]" in text
        # A command may read the variables of another.
        prefix = command.context_settings.get("auto_envvar_prefix", f"NUMBERS_URING_{name.upper()}")
        for option in command.params:
            if not isinstance(option, click.Option):
                continue
            assert " ".join((option.help or "").split()) in text
            for word in option.opts:
                assert f" {word}" in text
            if option.expose_value:
                assert option.name is not None
                names = option.envvar or f"{prefix}_{option.name.upper()}"
                for variable in [names] if isinstance(names, str) else names:
                    line = rf" {variable} {option.opts[0]} of (\w+ and )*{name}\b"
                    assert len(re.findall(line, text)) == 1, variable
    assert "3 could not start 4 the log failed" in text
    assert "NUMBERS_URING_SERVE_CONCURRENT_CONNECTIONS" in text
    assert text.endswith("2026-01-31 NUMBERS-URING(1)")
    # What the sections have is not told a second time.
    assert "Exit status:" not in text
    assert "can also be set from the environment" not in text


def test_what_roff_takes_for_its_own_is_shown_as_it_is(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nasty = [r"\fBold\n", ".SH no section", "'br", '"quoted" `so` it\'s', "--a-b ~ ^ é §", "% #"]
    command = click.Command(
        "nasty",
        help="\n\n".join([*nasty, "Exit status: 0 fine, 1 . \\(aq."]),
        params=[click.Option(["--option"], help=rf"{nasty[0]} {nasty[3]}")],
    )
    monkeypatch.setitem(cli.commands, "nasty", command)
    page.write_text(build_share.man_page("2026-01-31"), encoding="ascii")
    for checker in CHECKERS:
        if shutil.which(checker[0]) is not None:
            test_the_page_has_nothing_to_be_warned_of(checker, page)
    text = shown(page)
    for line in nasty:
        assert line in text
    assert rf"--option TEXT {nasty[0]} {nasty[3]}" in text
    assert r"0 fine 1 . \(aq" in text


def test_a_hidden_command_and_a_hidden_option_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = click.Option(["--secret"], help="Not for all.", hidden=True)
    monkeypatch.setitem(cli.commands, "shown", click.Command("shown", params=[secret]))
    monkeypatch.setitem(cli.commands, "unseen", click.Command("unseen", hidden=True))
    page = build_share.man_page("2026-01-31")
    assert "numbers\\-uring shown" in page
    assert "unseen" not in page
    assert "secret" not in page.lower()


def test_the_range_of_a_value_is_written_in_words(page: Path) -> None:
    text = shown(page)
    assert not re.search(r"x[<>]|[<>]=?x", text)
    assert "[default: 4000; 0 to 65535]" in text


def test_no_name_of_a_python_object_is_shown(page: Path) -> None:
    assert "UNSET" not in shown(page)


def test_each_example_is_a_command_that_click_accepts(page: Path, tmp_path: Path) -> None:
    examples = re.findall(r"numbers-uring [a-z].*?(?= [A-Z]|$)", shown(page).split("EXAMPLES ")[1])
    assert len(examples) >= 5, examples
    for example in examples:
        _, name, *arguments = shlex.split(example)
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, example
        given = [str(tmp_path) if each == "numbers.log" else each for each in arguments]
        command.make_context(name, given)


def test_every_signal_that_the_server_takes_is_there(page: Path) -> None:
    signals = shown(page).split("SIGNALS ")[1]
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
        assert name in signals
