"""Hosts on one switch, each a network namespace of its own, whose links can be cut."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from support.namespaces import run
from support.waiting import wait_until

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


class Host:
    """One namespace, which lasts as long as the process that holds it."""

    def __init__(self, stack: ExitStack, number: int) -> None:
        self.number = number
        self.address = f"10.77.0.{number + 1}"
        holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        self.pid = holder.pid
        self._path = Path(f"/proc/{self.pid}/ns/net")
        ours = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: self._path.readlink() != ours, "a network namespace")

    @property
    def prefix(self) -> list[str]:
        """What is put in front of a command that is to run on this host."""
        return ["nsenter", f"--net={self._path}"]

    def script(self, text: str) -> None:
        done = run(*self.prefix, "sh", "-ec", text)
        assert done.returncode == 0, done.stderr

    def inside(self, function: Callable[[], T]) -> T:
        """Return what the function returns on this host; sockets that it makes stay there."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                assert ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) == 0
            finally:
                os.close(fd)
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        for error in errors:
            raise error
        return results[0]


class Network:
    """A switch and `count` hosts that are connected to it."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        self._switch = Host(stack, 100)
        self.hosts = [Host(stack, number) for number in range(count)]
        text = "ip link add switch type bridge; ip link set switch up\n"
        for host in self.hosts:
            port = f"port{host.number}"
            text += (
                f"ip link add {port} type veth peer name uplink netns {host.pid}\n"
                f"ip link set {port} master switch up\n"
            )
        self._switch.script(text)
        for host in self.hosts:
            host.script(
                f"ip link set lo up; ip addr add {host.address}/24 dev uplink; "
                "ip link set uplink up"
            )

    @contextmanager
    def refused(self, host: Host, *others: Host) -> Iterator[None]:
        """Refuse the connections that `host` makes to the others."""
        addresses = ", ".join(other.address for other in others)
        host.script(
            "nft 'add table ip refused; add chain ip refused out { type filter hook output "
            f"priority 0; }}; add rule ip refused out tcp dport > 0 ip daddr {{ {addresses} }} "
            "reject with tcp reset'"
        )
        yield
        host.script("nft delete table ip refused")

    def unplug(self, host: Host) -> None:
        self._switch.script(f"ip link set port{host.number} down")

    def plug(self, host: Host) -> None:
        self._switch.script(f"ip link set port{host.number} up")

    def cut(self, host: Host, *others: Host, sends: bool = True, hears: bool = True) -> None:
        """Drop silently what `host` sends to the others, or hears of them, or both."""
        rules = []
        for hook, field, drops in (("ingress", "daddr", sends), ("egress", "saddr", hears)):
            if drops:
                rules.append(
                    f"add chain netdev cuts {hook}{host.number} {{ type filter hook {hook} "
                    f"device port{host.number} priority 0; }}"
                )
                rules += [
                    f"add rule netdev cuts {hook}{host.number} ip {field} {other.address} drop"
                    for other in others
                ]
        text = "\n".join(["add table netdev cuts", *rules])
        self._switch.script(f"nft -f - <<'END'\n{text}\nEND")

    def mend(self) -> None:
        """End all cuts."""
        self._switch.script("nft 'add table netdev cuts; delete table netdev cuts'")


@contextmanager
def network(count: int) -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack, count)


def lacking() -> str:
    """Return why there can be no such network here; empty if there can be one."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in (("ip", "-V"), ("nft", "--version"), ("unshare", "--net", "true")):
        try:
            done = run(*command)
        except FileNotFoundError:
            return f"there is no {command[0]} here"
        if done.returncode != 0:
            return f"no network namespace can be made here: {done.stderr.strip()}"
    return ""
