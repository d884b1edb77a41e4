"""What to inject: the calls of a recorded session, each with the errors that fit it."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_NEVER_FAIL = {
    "brk", "clock_nanosleep", "execve", "exit", "exit_group", "futex", "getegid", "geteuid",
    "getgid", "getpid", "getppid", "getrandom", "gettid", "getuid", "munmap", "restart_syscall",
    "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield", "set_robust_list",
    "set_tid_address", "tgkill", "uname", "sigaltstack", "wait4",
}  # fmt: skip
"""Calls that cannot fail, or whose failure ends the C library or the interpreter by itself."""

_ERRORS = {
    "accept4": "EMFILE ECONNABORTED EPERM EINVAL ENOBUFS",
    "access": "EACCES",
    "bind": "EADDRINUSE EACCES",
    "chmod": "EPERM",
    "clone": "EAGAIN",
    "clone3": "EAGAIN",
    "close": "EIO EDQUOT",
    "connect": "ECONNREFUSED EACCES",
    "epoll_create1": "EMFILE ENOMEM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_wait": "EINTR EINVAL EBADF",
    "eventfd2": "EMFILE",
    "fadvise64": "EINVAL",
    "fallocate": "EOPNOTSUPP ENOSPC",
    "fcntl": "EINVAL ENOLCK",
    "fdatasync": "EIO ENOSPC EINTR",
    "fsync": "EIO EINVAL EINTR",
    "flock": "EAGAIN ENOLCK",
    "fstat": "EIO ESTALE",
    "ftruncate": "EIO EPERM EINTR",
    "getcwd": "ENOENT",
    "getpeername": "ENOTCONN",
    "getsockname": "ENOBUFS",
    "getsockopt": "EPERM ENOPROTOOPT",
    "io_uring_enter": "EAGAIN EBUSY EINTR ENOMEM EBADR",
    "io_uring_register": "ENOMEM EINVAL EPERM",
    "io_uring_setup": "ENOMEM EPERM ENOSYS",
    "ioctl": "ENOTTY EINVAL",
    "listen": "EADDRINUSE",
    "lseek": "ESPIPE EIO",
    "madvise": "EINVAL ENOMEM",
    "mmap": "ENOMEM",
    "mprotect": "ENOMEM",
    "newfstatat": "EIO ESTALE EACCES",
    "openat": "EMFILE EACCES EIO EINTR",
    "pipe2": "EMFILE",
    "poll": "ENOMEM EINTR",
    "prlimit64": "EPERM",
    "read": "EIO EINTR",
    "recvfrom": "ECONNRESET ENOMEM EINTR EIO",
    "sendto": "EPIPE EAGAIN",
    "setsockopt": "ENOPROTOOPT ENOMEM",
    "socket": "EMFILE EACCES",
    "socketpair": "EMFILE",
    "sync_file_range": "EIO ESPIPE",
    "unlink": "EACCES EROFS",
    "write": "EIO ENOSPC EINTR EAGAIN",
}
_OTHERS = "EPERM ENOSYS"

_EVER_TOO = {"io_uring_enter"}
"""Where EINTR for ever reaches us: elsewhere the interpreter itself tries until it is over."""

_SYNCS = ("fdatasync", "fsync", "sync_file_range")

_CALL = re.compile(r"(\d+) +([a-z_0-9]+)\((.*)")


@dataclass(frozen=True, slots=True)
class Injection:
    """One `-e inject=` of strace, and the place that it is meant for."""

    call: str
    action: str
    """`error=EIO` or `delay_enter=300ms`."""
    when: str
    """`3`: the third call of each thread; `3+`: from that on for ever."""
    place: str
    """The call with its arguments, numbers left out."""

    @property
    def option(self) -> str:
        return f"inject={self.call}:{self.action}:when={self.when}"

    @property
    def for_ever(self) -> bool:
        return self.when.endswith("+")


def calls(trace: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (thread, call, arguments) of strace's lines, in the order in which they began."""
    for line in trace:
        match = _CALL.match(line)
        if match:
            yield match[1], match[2], match[3]


_ARGUMENTS = {"getsockopt": 3, "setsockopt": 3, "mmap": 4, "openat": 2, "newfstatat": 2, "write": 2}
"""How many arguments tell one place from another; of other calls the first two, or one."""
_FIRST_ONLY = {"accept4", "epoll_wait", "getcwd", "poll", "preadv2", "read", "recvfrom", "sendto"}
_NOT_OURS = ("/lib/python", "messages.mo", "/encodings", ".pyc")
"""Files that the interpreter opens by itself."""


_MADE = re.compile(r"socket\((AF_[A-Z0-9]+),.* = \d+<socket:\[(\d+)\]>")
"""A socket that listens, with its inode. Others were accepted, if only by a ring."""


def _listeners(trace: Iterable[str]) -> dict[str, str]:
    """Return the families of the sockets that were not accepted, by inode."""
    return {match[2]: match[1] for line in trace if (match := _MADE.search(line))}


def _place(call: str, arguments: str, listeners: dict[str, str]) -> str:
    count = 1 if call in _FIRST_ONLY else _ARGUMENTS.get(call, 2)
    text = arguments.partition(" <unfinished")[0]
    # A descriptor is followed by what it stands for.
    text = re.sub(
        r"<socket:\[(\d+)\]>", lambda inode: f"<{listeners.get(inode[1], 'accepted')}>", text
    )
    text = re.sub(r"/[^ \"<>,]*/run\b", "DIR", text)
    text = ",".join(text.split(",")[:count]).split(")")[0]
    return f"{call}({re.sub(r'0x[0-9a-f]+|[0-9]+', '#', text)[:60]}"


def plan(trace: Iterable[str], seen: set[str], chance: random.Random) -> list[Injection]:
    """Return the injections for the places of a trace that are not in `seen`, and note them there.

    A place that is passed several times is hit at its first time, at its last, and at one between.
    """
    ordinals: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    main = ""
    lines = list(trace)
    listeners = _listeners(lines)
    for thread, call, arguments in calls(lines):
        main = main or thread
        ordinals[thread, call] += 1
        if call in _NEVER_FAIL or any(name in arguments for name in _NOT_OURS):
            continue
        if call == "mmap" and thread != main:
            # Without memory for its first frame the interpreter waits for ever for a new thread.
            continue
        where = _place(call, arguments, listeners) + ("" if thread == main else " in a thread")
        places[call, where].append(ordinals[thread, call])
    planned: dict[Injection, None] = {}
    for (call, place), times in places.items():
        if place in seen:
            continue
        seen.add(place)
        for time in sorted({times[0], chance.choice(times), times[-1]}):
            for error in _ERRORS.get(call, _OTHERS).split():
                whens = [f"{time}"]
                if error != "EINTR" or call in _EVER_TOO:
                    whens.append(f"{time}+")
                for when in whens:
                    planned[Injection(call, f"error={error}", when, place)] = None
        if call in _SYNCS:
            planned[Injection(call, "delay_enter=300ms", "1+", place)] = None
    return list(planned)


def sample(planned: list[Injection], count: int, chance: random.Random) -> list[Injection]:
    """Return `count` of them, spread evenly over the calls, so that rare ones come, too."""
    by_call: dict[str, list[Injection]] = defaultdict(list)
    for each in planned:
        by_call[each.call].append(each)
    for group in by_call.values():
        chance.shuffle(group)
    chosen: list[Injection] = []
    while len(chosen) < count and any(by_call.values()):
        groups = [group for group in by_call.values() if group]
        chance.shuffle(groups)
        chosen += [group.pop() for group in groups][: count - len(chosen)]
    return chosen
