"""Memory that a process frees and needs again: what that costs in page faults."""

import platform
import resource
import subprocess
import sys
from sysconfig import get_config_var

import pytest

from numbers_uring.limits import HEAP_KEPT_BYTES

MESSAGE_BYTES = 100_000
MESSAGES = HEAP_KEPT_BYTES // MESSAGE_BYTES // 2
ROUNDS = 20
PROGRAM = f"""
import resource
from numbers_uring._native import lib
{{call}}
def one_round():
    return len([bytes({MESSAGE_BYTES}) for _ in range({MESSAGES})])
one_round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    one_round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Return how many page faults rounds of allocating and freeing take, after one of them."""
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides itself")
@pytest.mark.skipif(bool(get_config_var("Py_GIL_DISABLED")), reason="it has a heap of its own")
def test_memory_for_messages_is_used_again_without_faults() -> None:
    pages = MESSAGES * MESSAGE_BYTES // resource.getpagesize()
    assert faults(f"lib.nu_keep_freed({HEAP_KEPT_BYTES})") < pages
    # What it is for: without it most rounds take many of the pages anew.
    assert faults("") > 3 * pages
