"""Builds numbers_uring._native: cffi is given the headers below as they are."""

import os
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent
HEADERS = [
    "base.h",
    "ingest/ingest.h",
    "ingest/intake.h",
    "log/append.h",
    "net/sockets.h",
    "epoll/epoll.h",
    "load/lines.h",
    "load/send.h",
    "os/memory.h",
    "os/writeback.h",
    "cluster/collect.h",
    "cluster/pack.h",
    "uring/abi.h",
    "uring/features.h",
    "uring/uring.h",
]
SOURCES = [f"native/{source.relative_to(NATIVE)}" for source in sorted(NATIVE.glob("*/*.c"))]
# Undefined first: some compilers define it, too. Sanitizers see less of calls that are checked.
FORTIFY = ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
if "-fsanitize" in os.environ.get("CFLAGS", ""):
    FORTIFY.clear()


def declarations(header: str) -> str:
    """Return the lines of `header` that are C declarations: all that do not start with '#'."""
    lines = (NATIVE / header).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffi = FFI()
for name in HEADERS:
    ffi.cdef(declarations(name))
ffi.set_source(
    "numbers_uring._native",
    "\n".join(f'#include "{name}"' for name in HEADERS),
    sources=SOURCES,
    include_dirs=["native"],
    depends=sorted(f"native/{path.relative_to(NATIVE)}" for path in NATIVE.glob("**/*.h")),
    extra_compile_args=[
        *("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror=implicit"),
        # So that profilers see through our C, and name it.
        *("-g1", "-fno-omit-frame-pointer"),
        # Hardened as Debian hardens its packages.
        *("-fstack-protector-strong", "-fstack-clash-protection", "-Werror=format-security"),
        *FORTIFY,
    ],
    extra_link_args=["-Wl,-z,relro,-z,now"],
)
