"""Small disks that a test fills and frees: file systems in memory, which only root can mount."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.namespaces import run

_CHUNK = b"\xff" * 65_536


class Disk:
    """A file system of its own at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no byte free, for as long as nothing else on it is removed."""
        with self._ballast.open("ab") as file:
            size = len(_CHUNK)
            while size:
                try:
                    os.write(file.fileno(), _CHUNK[:size])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def empty(self) -> None:
        """Remove everything, as if it was a new disk."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """Mount a disk at `folder`, and unmount it in the end, also if it is still in use."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        done = run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
        assert done.returncode == 0, done.stderr
        stack.callback(run, "umount", "--lazy", str(folder))
        yield Disk(folder)


def lacking() -> str:
    """Return why no disk can be mounted here; empty if one can be."""
    if os.geteuid() != 0:
        return "only root can mount a disk"
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
        return "no disk can be mounted here"
    return ""
