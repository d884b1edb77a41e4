"""Run a command under the system call filters of a systemd unit: unit_sandbox.py UNIT COMMAND...

systemd itself is needed for what its groups of calls mean, but not as the manager. Where a unit's
filter would answer with an error, the process is killed here: a call that the server cannot make is
to be found, not survived. The exception are address families, for which the C library has a reply.
"""

import ctypes
import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

INSTALLED = "/opt/numbers-uring/bin/numbers-uring"
"""The command in the units."""

_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

# linux/prctl.h, linux/seccomp.h, linux/audit.h, linux/bpf_common.h
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_ARCH_X86_64 = 0xC000003E
_LOAD, _JUMP_EQUAL, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_PROT_WRITE, _PROT_EXEC = 2, 4
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}

Instruction = tuple[int, int, int, int]
"""(code, jump if true, jump if false, k) of a struct sock_filter."""


def settings(unit: Path, name: str) -> list[str]:
    """Return the values that the unit gives `name`, in their order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def unit_arguments(unit: Path, instance: str, state: Path) -> list[str]:
    """Return what ExecStart= has our command be called with."""
    (start,) = settings(unit, "ExecStart")
    program, *arguments = start.replace("%i", instance).replace("%S", str(state)).split()
    assert program == INSTALLED
    return arguments


def expand(names: list[str]) -> set[str]:
    """Return the system calls that groups (@name), and calls themselves, stand for."""
    calls = {name for name in names if not name.startswith("@")}
    for group in (name for name in names if name.startswith("@")):
        listed = subprocess.run(
            ["systemd-analyze", "syscall-filter", group],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        members = [line.strip() for line in listed.splitlines()[1:]]
        calls |= expand([member for member in members if member and not member.startswith("#")])
    return calls


def allowed_calls(unit: Path) -> set[str]:
    """Return the calls that SystemCallFilter= leaves: an allow list first, then what is denied."""
    allowed: set[str] = set()
    for value in settings(unit, "SystemCallFilter"):
        if value.startswith("~"):
            allowed -= expand(value[1:].split())
        else:
            allowed |= expand(value.split())
    return allowed


def call_numbers() -> dict[str, int]:
    """Return the number of each system call of this machine."""
    found = re.findall(r"^#define __NR_(\w+) (\d+)$", _HEADER.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def _when(number: int, body: list[Instruction]) -> list[Instruction]:
    """Do `body`, which returns or falls through with the number loaded, for this call alone."""
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _argument(index: int) -> Instruction:
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * index


def program(unit: Path) -> list[Instruction]:
    """Return the filter: of calls, of executable memory and of address families."""
    numbers = call_numbers()
    number = (_LOAD, 0, 0, _NUMBER_AT)
    filter_ = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQUAL, 1, 0, _ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        number,
    ]
    if settings(unit, "MemoryDenyWriteExecute") == ["yes"]:
        both = _PROT_WRITE | _PROT_EXEC
        writable_and_executable = [
            (_AND, 0, 0, both),
            (_JUMP_EQUAL, 0, 1, both),
            (_RETURN, 0, 0, _KILL),
        ]
        executable = [(_JUMP_SET, 0, 1, _PROT_EXEC), (_RETURN, 0, 0, _KILL)]
        filter_ += _when(numbers["mmap"], [_argument(2), *writable_and_executable, number])
        for name in ("mprotect", "pkey_mprotect"):
            filter_ += _when(numbers[name], [_argument(2), *executable, number])
    for value in settings(unit, "RestrictAddressFamilies"):
        families = [_FAMILIES[name] for name in value.split()]
        matches = [(_JUMP_EQUAL, len(families) - i, 0, family) for i, family in enumerate(families)]
        refused = (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT)
        filter_ += _when(numbers["socket"], [_argument(0), *matches, refused, number])
    for name in sorted(allowed_calls(unit) & numbers.keys()):
        filter_ += _when(numbers[name], [(_RETURN, 0, 0, _ALLOW)])
    return [*filter_, (_RETURN, 0, 0, _KILL)]


def main() -> None:
    """Put the filter on this process, which must have no_new_privs set, and become the command."""
    instructions = program(Path(sys.argv[1]))
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    descriptor = struct.pack("@HP", len(instructions), ctypes.addressof(memory))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(descriptor)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
