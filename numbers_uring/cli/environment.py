"""The variables that stand for options: their names, and the refusal of unknown ones."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

import click
from click.core import ParameterSource

from numbers_uring.cli.types import Flag
from numbers_uring.config import LogFormat
from numbers_uring.system.stdio import PROGRAM

ENVIRONMENT_PREFIX = "NUMBERS_URING"
"""The prefix of the variables for options: PREFIX_COMMAND_OPTION."""

_READS_VARIABLES_OF = {"DOCTOR": "SERVE"}
_SERVICE_LINK = re.compile(rf"{ENVIRONMENT_PREFIX}_(SERVICE_(HOST|PORT)|PORT)(_.*)?")
"""What Kubernetes sets in each pod beside a service that is named numbers-uring."""


def name_variables(command: click.Command, prefix: str) -> None:
    """Give each option of `command` its variable by its name on the command line.

    click names it after the function's parameter, which for --json is as_json.
    """
    prefix = command.context_settings.get("auto_envvar_prefix", prefix)
    for option in command.params:
        if isinstance(option, click.Option) and option.expose_value and option.envvar is None:
            name = max(option.opts, key=len).lstrip("-").replace("-", "_").upper()
            option.envvar = f"{prefix}_{name}"
            if option.is_bool_flag:
                option.type = Flag()
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            name_variables(each, f"{prefix}_{name.upper()}")


def option_variables(command: click.Command) -> Iterator[tuple[click.Option, str]]:
    """Yield each option that has a variable, with it; those of commands below it, too."""
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            for name in _variables(option):
                yield option, name
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from option_variables(each)


def require_known_variables(
    context: click.Context, command: click.Command, others: Collection[str]
) -> None:
    """Raise click.UsageError for a variable with our prefix that stands for no option.

    A misspelled one would be ignored, and the server would do what its operator has excluded.
    Variables of `others`, the names of the commands that are not run, are left to them.
    """
    known = {name for _, name in option_variables(command)}
    prefixes = {prefix for prefix in map(_command_prefix, known) if prefix is not None}
    of_others = {f"{ENVIRONMENT_PREFIX}_{name.upper()}_" for name in others} - prefixes
    for name in sorted(os.environ):
        if (
            name.startswith(f"{ENVIRONMENT_PREFIX}_")
            and name not in known
            and not name.startswith(tuple(of_others))
            and not _SERVICE_LINK.fullmatch(name)
        ):
            raise click.UsageError(_unknown_text(name, known), context)


def _command_prefix(variable: str) -> str | None:
    found = re.match(rf"{ENVIRONMENT_PREFIX}_[A-Z]+_", variable)
    return None if found is None else found[0]


def _unknown_text(name: str, known: Collection[str]) -> str:
    # Here, because it is only needed for an error.
    from difflib import get_close_matches

    # By what differs: a long prefix that is right makes any two names alike.
    prefix = _command_prefix(name) or ""
    same = [each for each in sorted(known) if prefix and each.startswith(prefix)]
    rests = [each.removeprefix(prefix) for each in same]
    nearest = get_close_matches(name.removeprefix(prefix).upper(), rests, n=1, cutoff=0.7)
    if not nearest:
        prefix, nearest = "", get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.9)
    hint = f" Did you mean {prefix}{nearest[0]}?" if nearest else ""
    return f"{name} in the environment is no option of {PROGRAM}.{hint}"


def early_log_format(arguments: Sequence[str]) -> LogFormat:
    """Return the format that the command line or else the environment asks for.

    For errors about options, which come before click has read --log-format.
    """
    command = next((word for word in arguments if not word.startswith("-")), "").upper()
    command = _READS_VARIABLES_OF.get(command, command)
    value = os.environ.get(f"{ENVIRONMENT_PREFIX}_{command}_LOG_FORMAT")
    for word, next_word in pairwise([*arguments, ""]):
        option, equals, text = word.partition("=")
        if option == "--log-format":
            value = text if equals else next_word
    return LogFormat.JSON if value == LogFormat.JSON.value else LogFormat.TEXT


def source_text(error: click.UsageError) -> str:
    """Return a sentence for each value that `error` is about and that came from a variable."""
    context = error.ctx
    if context is None:
        return ""
    about = getattr(error, "param", None)
    sentences = []
    for option in [about] if about else _named_options(error.message, context):
        variable = _variable_in_use(option, context)
        if variable is not None:
            what = "It" if about else option.opts[0]
            sentences.append(f" {what} comes from {variable}.")
    return "".join(sentences)


def _variable_in_use(option: click.Parameter, context: click.Context) -> str | None:
    if not isinstance(option, click.Option) or option.name is None:
        return None
    if context.get_parameter_source(option.name) != ParameterSource.ENVIRONMENT:
        return None
    return next((name for name in _variables(option) if os.environ.get(name)), None)


def _named_options(message: str, context: click.Context) -> list[click.Parameter]:
    named = set(re.findall(r"--[a-z][a-z-]*", message))
    return [each for each in context.command.params if named.intersection(each.opts)]


def _variables(option: click.Option) -> Sequence[str]:
    return [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
