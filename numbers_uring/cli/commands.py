"""All commands by name; the module of a command is imported only when that command is called."""

from importlib import import_module

import click

from numbers_uring import __version__
from numbers_uring.cli.environment import (
    ENVIRONMENT_PREFIX,
    name_variables,
    require_known_variables,
)
from numbers_uring.cli.help import Group
from numbers_uring.system.stdio import PROGRAM

COMPLETE_VARIABLE = f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE"
"""What the completion scripts set, by click's own rule, to ask for completions."""

_SHORT_HELPS = {
    "serve": "Run a server.",
    "doctor": "Check whether a server would start on this host.",
    "status": "Show what a server does now.",
    "load": "Send numbers to a server and measure the rate.",
    "check": "Check logs and repair them.",
    "cluster": "Create, watch and verify a cluster.",
    "collect": "Write the logs of a cluster's partitions.",
    "completion": "Print a shell's completion script.",
}
"""The command NAME is the object `NAME` of the module numbers_uring.cli.NAME."""

_ASKS = {"-h", "--help", "--version"}
"""What needs no option, and so no variable that is right."""


class LazyGroup(Group):
    """A group whose commands are stand-ins with a short help, until one of them is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is None:
            return name, command, rest
        loaded = self._loaded(command)
        if not ctx.resilient_parsing and not _ASKS.intersection(rest):
            others = self.commands.keys() - {str(name)}
            require_known_variables(ctx, loaded, others)
        return name, loaded, rest

    def load_all(self) -> None:
        """Replace all stand-ins, for code that reads the options of all commands."""
        for command in [*self.commands.values()]:
            self._loaded(command)

    def _loaded(self, command: click.Command) -> click.Command:
        if not isinstance(command, _StandIn):
            return command
        loaded: click.Command = getattr(
            import_module(f"numbers_uring.cli.{command.name}"), str(command.name)
        )
        loaded.short_help = command.short_help
        name_variables(loaded, f"{ENVIRONMENT_PREFIX}_{str(command.name).upper()}")
        self.add_command(loaded)
        return loaded


class _StandIn(click.Command):
    pass


@click.group(
    cls=LazyGroup,
    commands=[_StandIn(name, short_help=text) for name, text in _SHORT_HELPS.items()],
    examples=(
        ("Run a server for this host, on port 4000, with the log numbers.log:", "serve"),
        ("Send it a million numbers, from another terminal:", "load --numbers 1000000"),
    ),
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """A TCP server for Linux that stores nine-digit numbers, each of them once."""
