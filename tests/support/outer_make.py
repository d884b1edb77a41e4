"""What `make test` leaves in the environment that would change another make."""

import re
from collections.abc import Mapping

OF_MAKE = {
    "GNUMAKEFLAGS",
    "MAKEFILES",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "MAKE_TERMERR",
    "MAKE_TERMOUT",
    "MFLAGS",
}
READ_BY_TESTS = ("CLUSTER_", "SOAK_", "STOP_", "TEST_")


def without_outer_make(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without make's own variables, and those of its command line.

    Make passes both on to all that it runs. A `make test PYTHON=/usr/bin/python3` would otherwise
    tell each make that a test starts to use that Python's venv, and its jobs' descriptors, too.
    """
    _, *set_there = re.split(r"(?:^|\s)--\s", environment.get("MAKEFLAGS", ""), maxsplit=1)
    # Spaces within a value are escaped.
    words = re.findall(r"(?:[^\s\\]|\\.)+", "".join(set_there))
    names = {re.split(r"[:+?!]*=", word, maxsplit=1)[0] for word in words}
    gone = OF_MAKE | {name for name in names if not name.startswith(READ_BY_TESTS)}
    return {name: value for name, value in environment.items() if name not in gone}
