"""Builds what goes under PREFIX/share: the manual page, from click's own help, and the completions.

`python share/build_share.py DIRECTORY` writes them below DIRECTORY as they lie below PREFIX/share,
and so does building a wheel. (click-man, which makes a page for each command, neither escapes what
roff takes for its own nor knows of exit statuses and the environment.)
"""

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from numbers_uring import __version__
from numbers_uring.cli.commands import cli
from numbers_uring.cli.completion import completion_script
from numbers_uring.cli.environment import option_variables
from numbers_uring.cli.help import grouped_options, help_text
from numbers_uring.system.stdio import PROGRAM

MAN_PAGE = f"man/man1/{PROGRAM}.1"
COMPLETIONS = {
    "bash": f"bash-completion/completions/{PROGRAM}",
    "zsh": f"zsh/site-functions/_{PROGRAM}",
    "fish": f"fish/vendor_completions.d/{PROGRAM}.fish",
}

_SIGNALS = (
    ("SIGTERM, SIGINT", "Stop serve, as a client's terminate does: what was delivered is on file."),
    ("The same again", "While serve stops: exit at once, with 128 and the signal's number."),
    ("SIGHUP", "Reopen the log of serve under its name, after a rotation."),
    ("SIGUSR1", "Print a report at once."),
)
"""What the help of no command says."""

_RANGES = (
    (r"([^\s\[]+)<=x<=(\S+?)(?=[;\]])", r"\1 to \2"),
    (r"x>=(\S+?)(?=[;\]])", r"at least \1"),
    (r"x>(\S+?)(?=[;\]])", r"more than \1"),
)
"""How click writes the range of an option's value, and how the page does."""


_ROFF = str.maketrans(
    {
        "\\": r"\(rs",
        "'": r"\(aq",
        "`": r"\(ga",
        "^": r"\(ha",
        "~": r"\(ti",
        '"': r"\(dq",
        # A hyphen would not be the character that can be typed.
        "-": r"\-",
    }
)


def man_page(date: str) -> str:
    """Return the manual page, in roff's man macros, with `date` (YYYY-MM-DD) in its foot."""
    cli.load_all()
    source = _text(f"{PROGRAM} {__version__}")
    page = [f'.TH {_text(PROGRAM.upper())} 1 {date} "{source}" "User Commands"']
    # A broken name of an option or a package can't be copied.
    page += [".nh", ".ad l"]
    contexts = list(_contexts(_context(cli, PROGRAM, None)))
    summary = contexts[0].command.get_short_help_str(limit=200).rstrip(".")
    page += [".SH NAME", rf"{_text(PROGRAM)} \- {_text(summary)}"]
    page.append(".SH SYNOPSIS")
    for context in contexts:
        usage = context.command.collect_usage_pieces(context)
        page += [rf"\fB{_text(context.command_path)}\fR {_text(' '.join(usage))}", ".br"]
    del page[-1]
    page.append(".SH DESCRIPTION")
    page += _help(contexts[0])
    page.append(".SH OPTIONS")
    page += _options(contexts[0])
    page.append(".SH COMMANDS")
    for context in contexts[1:]:
        page.append(f".SS {_text(context.command_path)}")
        page += _help(context)
        page += _options(context)
        page += _lists(context)
    page.append(".SH EXIT STATUS")
    for context in contexts[1:]:
        page += _exit_status(context)
    page += [
        ".SH ENVIRONMENT",
        "An option on the command line takes precedence over its variable.",
        ".PD 0",
    ]
    page += _environment(contexts[1:])
    page += [".PD", ".SH FILES"]
    page += _files(contexts[1:])
    page.append(".SH SIGNALS")
    for signals, text in _SIGNALS:
        page += [".TP", rf"\fB{_text(signals)}\fR", _text(text)]
    page.append(".SH EXAMPLES")
    page += _examples(contexts)
    page += [".SH SEE ALSO", r"\fBio_uring\fR(7), \fBepoll\fR(7), \fBtcp\fR(7), \fBlogrotate\fR(8)"]
    return "\n".join(page) + "\n"


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """The command itself and all below it, in the order of the help."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and not command.hidden:
                yield from _contexts(_context(command, name, context))


def _help(context: click.Context) -> Iterator[str]:
    """The help's paragraphs but those that have sections of their own."""
    text = help_text(context.command)
    yield _text(text.summary)
    for paragraph in text.details:
        yield from (".PP", _text(paragraph))


def _options(context: click.Context) -> Iterator[str]:
    groups = grouped_options(context)
    for title, options in groups.items():
        if len(groups) > 1:
            yield from (".PP", rf"\fI{_text(title)}:\fR")
        for option in options:
            names, text = option.get_help_record(context) or ("", "")
            for pattern, words in _RANGES:
                text = re.sub(pattern, words, text)
            marked = re.sub(r"(?<![\w-])(?:\\-){1,2}\w(?:\w|\\-)*", r"\\fB\g<0>\\fR", _text(names))
            yield from (".TP", re.sub(r"\b[A-Z]{2,}|\bN\b", r"\\fI\g<0>\\fR", marked), _text(text))


def _lists(context: click.Context) -> Iterator[str]:
    for title, text, entries in getattr(context.command, "lists", ()):
        yield from (".PP", rf"\fI{_text(title)}:\fR {_text(text)}")
        for name, meaning in entries:
            yield from (".TP", rf"\fB{_text(name)}\fR", _text(meaning))


def _exit_status(context: click.Context) -> Iterator[str]:
    statuses = help_text(context.command).exit_status
    if statuses:
        yield f".SS {_text(context.command_path)}"
    for status, meaning in statuses:
        yield from (".TP", rf"\fB{status}\fR", _text(meaning))


def _examples(contexts: Iterable[click.Context]) -> Iterator[str]:
    """Those of the commands: a group has some of them again."""
    found = [
        example
        for context in contexts
        if not isinstance(context.command, click.Group)
        for example in getattr(context.command, "examples", ())
    ]
    for index, (text, arguments) in enumerate(found):
        if index > 0:
            yield ".PP"
        yield from (_text(text), ".PP", ".RS 4", ".nf")
        yield from (rf"\fB{_text(f'{PROGRAM} {arguments}')}\fR", ".fi", ".RE")


def _environment(contexts: Iterable[click.Context]) -> Iterator[str]:
    """Each variable once: commands may share it."""
    found: dict[tuple[str, str], list[str]] = {}
    for context in contexts:
        if not isinstance(context.command, click.Group):
            for option, name in option_variables(context.command):
                found.setdefault((name, option.opts[0]), []).append(str(context.info_name))
    for (variable, word), commands in found.items():
        bold = (rf"\fB{command}\fR" for command in commands)
        stands_for = rf"\fB{_text(word)}\fR of {' and '.join(bold)}"
        yield from (".TP", rf"\fB{_text(variable)}\fR", stands_for)


def _files(contexts: Iterable[click.Context]) -> Iterator[str]:
    found: dict[str, str] = {}
    for context in contexts:
        for option in context.command.get_params(context):
            if not isinstance(option, click.Option) or not isinstance(option.type, click.Path):
                continue
            # Without a default it is UNSET, click's own, which no reader knows.
            if isinstance(option.default, (str, Path)):
                found.setdefault(str(option.default), option.help or "")
    for name, text in found.items():
        yield from (".TP", rf"\fI{_text(name)}\fR", _text(text))


def _text(text: str) -> str:
    """Return `text` so that roff shows each character as it is, and takes none for a command."""
    shown = re.sub(
        r"[^\x00-\x7f]", lambda found: rf"\[u{ord(found[0]):04X}]", text.translate(_ROFF)
    )
    return rf"\&{shown}" if shown.startswith(".") else shown


def main() -> None:
    """Write all files."""
    share = Path(sys.argv[1])
    built_s = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    texts = {path: completion_script(shell) for shell, path in COMPLETIONS.items()}
    texts[MAN_PAGE] = man_page(time.strftime("%Y-%m-%d", time.gmtime(built_s)))
    for path, text in texts.items():
        (share / path).parent.mkdir(parents=True, exist_ok=True)
        (share / path).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
