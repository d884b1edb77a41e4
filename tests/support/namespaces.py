"""Commands in Linux namespaces of their own, as containers are made of them."""

import subprocess
from pathlib import Path

from support.processes import run_text
from support.waiting import DEADLINE_S

AS_PID_1 = ("--pid", "--fork", "--kill-child", "--mount-proc")
"""Options of unshare that make the command process number 1 of its namespace."""

NOBODY = 65534


def confined(setup: str, *options: str) -> list[str]:
    """Return what to put in front of a command that is to run in namespaces of its own.

    `options` are unshare's; `setup` is done in the namespaces, by a shell.
    """
    return ["unshare", *options, "sh", "-ec", f'{setup}\nexec "$@"', "sh"]


def without_rights(user: int = NOBODY) -> list[str]:
    """Return what to put in front of a command to take root's rights from it."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return run_text(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=DEADLINE_S)


def children(pid: int) -> list[tuple[int, str]]:
    """Return the process numbers and states of the children of `pid`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = status.read_text().partition(" (")
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended meanwhile.
        state, parent = rest.rpartition(") ")[2].split()[:2]
        if int(parent) == pid:
            found.append((int(number), state))
    return found
