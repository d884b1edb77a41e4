"""The features of io_uring that a ring needs, tried one by one to find which are missing.

Whether a server's ring works is ring_probe's to say; this is for the one who wants to know why not.
"""

import errno
import socket
from typing import Any

from numbers_uring._native import ffi, lib

FEATURES = ("setup", "timed_wait", "provided_buffers", "poll", "multishot_receive", "cancel_all")
"""In the order of native/uring/features.h's nu_feature."""

assert len(FEATURES) == lib.NU_FEATURES


def try_features() -> dict[str, str | None]:
    """Return for each of FEATURES None where it works, or what went wrong: the error's name.

    ECANCELED is not what the system said: the feature could not be tried, because one that it needs
    does not work; ETIME: nothing happened within a second. Raises OSError where no socket pair can
    be made.
    """
    outcomes: Any = ffi.new("int32_t[]", lib.NU_FEATURES)
    near, far = socket.socketpair()
    with near, far:
        lib.nu_probe_features(near.fileno(), far.fileno(), outcomes)
    return {
        name: errno.errorcode.get(-outcome, str(-outcome)) if outcome else None
        for name, outcome in zip(FEATURES, outcomes, strict=True)
    }
