"""How perf learns the names of this process' Python functions."""

import os
import sys
import sysconfig
from enum import Enum


class Names(Enum):
    """Where the names of a process come from; the value is the `-X` option that asks for them."""

    FRAME_POINTERS = "perf"
    """From a map of trampolines, which perf finds by frame pointers."""
    JIT_DUMP = "perf_jit"
    """From a dump with unwind information, for an interpreter without frame pointers."""
    NONE = ""


def names_offered() -> Names:
    """Return which `-X` option makes this interpreter name its functions; NONE if there is none."""
    if sys.version_info < (3, 12):
        return Names.NONE
    if _has_frame_pointers():
        return Names.FRAME_POINTERS
    return Names.JIT_DUMP if sys.version_info >= (3, 13) else Names.NONE


def name_own_functions() -> Names:
    """Name this process' Python functions for perf from now on, and return how.

    The dump has to be asked for when the interpreter starts; frame pointers alone need no more than
    this call. The trampolines make calls of Python functions a little slower.
    """
    if sys.version_info < (3, 12):
        return Names.NONE
    asked = sys._xoptions.get("perf_jit") or os.environ.get("PYTHON_PERF_JIT_SUPPORT", "0") != "0"
    if asked and sys.is_stack_trampoline_active():
        return Names.JIT_DUMP
    if not _has_frame_pointers():
        # Trampolines have no unwind information: all callers below them would be lost.
        sys.deactivate_stack_trampoline()
        return Names.NONE
    if not sys.is_stack_trampoline_active():
        try:
            sys.activate_stack_trampoline("perf")
        except ValueError:  # not supported on this platform
            return Names.NONE
    return Names.FRAME_POINTERS


def _has_frame_pointers() -> bool:
    flags = (sysconfig.get_config_var(name) for name in ("CFLAGS", "PY_CORE_CFLAGS"))
    return any("-fno-omit-frame-pointer" in str(value) for value in flags)
