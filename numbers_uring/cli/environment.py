"""The variables that stand for options: their names, and the refusal of unknown ones."""

import os
import re
from collections.abc import Collection, Iterator

import click
from click.core import ParameterSource

from numbers_uring.system.stdio import PROGRAM

ENVIRONMENT_PREFIX = "NUMBERS_URING"
"""The prefix of the variables for options: PREFIX_COMMAND_OPTION."""

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
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            name_variables(each, f"{prefix}_{name.upper()}")


def option_variables(command: click.Command) -> Iterator[tuple[click.Option, str]]:
    """Yield each option that has a variable, with it; those of commands below it, too."""
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            for name in [option.envvar] if isinstance(option.envvar, str) else option.envvar or ():
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

    nearest = get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.8)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"{name} in the environment is no option of {PROGRAM}.{hint}"


def variable_with_bad_value(error: click.UsageError) -> str | None:
    """Return the variable that the value that `error` is about came from, if it did."""
    option = getattr(error, "param", None)
    context = error.ctx
    if not isinstance(option, click.Option) or option.name is None or context is None:
        return None
    if context.get_parameter_source(option.name) != ParameterSource.ENVIRONMENT:
        return None
    names = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
    return next((name for name in names if os.environ.get(name)), None)
