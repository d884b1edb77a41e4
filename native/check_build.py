"""Names what this host lacks to build the extension, a line each with Debian's package.

`PYTHON native/check_build.py` exits with 1 if anything is missing. It runs before there is a
virtual environment, so it needs nothing but Python itself, any Python 3.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON_MIN = (3, 11)

HEADERS = (
    ("sys/epoll.h", "libc6-dev"),
    ("linux/io_uring.h", "linux-libc-dev"),
)


def unsupported() -> "str | None":
    """Return why the extension can't be built on this host at all; None if it can."""
    if sys.byteorder != "little":
        return "numbers-uring needs a little-endian processor, and this one is big-endian"
    return None


def missing() -> "Iterator[tuple[str, str]]":
    """Yield what is missing, and the package that has it."""
    if sys.version_info < PYTHON_MIN:
        found = ".".join(map(str, sys.version_info[:3]))
        wanted = ".".join(map(str, PYTHON_MIN))
        yield f"Python {wanted} or newer, not {found}", "python3, or name one: make PYTHON=..."
        return
    debian = sys.executable.startswith("/usr/bin/")
    try:
        import_module("ensurepip")
    except ImportError:
        yield "Python's module ensurepip", "python3-venv"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        yield f"{include}/Python.h", "python3-dev" if debian else "Python's own headers"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        yield f"the C compiler {compiler[0]}", "gcc"
        return
    for header, package in HEADERS:
        source = f"#include <{header}>\n"
        done = subprocess.run(
            [*compiler, "-E", "-x", "c", "-"],
            input=source.encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            yield f"the header {header}", package


def main() -> None:
    """Print why it can't be built, or a line for each missing thing."""
    if problem := unsupported():
        sys.exit(problem)
    found = list(missing())
    for what, package in found:
        print(f"numbers-uring needs {what}: install {package}", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
