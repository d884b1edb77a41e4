"""What native/uring stands on, compared with an independent binding of liburing.

The binding is compiled for processors that this may not be one of, so it is asked in a process of
its own: one that is ended by a signal bears no witness, one that says something else is a failure.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from numbers_uring._native import lib
from numbers_uring.reactor.probe import receives
from support.waiting import DEADLINE_S

pytest.importorskip("liburing", reason="the binding is installed with the extra dev alone")

ABI = {name: getattr(lib, name) for name in dir(lib) if name.startswith("NU_URING_")}

THEIR_NAMES = {
    "NU_URING_SQE_BUFFER_SELECT": "IOSQE_BUFFER_SELECT",
    "NU_URING_SQE_CQE_SKIP_SUCCESS": "IOSQE_CQE_SKIP_SUCCESS",
    "NU_URING_CANCEL_ALL": "IORING_ASYNC_CANCEL_ALL",
    "NU_URING_CANCEL_ANY": "IORING_ASYNC_CANCEL_ANY",
}

NOT_IN_THE_BINDING = {"NU_URING_REGISTER_PBUF_RING"} | {
    name for name in ABI if name.endswith("_BYTES")
}
"""Compared in queue.c with the kernel's headers alone."""


def ask(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", f"import json, liburing\n{code}"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONFAULTHANDLER": ""},
        text=True,
        timeout=DEADLINE_S,
    )
    if done.returncode < 0:
        pytest.skip(f"liburing was ended by {signal.Signals(-done.returncode).name} on this CPU")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_our_constants_are_theirs() -> None:
    theirs = ask(
        "values = {**vars(liburing), **liburing.io_uring_op.__members__}\n"
        "print(json.dumps({n: int(v) for n, v in values.items()"
        " if n.startswith('IO') and isinstance(v, int)}))"
    )
    compared = {
        ours: THEIR_NAMES.get(ours, ours.replace("NU_URING", "IORING"))
        for ours in ABI
        if ours not in NOT_IN_THE_BINDING
    }
    assert len(compared) > 20
    assert {ours: ABI[ours] for ours in compared} == {
        ours: theirs.get(name) for ours, name in compared.items()
    }


@pytest.mark.usefixtures("ring")
def test_our_probe_says_what_theirs_says() -> None:
    operations = [ABI[name] for name in ABI if name.startswith("NU_URING_OP_")]
    supported = ask(
        "probe = liburing.io_uring_get_probe()\n"
        f"print(json.dumps([bool(liburing.io_uring_opcode_supported(probe, n))"
        f" for n in {operations}]))"
    )
    assert receives() == all(supported)
    assert len(supported) == 3
