"""What a command's help has in it: -h shows a short screen, --help everything.

cloup lays the help out, in cli.help_layout, which only a help imports: importing cloup takes a
third of the time that all other modules of `serve` take. So commands and options are click's, and
`option_group` is written here; it is used as cloup's own is.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import cleandoc
from typing import Any, NamedTuple, TypeVar

import click

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

_EXIT_STATUS = "Exit status: "
_ENVIRONMENT = "Every option can also be set from the environment"


class HelpList(NamedTuple):
    """Words that are explained below the options, for example the values of an option."""

    title: str
    text: str
    entries: Sequence[tuple[str, str]]


class HelpText(NamedTuple):
    """A command's help text in its parts."""

    summary: str
    details: Sequence[str]
    environment: str
    """How options are set from the environment, if the command has options for that."""
    exit_status: Sequence[tuple[str, str]]


def help_text(command: click.Command) -> HelpText:
    summary, *paragraphs = (
        " ".join(part.split()) for part in re.split(r"\n{2,}", cleandoc(command.help or ""))
    )
    details, environment, statuses = [], "", []
    for paragraph in paragraphs:
        if paragraph.startswith(_EXIT_STATUS):
            text = paragraph.removeprefix(_EXIT_STATUS).rstrip(".")
            for item in re.split(r"[,;] (?=\d+ )", text):
                status, meaning = item.split(" ", maxsplit=1)
                statuses.append((status, meaning))
        elif paragraph.startswith(_ENVIRONMENT):
            environment = paragraph
        else:
            details.append(paragraph)
    return HelpText(summary, details, environment, statuses)


def option_group(
    title: str, *options: Callable[[_Decorated], _Decorated]
) -> Callable[[_Decorated], _Decorated]:
    """Decorate a command with `options`; its help shows them in this order, below `title`."""

    def decorate(command: _Decorated) -> _Decorated:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].group = title  # type: ignore[attr-defined]  # as in cloup
        return command

    return decorate


def grouped_options(context: click.Context) -> dict[str, list[click.Option]]:
    """Return the options that a help shows, by the titles of their groups.

    Those without a group are the last ones, and their title is "Other options", or "Options" if
    there is no other group.
    """
    groups: dict[str, list[click.Option]] = {}
    others: list[click.Option] = []
    for option in context.command.get_params(context):
        if not isinstance(option, click.Option) or option.hidden:
            continue
        title = getattr(option, "group", None)
        (others if title is None else groups.setdefault(title, [])).append(option)
    return groups | {"Other options" if groups else "Options": others}


class Command(click.Command):
    """A command with examples, and with lists of words below its options."""

    def __init__(
        self,
        name: str | None = None,
        *,
        examples: Sequence[tuple[str, str]] = (),
        lists: Sequence[HelpList] = (),
        context_settings: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        ours = {"show_default": True, "help_option_names": ["--help"]}
        super().__init__(name, context_settings=ours | dict(context_settings or {}), **settings)
        self.examples = examples
        """What one does, and the arguments to do it."""
        self.lists = lists
        self.params.append(
            click.Option(
                ["-h"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_show_short_help,
                help="Show examples and the names of the options.",
            )
        )

    def get_help(self, ctx: click.Context) -> str:
        from numbers_uring.cli.help_layout import long_help

        return long_help(ctx)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "Show this message."
        return option


class Group(click.Group):
    """A group with examples; it lists its commands as they are declared: first the most used."""

    def __init__(
        self,
        name: str | None = None,
        *,
        examples: Sequence[tuple[str, str]] = (),
        context_settings: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        ours = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        super().__init__(name, context_settings=ours | dict(context_settings or {}), **settings)
        self.examples = examples

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "Show this message, or after COMMAND how to use that."
        return option

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def get_help(self, ctx: click.Context) -> str:
        from numbers_uring.cli.help_layout import long_help

        return long_help(ctx)


def _show_short_help(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from numbers_uring.cli.help_layout import short_help

        click.echo(short_help(context))
        context.exit()
