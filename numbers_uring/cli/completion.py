"""The command `completion`: prints the script that makes a shell complete our command line."""

import click
from click.shell_completion import get_completion_class

from numbers_uring import __version__
from numbers_uring.cli.commands import COMPLETE_VARIABLE
from numbers_uring.cli.help import Command, HelpList
from numbers_uring.system.stdio import PROGRAM

SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str) -> str:
    """Return the script, with a newline at its end, for one of SHELLS.

    The script runs the program at each TAB, so it does not change when commands or options do.
    """
    complete = get_completion_class(shell)
    assert complete is not None, shell
    # Its method source() would check the version of some bash in $PATH, which need not be the bash
    # that reads the script.
    script = complete(click.Command(PROGRAM), {}, PROGRAM, COMPLETE_VARIABLE)
    return (script.source_template % script.source_vars()).strip() + "\n"


_EXAMPLES = (("Print the script for bash:", "completion bash"),)
_FOLDERS = HelpList(
    "Files",
    "Where new shells look for the script of one user:",
    (
        ("bash", f"{PROGRAM} in ~/.local/share/bash-completion/completions"),
        ("zsh", f"_{PROGRAM} in a folder that is in $fpath"),
        ("fish", f"{PROGRAM}.fish in ~/.config/fish/completions"),
    ),
)


@click.command(cls=Command, examples=_EXAMPLES, lists=[_FOLDERS])
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@click.version_option(__version__, prog_name=PROGRAM)
def completion(shell: str) -> None:
    """Print the script that makes SHELL (bash, zsh or fish) complete commands, options and values.

    Packages and wheels install these scripts where the shells look for them.

    Exit status: 0 printed, 2 wrong usage, 3 standard output cannot be written.
    """
    click.echo(completion_script(shell), nl=False)
