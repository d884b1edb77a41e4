"""Checks the features of io_uring that --backend uring needs."""

import os

from numbers_uring.doctor.checks import Check, Severity
from numbers_uring.doctor.host_facts import read_integer
from numbers_uring.reactor.uring_features import try_features

_RING_SWITCH = "/proc/sys/kernel/io_uring_disabled"


def check_ring() -> Check:
    """Try each feature; it is never a problem, since epoll is always there."""
    switch = read_integer(_RING_SWITCH)
    try:
        outcomes = try_features()
    except OSError as error:
        return Check(
            name="io_uring",
            severity=Severity.NOTE,
            text=f"not tried: {error.strerror}",
            values={"io_uring_disabled": switch},
        )
    failed = {name: error for name, error in outcomes.items() if error is not None}
    values = {name: error or "works" for name, error in outcomes.items()}
    told = {name: error for name, error in failed.items() if error != "ECANCELED"}
    text = "all features that --backend uring needs work"
    if failed:
        text = "not available: " + ", ".join(f"{name} {error}" for name, error in told.items())
    return Check(
        name="io_uring",
        severity=Severity.NOTE if failed else Severity.OK,
        text=text,
        advice=_ring_advice(set(told.values()), switch) if failed else None,
        values={"features": values, "io_uring_disabled": switch},
    )


def _ring_advice(errors: set[str], switch: int | None) -> str:
    """Say what most likely stands behind the errors, and what to do about it."""
    if errors & {"EPERM", "EACCES"}:
        if switch:
            whom = "everyone" if switch > 1 else "all but the group of kernel.io_uring_group"
            return (
                f"kernel.io_uring_disabled is {switch}, which forbids it to {whom}: "
                "sysctl kernel.io_uring_disabled=0, as root"
            )
        return (
            "a seccomp profile or a security module forbids it: docker run --security-opt "
            "seccomp=FILE, with io_uring_setup, io_uring_enter and io_uring_register allowed"
        )
    if "ENOSYS" in errors:
        return "the kernel is older or built without io_uring, or a seccomp profile hides it"
    if "ENOMEM" in errors:
        return "too little memory is left, or too little of it may be locked: ulimit -l"
    if errors & {"EMFILE", "ENFILE"}:
        return "the file descriptors are used up: ulimit -n"
    return f"Linux 6.1 or newer is needed, and this is {os.uname().release}"
