"""Hosts on which a server starts, or does not, for tests of the doctor and of the server."""

import errno
import fcntl
import gzip
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from numbers_uring.limits import BITMAP_BYTES, PROBE_CHUNK_BYTES
from ports import reserve_port
from support.logs import lines
from support.processes import run_text
from support.seccomp import FORBID
from support.waiting import DEADLINE_S

LINES = lines(range(100))
MEGABYTE = 2**20

ROOT_WITHOUT_POWERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-ipc_lock")
"""Root may do what others may not: write any file, lock any memory."""


@dataclass
class Scene:
    """A host for a server: its options, and how it is run."""

    folder: Path
    undo: ExitStack
    options: list[str] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)
    preludes: list[str] = field(default_factory=list)
    """Python code that runs before the command's."""
    ring_error: int = 0
    """What io_uring_setup(2) fails with; 0 lets it be."""

    @property
    def command(self) -> list[str]:
        program = ["-m", "numbers_uring"]
        if self.preludes:
            lines = [*self.preludes, "from numbers_uring.cli.main import main", "main()"]
            program = ["-c", "\n".join(lines)]
        forbidden = ["-c", FORBID, str(self.ring_error)] if self.ring_error else []
        return [sys.executable, *forbidden, *program]

    @property
    def log(self) -> Path:
        return self.folder / "numbers.log"

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return run_text(
            [*self.prefix, *self.command, command, *self.options, *options],
            capture_output=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            timeout=DEADLINE_S,
        )

    def server_starts(self) -> bool:
        """Run a server until it listens, or has ended."""
        with subprocess.Popen(
            [*self.prefix, *self.command, "serve", *self.options],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            listens = False
            try:
                for line in process.stderr:
                    if "listening on" in line:
                        listens = True
                        process.send_signal(signal.SIGTERM)
                code = process.wait(DEADLINE_S)
            finally:
                process.kill()
        assert (listens, code) in {(True, 0), (False, 3)}
        return listens

    def traces(self) -> list[tuple[str, int, int, bytes]]:
        """Return what is in the folder: names, inodes, times and contents."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            state = path.lstat()
            content = path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else b""
            found.append((str(path), state.st_ino, state.st_mtime_ns, content))
        return [*found, (".", 0, self.folder.stat().st_mtime_ns, b"")]


def wants(tool: str, *arguments: str) -> None:
    """Skip where the system does not let us make such host_facts."""
    try:
        done = subprocess.run(
            [tool, *arguments], capture_output=True, check=False, text=True, timeout=DEADLINE_S
        )
    except FileNotFoundError:
        pytest.skip(f"{tool} is not there")
    if done.returncode:
        pytest.skip(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")


# Hosts on which a server starts.


def plain(scene: Scene) -> None:
    pass


def an_earlier_log(scene: Scene) -> None:
    scene.log.write_bytes(LINES)


def a_log_to_resume(scene: Scene) -> None:
    scene.log.write_bytes(LINES + b"0000\0\0\0")
    scene.options += ["--resume"]


def a_log_to_resume_with_the_kernel_in_python(scene: Scene) -> None:
    a_log_to_resume(scene)
    scene.options += ["--kernel", "python"]


def rotated_logs(scene: Scene) -> None:
    a_log_to_resume(scene)
    scene.options += ["--seen", "numbers.log*", "--seen", "none*"]
    (scene.folder / "numbers.log.1").write_bytes(lines(range(100, 200)) + b"0000")
    (scene.folder / "numbers.log.2.gz").write_bytes(gzip.compress(lines(range(200, 300))))
    # While it is compressed.
    (scene.folder / "numbers.log.1.gz").write_bytes(b"\x1f")


def a_new_log_to_resume(scene: Scene) -> None:
    scene.options += ["--resume", "--fsync", "never"]


def a_link_to_a_log_that_is_not_there(scene: Scene) -> None:
    scene.log.symlink_to(scene.folder / "elsewhere.log")


def a_port_that_is_bound_for_reuse(scene: Scene) -> None:
    other = scene.undo.enter_context(socket.socket())
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.bind(("127.0.0.1", 0))
    scene.options += ["--port", str(other.getsockname()[1])]


def a_unix_socket(scene: Scene) -> None:
    scene.options += ["--listen", f"unix:{scene.folder}/numbers.sock"]


def a_unix_socket_of_a_dead_server(scene: Scene) -> None:
    a_unix_socket(scene)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(scene.folder / "numbers.sock"))


def two_addresses(scene: Scene) -> None:
    port = reserve_port()
    scene.options += ["--listen", f"127.0.0.1:{port}", "--listen", f"127.0.0.2:{port}"]


def a_low_soft_limit_of_descriptors(scene: Scene) -> None:
    scene.prefix = ["prlimit", "--nofile=100:2000"]
    scene.options += ["--max-clients", "1000"]


def no_ring_where_auto_chooses(scene: Scene) -> None:
    forbid_rings(scene, errno.EPERM)


def a_ring(scene: Scene) -> None:
    scene.options += ["--backend", "uring", "--max-clients", "3000"]


def metrics_and_a_profile(scene: Scene) -> None:
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    scene.options += ["--metrics", "127.0.0.1:0", "--profile", str(scene.folder / "flames.svg")]


# Hosts on which it does not.


def a_port_in_use_for_metrics(scene: Scene) -> None:
    other = scene.undo.enter_context(socket.create_server(("127.0.0.1", 0)))
    scene.options += ["--metrics", f"127.0.0.1:{other.getsockname()[1]}"]


def a_profile_in_the_place_of_the_log(scene: Scene) -> None:
    scene.options += ["--profile", str(scene.folder / "numbers.log")]


def no_folder_for_the_profile(scene: Scene) -> None:
    scene.options += ["--profile", str(scene.folder / "pictures" / "flames.svg")]


def a_port_in_use(scene: Scene) -> None:
    other = scene.undo.enter_context(socket.create_server(("127.0.0.1", 0)))
    scene.options += ["--port", str(other.getsockname()[1])]


def its_own_port_for_metrics(scene: Scene) -> None:
    address = f"127.0.0.1:{reserve_port()}"
    scene.options += ["--listen", address, "--metrics", address]


def its_own_port_for_metrics_on_all_addresses(scene: Scene) -> None:
    port = reserve_port()
    scene.options += ["--port", str(port), "--metrics", f"[::]:{port}"]


def a_port_that_is_bound(scene: Scene) -> None:
    other = scene.undo.enter_context(socket.socket())
    other.bind(("127.0.0.1", 0))
    scene.options += ["--port", str(other.getsockname()[1])]


def two_addresses_that_are_one(scene: Scene) -> None:
    port = reserve_port()
    scene.options += ["--listen", f"0.0.0.0:{port}", "--listen", f"127.0.0.1:{port}"]


def a_host_that_is_not_there(scene: Scene) -> None:
    scene.options += ["--host", "no.such.host.invalid"]


def an_address_of_another_host(scene: Scene) -> None:
    scene.options += ["--host", "192.0.2.1"]


def no_ipv6(scene: Scene) -> None:
    # The loopback interface of a new network is down, and has no ::1.
    wants("unshare", "--net", "true")
    scene.prefix = ["unshare", "--net"]
    scene.options += ["--host", "::1"]


def a_unix_socket_in_use(scene: Scene) -> None:
    a_unix_socket(scene)
    other = scene.undo.enter_context(socket.socket(socket.AF_UNIX))
    other.bind(str(scene.folder / "numbers.sock"))
    other.listen()


def a_file_in_the_place_of_a_unix_socket(scene: Scene) -> None:
    a_unix_socket(scene)
    (scene.folder / "numbers.sock").write_bytes(b"")


def no_folder_for_a_unix_socket(scene: Scene) -> None:
    scene.options += ["--listen", f"unix:{scene.folder}/nowhere/numbers.sock"]


def a_group_that_is_not_there(scene: Scene) -> None:
    a_unix_socket(scene)
    scene.options += ["--unix-group", "no.such"]


def no_folder_for_the_log(scene: Scene) -> None:
    scene.options += ["--log-file", "nowhere/numbers.log"]


def a_folder_for_a_log(scene: Scene) -> None:
    scene.log.mkdir()


def a_fifo_for_a_log(scene: Scene) -> None:
    os.mkfifo(scene.log)


def a_log_whose_name_is_too_long(scene: Scene) -> None:
    scene.options += ["--log-file", "n" * 300]


def links_in_a_circle(scene: Scene) -> None:
    scene.log.symlink_to(scene.log)


def a_log_in_proc(scene: Scene) -> None:
    scene.options += ["--log-file", "/proc/numbers.log"]


def a_locked_log(scene: Scene) -> None:
    file = scene.undo.enter_context(scene.log.open("wb"))
    fcntl.flock(file, fcntl.LOCK_EX)


def a_log_that_only_grows(scene: Scene, content: bytes = LINES) -> None:
    scene.log.write_bytes(content)
    wants("chattr", "+a", str(scene.log))
    scene.undo.callback(subprocess.run, ["chattr", "-a", str(scene.log)], check=True)


def an_empty_log_that_only_grows(scene: Scene) -> None:
    a_log_that_only_grows(scene, b"")


def a_log_to_resume_that_only_grows(scene: Scene) -> None:
    a_log_that_only_grows(scene)
    scene.options += ["--resume"]


def a_torn_log_to_resume_that_only_grows(scene: Scene) -> None:
    a_log_that_only_grows(scene, LINES + b"12")
    scene.options += ["--resume"]


def without_powers(scene: Scene) -> None:
    if os.geteuid() == 0:
        wants(*ROOT_WITHOUT_POWERS, "true")
        scene.prefix = [*ROOT_WITHOUT_POWERS]


def a_log_that_may_not_be_written(scene: Scene) -> None:
    without_powers(scene)
    scene.log.write_bytes(LINES)
    scene.log.chmod(0o400)


def a_log_to_resume_that_may_not_be_read(scene: Scene) -> None:
    without_powers(scene)
    a_log_to_resume(scene)
    scene.log.chmod(0o200)


def a_folder_that_may_not_be_written(scene: Scene) -> None:
    without_powers(scene)
    folder = scene.folder / "closed"
    folder.mkdir(mode=0o555)
    scene.options += ["--log-file", "closed/numbers.log"]


def a_folder_that_may_not_be_written_for_a_unix_socket(scene: Scene) -> None:
    without_powers(scene)
    folder = scene.folder / "closed"
    folder.mkdir(mode=0o555)
    scene.options += ["--listen", f"unix:{folder}/numbers.sock"]


def a_file_system_that_is_read_only(scene: Scene) -> None:
    wants("unshare", "--mount", "true")
    script = f'mount --bind "{scene.folder}" "{scene.folder}" && '
    script += f'mount -o remount,bind,ro "{scene.folder}" && exec "$@"'
    scene.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    scene.options += ["--log-file", str(scene.log)]


def a_bad_line_at_the_start(scene: Scene) -> None:
    scene.log.write_bytes(b"x" + LINES)
    scene.options += ["--resume"]


def a_bad_line_at_the_end_of_a_long_log(scene: Scene) -> None:
    scene.log.write_bytes(lines(range(3 * PROBE_CHUNK_BYTES // 10)) + b"00000000x\n")
    scene.options += ["--resume"]


def a_rotated_log_with_a_bad_line(scene: Scene) -> None:
    (scene.folder / "numbers.log.1").write_bytes(LINES + b"1\n")
    scene.options += ["--seen", "numbers.log.*"]


def a_rotated_log_that_gzip_has_not_compressed(scene: Scene) -> None:
    (scene.folder / "numbers.log.1.gz").write_bytes(LINES)
    scene.options += ["--seen", "numbers.log.*"]


def a_rotated_log_that_may_not_be_read(scene: Scene) -> None:
    without_powers(scene)
    a_rotated_log_with_a_bad_line(scene)
    (scene.folder / "numbers.log.1").chmod(0)


def more_rotated_logs_than_descriptors(scene: Scene) -> None:
    for i in range(200):
        (scene.folder / f"numbers.log.{i}").touch()
    scene.prefix = ["prlimit", "--nofile=100:200"]
    scene.options += ["--seen", "numbers.log.*"]


def no_file_seen(scene: Scene) -> None:
    scene.options += ["--seen", "numbers.log.1"]


def a_low_hard_limit_of_descriptors(scene: Scene) -> None:
    scene.prefix = ["prlimit", "--nofile=100:100"]
    scene.options += ["--max-clients", "1000"]


def hardly_a_descriptor(scene: Scene) -> None:
    scene.prefix = ["prlimit", "--nofile=8:8"]


def forbid_rings(scene: Scene, error: int) -> None:
    scene.ring_error = error


def a_ring_that_is_forbidden(scene: Scene) -> None:
    forbid_rings(scene, errno.EPERM)
    scene.options += ["--backend", "uring"]


def a_ring_that_the_kernel_has_not(scene: Scene) -> None:
    forbid_rings(scene, errno.ENOSYS)
    scene.options += ["--backend", "uring"]


def no_memory_that_may_be_locked_for_a_ring(scene: Scene) -> None:
    without_powers(scene)
    scene.prefix = ["prlimit", f"--memlock={16 * 1024}:{16 * 1024}", *scene.prefix]
    scene.options += ["--backend", "uring"]


def no_memory_for_the_bitmap(scene: Scene) -> None:
    scene.prefix = ["prlimit", f"--as={100 * MEGABYTE}"]


def no_memory_for_the_thread(scene: Scene) -> None:
    scene.prefix = ["prlimit", f"--as={400 * MEGABYTE}", f"--stack={2**30}:"]


def no_memory_for_the_ring(scene: Scene) -> None:
    limit_address_space_at_the_bitmap(scene, before_bytes=BITMAP_BYTES + 4 * MEGABYTE)
    scene.options += ["--backend", "uring"]


def no_memory_for_the_rings_of_all_reactors(scene: Scene) -> None:
    # For the first few.
    without_powers(scene)
    scene.prefix = ["prlimit", f"--memlock={2 * MEGABYTE}:{2 * MEGABYTE}", *scene.prefix]
    scene.options += ["--backend", "uring", "--reactors", "64"]


def no_memory_for_the_threads_of_all_reactors(scene: Scene) -> None:
    scene.prefix = ["prlimit", f"--as={400 * MEGABYTE}", f"--stack={2**30}:"]
    scene.options += ["--reactors", "2"]


def a_group_without_memory(scene: Scene) -> None:
    group = scene.undo.enter_context(memory_group(96 * MEGABYTE))
    scene.prefix = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]


class memory_group:  # noqa: N801 - used as a function
    """A memory control group, of either version, for as long as the context lasts."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes

    def __enter__(self) -> Path:
        for root, limit in (
            (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
            (Path("/sys/fs/cgroup"), "memory.max"),
        ):
            self._group = root / f"numbers-uring-doctor-{os.getpid()}"
            try:
                self._group.mkdir()
            except OSError:
                continue
            try:
                (self._group / limit).write_text(str(self._limit_bytes))
            except OSError:
                self._group.rmdir()
                continue
            return self._group
        pytest.skip("no memory control group can be made here")

    def __exit__(self, *_: object) -> None:
        self._group.rmdir()


STARTS = [
    plain,
    an_earlier_log,
    a_log_to_resume,
    a_log_to_resume_with_the_kernel_in_python,
    a_new_log_to_resume,
    rotated_logs,
    an_empty_log_that_only_grows,
    a_log_to_resume_that_only_grows,
    a_link_to_a_log_that_is_not_there,
    a_port_that_is_bound_for_reuse,
    a_unix_socket,
    a_unix_socket_of_a_dead_server,
    two_addresses,
    a_low_soft_limit_of_descriptors,
    no_ring_where_auto_chooses,
    a_ring,
    metrics_and_a_profile,
]

DOES_NOT: dict[Callable[[Scene], None], str] = {
    a_port_in_use: "listen",
    a_port_that_is_bound: "listen",
    its_own_port_for_metrics: "listen",
    its_own_port_for_metrics_on_all_addresses: "listen",
    two_addresses_that_are_one: "listen",
    a_host_that_is_not_there: "listen",
    an_address_of_another_host: "listen",
    no_ipv6: "listen",
    a_unix_socket_in_use: "listen",
    a_file_in_the_place_of_a_unix_socket: "listen",
    no_folder_for_a_unix_socket: "listen",
    a_group_that_is_not_there: "listen",
    a_folder_that_may_not_be_written_for_a_unix_socket: "listen",
    no_folder_for_the_log: "log",
    a_folder_for_a_log: "log",
    a_fifo_for_a_log: "log",
    a_log_whose_name_is_too_long: "log",
    links_in_a_circle: "log",
    a_log_in_proc: "log",
    a_locked_log: "log",
    a_log_that_only_grows: "log",
    a_torn_log_to_resume_that_only_grows: "log",
    a_log_that_may_not_be_written: "log",
    a_log_to_resume_that_may_not_be_read: "log",
    a_folder_that_may_not_be_written: "log",
    a_file_system_that_is_read_only: "log",
    a_bad_line_at_the_start: "log",
    a_bad_line_at_the_end_of_a_long_log: "log",
    a_rotated_log_with_a_bad_line: "seen",
    a_rotated_log_that_gzip_has_not_compressed: "seen",
    a_rotated_log_that_may_not_be_read: "seen",
    more_rotated_logs_than_descriptors: "seen",
    a_low_hard_limit_of_descriptors: "descriptors",
    hardly_a_descriptor: "descriptors",
    a_port_in_use_for_metrics: "metrics",
    a_profile_in_the_place_of_the_log: "profile",
    no_folder_for_the_profile: "profile",
    a_ring_that_is_forbidden: "backend",
    a_ring_that_the_kernel_has_not: "backend",
    no_memory_that_may_be_locked_for_a_ring: "backend",
    no_memory_for_the_bitmap: "memory",
    no_memory_for_the_thread: "signals",
    no_memory_for_the_ring: "buffers",
    no_memory_for_the_rings_of_all_reactors: "buffers",
    no_memory_for_the_threads_of_all_reactors: "signals",
    a_group_without_memory: "memory",
}


# Faults that can be there two at a time: each adds to what the scene has.


def limit_address_space_at_the_bitmap(scene: Scene, before_bytes: int) -> None:
    """Leave so much, for Pythons and libraries differ in what they take before."""
    scene.preludes += [
        "import os, resource",
        "from numbers_uring.server import steps",
        "allocate = steps.allocate",
        "def limited():",
        "    pages = int(open('/proc/self/statm').read().split()[0])",
        f"    limit = pages * os.sysconf('SC_PAGESIZE') + {before_bytes}",
        "    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))",
        "    return allocate()",
        "steps.allocate = limited",
    ]


def too_few_descriptors(scene: Scene) -> None:
    scene.prefix += ["prlimit", "--nofile=100:100"]
    scene.options += ["--max-clients", "1000"]


def a_cpu_without_avx2(scene: Scene) -> None:
    scene.preludes += [
        "from numbers_uring.ingest import native",
        "slow = [kernel for kernel in native.variants() if kernel.variant != 'avx2']",
        "native.variants = lambda: slow",
    ]
    scene.options += ["--kernel", "avx2"]


def no_recorder(scene: Scene) -> None:
    scene.preludes += ["import shutil", "shutil.which = lambda *_, **__: None"]
    scene.options += ["--profile", str(scene.folder / "flames.svg")]


def no_metrics_library(scene: Scene) -> None:
    scene.preludes += ["import sys", "sys.modules['prometheus_client'] = None"]
    scene.options += ["--metrics", "127.0.0.1:0"]


def too_little_address_space(scene: Scene) -> None:
    limit_address_space_at_the_bitmap(scene, before_bytes=BITMAP_BYTES // 2)


FAULTS: dict[Callable[[Scene], None], str] = {
    too_few_descriptors: "descriptors",
    a_cpu_without_avx2: "kernel",
    a_ring_that_is_forbidden: "backend",
    no_recorder: "profile",
    no_metrics_library: "metrics",
    a_port_in_use_for_metrics: "metrics",
    too_little_address_space: "memory",
    a_port_in_use: "listen",
    no_folder_for_a_unix_socket: "listen",
    a_locked_log: "log",
    no_folder_for_the_log: "log",
    no_file_seen: "seen",
}


def prepare(scene: Scene, host: Callable[[Scene], None]) -> None:
    host(scene)
    if not {"--port", "--listen"} & set(scene.options):
        scene.options += ["--port", "0"]
