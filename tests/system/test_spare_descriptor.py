"""The descriptor that is kept for a stop."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from numbers_uring.system.descriptors import SpareDescriptor

USE_UP = """
import os, resource
from numbers_uring.system.descriptors import SpareDescriptor
spare = SpareDescriptor()
highest = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
try:
    while True:
        os.dup(0)
except OSError:
    spare.release()
os.dup(0)
"""


def test_once_released_it_can_be_used_although_all_were_used_up() -> None:
    subprocess.run([sys.executable, "-c", USE_UP], check=True, stdin=subprocess.DEVNULL)


def test_a_close_that_fails_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = SpareDescriptor()

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", fail)
    spare.release()
    spare.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
