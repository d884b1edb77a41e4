"""Reads what perf and py-spy have sampled into stacks of frames."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import PurePath

from numbers_uring.profiling.flame_graph import Frame, Origin, Stacks

_PERF_FRAME = re.compile(r"\s*([0-9a-f]+) (.+) \((.*)\)$")
_PY_SPY_FRAME = re.compile(r"(.+) \((.+?)(?::\d+)?\)$")
_INTERPRETER = re.compile(r"(lib)?python\d[\d.]*t?d?(\.so[\d.]*)?$")
_COMPILERS_SUFFIX = re.compile(r"(\.(part|isra|constprop|cold)(\.\d+)?)+$|@@?GLIBC_[\d.]+$")
_LINUX_ADDRESSES = 1 << 63
_TRAMPOLINE = "py::"
"""What Python puts before its functions' names for perf; the file follows after a colon."""

_INTERPRETER_FRAME = Frame("interpreter", Origin.PYTHON)
_UNKNOWN = Frame("unknown", Origin.LIBRARY)


def perf_stacks(lines: Iterable[str]) -> Stacks:
    """Fold the output of `perf script -F ip,sym,dso`: innermost frame first, blank lines between.

    The interpreter's own C functions are left out of a stack that names Python's functions, and
    are one frame, `interpreter`, in a stack that does not. A stack without a blank line after it
    is what was read of one when the reading was cut short: it does not count.
    """
    stacks: Stacks = Counter()
    stack: list[Frame] = []
    for line in lines:
        if found := _PERF_FRAME.match(line.rstrip("\n")):
            stack.append(_perf_frame(int(found[1], 16), found[2], found[3]))
        elif stack and not line.strip():
            stacks[_folded(stack)] += 1
            stack = []
    return stacks


def _perf_frame(address: int, symbol: str, place: str) -> Frame:
    if symbol.startswith(_TRAMPOLINE):
        name, _, file = symbol.removeprefix(_TRAMPOLINE).rpartition(":")
        return Frame(f"{name} ({_file_name(file)})", Origin.PYTHON)
    name = _COMPILERS_SUFFIX.sub("", symbol)
    if address >= _LINUX_ADDRESSES:
        # Without the right to see Linux's symbols there are addresses alone.
        return Frame("unnamed" if name == "[unknown]" else name, Origin.LINUX)
    library = PurePath(place).name
    if _INTERPRETER.match(library):
        return _INTERPRETER_FRAME
    if name == "[unknown]":
        return _UNKNOWN if library == "[unknown]" else Frame(library, Origin.LIBRARY)
    return Frame(name, Origin.NATIVE if library.startswith("_native.") else Origin.LIBRARY)


def _folded(innermost_first: list[Frame]) -> tuple[Frame, ...]:
    frames = innermost_first[::-1]
    if any(frame.origin is Origin.PYTHON and frame != _INTERPRETER_FRAME for frame in frames):
        frames = [frame for frame in frames if frame != _INTERPRETER_FRAME]
    return _once_each(frames, (_INTERPRETER_FRAME, _UNKNOWN))


def _once_each(frames: list[Frame], merged: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """Make one frame of several in a row, where they are one of `merged`."""
    rest = (frame for before, frame in pairwise(frames) if frame != before or frame not in merged)
    return (frames[0], *rest)


def py_spy_stacks(lines: Iterable[str]) -> Stacks:
    """Fold the output of `py-spy record --native --format raw`, leaving out line numbers.

    Each line is frames, outermost first, with semicolons between, a blank and a count; other lines
    are left out.
    """
    stacks: Stacks = Counter()
    for line in lines:
        names, _, count = line.rstrip("\n").rpartition(" ")
        if not names or not count.isdecimal():
            continue
        frames: list[Frame] = []
        for name in names.split(";"):
            frames.append(_py_spy_frame(name, frames[-1].origin if frames else Origin.LIBRARY))
        # How the thread was started: libc is all that there is to see.
        while len(frames) > 1 and frames[0].origin is Origin.LIBRARY:
            del frames[0]
        libraries = tuple(frame for frame in frames if frame.origin is Origin.LIBRARY)
        stacks[_once_each(frames, libraries)] += int(count)
    return stacks


def _py_spy_frame(text: str, caller: Origin) -> Frame:
    found = _PY_SPY_FRAME.match(text)
    if found is None:
        return Frame(text, Origin.LIBRARY)
    name, place = found.groups()
    if place.endswith((".py", ">")):
        return Frame(f"{name} ({_file_name(place)})", Origin.PYTHON)
    if place.startswith("numbers_uring._native") or name.startswith("nu_"):
        return Frame(name, Origin.NATIVE)
    if caller is Origin.NATIVE and not place.startswith("lib"):
        # What the compiler has inlined is named by its source file, a library's by the library.
        return Frame(name, Origin.NATIVE)
    return Frame(place if name.startswith("0x") else name, Origin.LIBRARY)


def _file_name(path: str) -> str:
    return PurePath(path).name.removeprefix("<frozen ").removesuffix(">")
