"""Lays out a command's help, as wide as the terminal, with the formatter of cloup."""

import re
import textwrap
from collections.abc import Iterable, Sequence

import click
from cloup import HelpFormatter
from cloup.formatting import HelpSection

from numbers_uring.cli.help import HelpList, grouped_options, help_text
from numbers_uring.limits import HELP_COLUMNS_MIN
from numbers_uring.system.stdio import PROGRAM

_HYPHEN, _SPACE, _BREAK = "\ue000", "\ue001", "\ue002"
"""The first two stand for these characters, until the lines are made, where a line may not end: a
hyphen is within an option or a name, and a space may be within brackets. Where _BREAK is, one may
end."""
_LONG = re.compile("--")


def long_help(context: click.Context) -> str:
    """Return everything: examples, what there is to know, options or commands, and more lists."""
    page, command = _Page(context), context.command
    text = help_text(command)
    page.write_head()
    for paragraph in text.details:
        page.write_paragraph(paragraph)
    if isinstance(command, click.Group):
        page.write_lists([HelpList("Commands", "", _commands(command, context))])
    page.write_lists(
        [
            HelpList(title, "", [_row(option, context) for option in options])
            for title, options in grouped_options(context).items()
        ]
    )
    for each in getattr(command, "lists", ()):
        page.write_lists([each])
    if text.environment:
        page.write_section("Environment", text.environment)
    if text.exit_status:
        page.write_lists([HelpList("Exit status", "", text.exit_status)])
    return page.text()


def short_help(context: click.Context) -> str:
    """Return what fits on one screen: examples, and the names of the options in their groups."""
    page = _Page(context)
    page.write_head()
    names = {
        title: " ".join(
            next(filter(_LONG.match, option.opts), option.opts[0]) for option in options
        )
        for title, options in grouped_options(context).items()
        if title != "Other options"
    }
    if "Options" in names:
        page.write_section("Options", names["Options"])
    else:
        page.write_lists([HelpList("Options", "", list(names.items()))])
    page.write_paragraph(f"'{context.command_path} --help' explains them.")
    return page.text()


class _Page:
    """The text of one help, as far as it is written."""

    def __init__(self, context: click.Context) -> None:
        self._context = context
        self._formatter = HelpFormatter(
            width=context.terminal_width, max_width=context.max_content_width
        )
        # Nothing can be laid out in less; a terminal that narrow breaks the lines by itself.
        self._formatter.width = max(self._formatter.width, HELP_COLUMNS_MIN)

    def text(self) -> str:
        text = self._formatter.getvalue().rstrip("\n").replace(_HYPHEN, "-").replace(_SPACE, " ")
        # click ends the first line of a usage that it breaks with a space.
        return re.sub(" +$", "", text, flags=re.MULTILINE)

    def write_head(self) -> None:
        """Write the usage, what the command does in a sentence, and the examples."""
        context, formatter = self._context, self._formatter
        usage = " ".join(context.command.collect_usage_pieces(context))
        formatter.write_usage(_glued(context.command_path), _glued(usage))
        self.write_paragraph(help_text(context.command).summary)
        examples: Iterable[tuple[str, str]] = getattr(context.command, "examples", ())
        if examples:
            self._write_heading("Examples")
        for what, arguments in examples:
            with formatter.indentation():
                formatter.write_text(_glued(what))
                with formatter.indentation():
                    self._write_command(f"{PROGRAM} {arguments}")

    def write_paragraph(self, text: str) -> None:
        self._formatter.write("\n")
        with self._formatter.indentation():
            self._formatter.write_text(_glued(text))

    def write_section(self, title: str, text: str) -> None:
        self._write_heading(title)
        with self._formatter.indentation():
            self._formatter.write_text(_glued(text))

    def write_lists(self, lists: Sequence[HelpList]) -> None:
        """Write lists whose explanations begin in the same column."""
        self._formatter.write_many_sections(
            [
                HelpSection(
                    heading=each.title,
                    help=_glued(each.text) or None,
                    definitions=[
                        (self._in_lines(name), _glued(text)) for name, text in each.entries
                    ],
                )
                for each in lists
            ]
        )

    def _in_lines(self, name: str) -> str:
        """Return an option's names and values, in several lines where one has no room for them."""
        columns = self._formatter.width - 2
        glued = _glued(name)
        if len(name) <= columns:
            return glued
        # Lines end behind a space or a bar.
        wrapped = textwrap.wrap(
            glued.replace("|", f"|{_BREAK} "), columns - 4, subsequent_indent="    "
        )
        lines = "\n  ".join(wrapped)
        return lines.replace(f"{_BREAK} ", "").replace(_BREAK, "")

    def _write_command(self, command: str) -> None:
        """Write it so that it can be copied, also where it needs several lines."""
        indent = " " * self._formatter.current_indent
        lines = [f"{indent}{command}"]
        if len(lines[0]) > self._formatter.width:
            # An option and its value stay in one line.
            lines = textwrap.wrap(
                _glued(re.sub(r"( --\S+) (?!-)", rf"\1{_SPACE}", command)),
                self._formatter.width - len(" \\"),
                initial_indent=indent,
                subsequent_indent=f"{indent}  ",
            )
        self._formatter.write(" \\\n".join(lines), "\n")

    def _write_heading(self, title: str) -> None:
        self._formatter.write("\n")
        self._formatter.write_heading(title)


def _glued(text: str) -> str:
    return text.replace("-", _HYPHEN)


def _commands(group: click.Group, context: click.Context) -> list[tuple[str, str]]:
    commands = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    return [
        (name, command.short_help or help_text(command).summary)
        for name, command in commands
        if command is not None and not command.hidden
    ]


def _row(option: click.Option, context: click.Context) -> tuple[str, str]:
    """Return what click shows of it but its range, which an error about a value names."""
    names, _ = option.get_help_record(context) or ("", "")
    extra = option.get_help_extra(context)
    notes = ["required"] if "required" in extra else []
    if "default" in extra:
        notes.append(f"default: {extra['default']}")
    kept = "; ".join(notes).replace(" ", _SPACE)
    return names, (option.help or "") + (f"  [{kept}]" if kept else "")
