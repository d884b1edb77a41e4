"""Tries the steps of a server's start, in its order, and checks the host around it.

What a step makes is kept until the last one was tried, for a server has to find room for all of it
at once; but the lock of the log and the addresses are only taken for a moment.
"""

import logging
from contextlib import ExitStack
from functools import partial

from numbers_uring.config import Config
from numbers_uring.doctor.checks import Check, Diagnosis, Severity, Value
from numbers_uring.doctor.host_checks import check_host
from numbers_uring.doctor.memory_checks import check_huge_pages
from numbers_uring.doctor.ring_check import check_ring
from numbers_uring.doctor.step_checks import STEP_CHECKS
from numbers_uring.doctor.versions import check_versions
from numbers_uring.errors import Failure, UnexpectedError
from numbers_uring.server.parts import Parts, Step
from numbers_uring.server.steps import start_steps
from numbers_uring.system.diagnostics import Diagnostics
from numbers_uring.system.stdio import STDERR, LineWriter
from numbers_uring.systemd.notify import ServiceManager


def examine(config: Config) -> Diagnosis:
    """Try what a server with `config` would do before it listens, and check the host around it.

    Limits of this process are raised as the server's would be. Raises nothing for what it finds.
    """
    checks: list[Check] = []
    with ExitStack() as stack:
        parts = _parts(config, stack)
        for step in start_steps(config):
            checks.append(_check(step, parts))
            if step.name == "memory":
                checks.append(check_huge_pages(parts.bitmap if parts.have("bitmap") else None))
        backend = parts.backend if parts.have("backend") else None
        kernel = parts.kernel.variant if parts.have("kernel") else None
    # A server makes no further ring, and there may just not be room for one.
    at = [check.name for check in checks].index("backend")
    checks.insert(at, check_ring())
    problems = [check.text for check in checks if check.severity is Severity.PROBLEM]
    return Diagnosis(
        checks=[*checks, *check_host(config), *check_versions()],
        error=problems[0] if problems else None,
        backend=backend,
        kernel=kernel,
    )


def _parts(config: Config, stack: ExitStack) -> Parts:
    """Return the parts that the steps begin with; nothing is logged."""
    silent = Diagnostics(LineWriter(STDERR), level_min=logging.CRITICAL)
    manager = ServiceManager(None, watchdog_s=None, warn=silent)
    return Parts(config, stack, silent, manager, inherited=[])


def _check(step: Step, parts: Parts) -> Check:
    """Try one step; what it fails with is a problem."""
    if not parts.have(*step.needs):
        return Check(
            name=step.name,
            severity=Severity.NOTE,
            text="not tried: the bitmap, the kernel or the backend is not available",
        )
    values: dict[str, Value] = {}
    try:
        return STEP_CHECKS[step.name](parts, partial(step.probe, parts), values)
    except Exception as error:
        failure = error if isinstance(error, Failure) else UnexpectedError(error)
        return Check(
            name=step.name,
            severity=Severity.PROBLEM,
            text=str(failure),
            advice=step.advice,
            values=values,
        )
