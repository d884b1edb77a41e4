"""Runs a page's commands one after the other: docs_runner.py SPECIFICATION, in new namespaces.

The namespaces (net, mount, pid) are the caller's to make, by unshare. Whatever is written to /etc
and /opt is gone with them, and so is every process. The specification and the result are JSON; the
result goes to standard output.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.docs_pages import ROOT
from support.waiting import DEADLINE_S, wait_until

PORTS = {"prometheus": 9090, "haproxy": 4443}
"""Where what stays, and is no server of ours, listens once it is ready."""
OF_THE_SYSTEM = ("/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/vm/compact_memory")
"""Files that are the whole system's: written to are others in their place."""


@dataclass
class Staying:
    """A command that was left running."""

    process: subprocess.Popen[bytes]
    is_server: bool
    stdout: Path
    stderr: Path

    def stop(self) -> dict[str, Any]:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(DEADLINE_S)
        if not self.is_server and code in {-signal.SIGTERM, 128 + signal.SIGTERM}:
            code = 0
        return {
            "code": code,
            "stdout": self.stdout.read_text(),
            "stderr": self.stderr.read_text(),
        }


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def isolate(scratch: Path) -> None:
    """Have writes to the system go elsewhere, and leave the sources as they are."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    mount("-t", "tmpfs", "tmpfs", scratch)
    (scratch / "opt").mkdir()
    shutil.copytree("/etc", scratch / "etc", symlinks=True)
    mount("--bind", scratch / "etc", "/etc")
    for folder in filter(Path.is_dir, Path("/opt").iterdir()):
        (scratch / "opt" / folder.name).mkdir()
        mount("--bind", folder, scratch / "opt" / folder.name)
    mount("--rbind", scratch / "opt", "/opt")
    for i, path in enumerate(filter(os.path.exists, OF_THE_SYSTEM)):
        instead = scratch / f"system-{i}"
        instead.touch()
        mount("--bind", instead, path)
    mount("--bind", ROOT, ROOT)
    mount("-o", "remount,bind,ro", ROOT)


def is_ready(staying: Staying, port: int | None) -> bool:
    if port is None:
        return "listening on" in staying.stderr.read_text()
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def start(text: str, folder: Path, number: int) -> Staying:
    """Start a command that stays, and wait until it can be used."""
    tool = next((tool for tool in PORTS if text.startswith(tool)), None)
    stdout, stderr = folder / f".{number}.out", folder / f".{number}.err"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            ["bash", "-euc", f"exec {text}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    # As the terminal that it was started from does: one that ends is gone, and no zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    staying = Staying(process, tool is None, stdout, stderr)
    port = None if tool is None else PORTS[tool]
    wait_until(lambda: is_ready(staying, port) or process.poll() is not None, text)
    assert process.poll() is None, f"{text}{stderr.read_text()}"
    return staying


def run(text: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["bash", "-euc", text],
        capture_output=True,
        check=False,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=DEADLINE_S,
    )
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def main() -> None:
    """Run each command; a server ends where the next one begins, and at the end."""
    specification = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(specification["folder"])
    isolate(Path(specification["scratch"]))
    results: list[dict[str, Any]] = []
    running: dict[int, Staying] = {}

    def stop(which: Callable[[Staying], bool]) -> None:
        for i in [i for i, staying in running.items() if which(staying)]:
            results[i] = running.pop(i).stop()

    for i, command in enumerate(specification["commands"]):
        # A page says python3 of /usr/bin where it must not be a user's; here it is a stand-in.
        text = re.sub(r"^/usr/bin/(?=python3 )", "", command["text"], flags=re.MULTILINE)
        if command["stays"]:
            if not text.startswith(tuple(PORTS)):
                stop(lambda staying: staying.is_server)
            running[i] = start(text, folder, i)
            results.append({})
        else:
            results.append(run(text, folder))
    stop(lambda _: True)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
