"""`numbers-uring doctor` says what `serve` does, whatever the surroundings, and leaves no trace."""

import ast
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from numbers_uring.cli.serve import serve_config, serve_options
from numbers_uring.doctor import examination, host_facts
from numbers_uring.doctor.checks import Diagnosis, Weight
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES, DESCRIPTORS_RESERVED, PROBE_CHUNK_BYTES
from numbers_uring.reactor.uring_features import FEATURES
from numbers_uring.server import select
from ports import reserve_port
from support.logs import lines
from support.processes import ServerProcess
from support.seccomp import FORBID
from support.waiting import DEADLINE_S

COMMAND = (sys.executable, "-m", "numbers_uring")
LINES = lines(range(100))
MEGABYTE = 2**20

ROOT_WITHOUT_POWERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-ipc_lock")
"""Root may do what others may not: write any file, lock any memory."""


@dataclass
class Scene:
    """Surroundings for a server: its options, and how it is run."""

    folder: Path
    undo: ExitStack
    options: list[str] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)
    command: tuple[str, ...] = COMMAND

    @property
    def log(self) -> Path:
        return self.folder / "numbers.log"

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *self.command, command, *self.options, *options],
            capture_output=True,
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            text=True,
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


# Surroundings in which a server starts.


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


# Surroundings in which it does not.


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


def a_low_hard_limit_of_descriptors(scene: Scene) -> None:
    scene.prefix = ["prlimit", "--nofile=100:100"]
    scene.options += ["--max-clients", "1000"]


def hardly_a_descriptor(scene: Scene) -> None:
    scene.prefix = ["prlimit", "--nofile=8:8"]


def forbid_rings(scene: Scene, error: int) -> None:
    scene.command = (sys.executable, "-c", FORBID, str(error), "-m", "numbers_uring")


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
    scene.prefix = ["prlimit", f"--as={165 * MEGABYTE}"]
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

DOES_NOT = {
    a_port_in_use: "listen",
    a_port_that_is_bound: "listen",
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
    a_low_hard_limit_of_descriptors: "descriptors",
    hardly_a_descriptor: "descriptors",
    a_port_in_use_for_metrics: "metrics",
    a_profile_in_the_place_of_the_log: "profile",
    no_folder_for_the_profile: "profile",
    a_ring_that_is_forbidden: "backend",
    a_ring_that_the_kernel_has_not: "backend",
    no_memory_that_may_be_locked_for_a_ring: "backend",
    no_memory_for_the_bitmap: "memory",
    no_memory_for_the_thread: "buffers",
    no_memory_for_the_ring: "buffers",
    no_memory_for_the_rings_of_all_reactors: "buffers",
    no_memory_for_the_threads_of_all_reactors: "buffers",
    a_group_without_memory: "memory",
}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as undo:
        yield Scene(tmp_path, undo)


def prepare(scene: Scene, surroundings: Callable[[Scene], None]) -> None:
    surroundings(scene)
    if not {"--port", "--listen"} & set(scene.options):
        scene.options += ["--port", "0"]


@pytest.mark.parametrize("surroundings", STARTS, ids=lambda case: case.__name__)
def test_where_a_server_starts_the_doctor_says_so(
    scene: Scene, surroundings: Callable[[Scene], None], request: pytest.FixtureRequest
) -> None:
    if surroundings is a_ring:
        request.getfixturevalue("ring")
    prepare(scene, surroundings)
    before = scene.traces()
    done = scene.run("doctor")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^serve would start: backend \w+, kernel \w+$", done.stdout, re.MULTILINE)
    assert "PROBLEM" not in done.stdout
    assert scene.traces() == before
    assert scene.server_starts()


@pytest.mark.parametrize(
    ("surroundings", "finding"), DOES_NOT.items(), ids=[case.__name__ for case in DOES_NOT]
)
def test_where_no_server_starts_the_doctor_says_the_same_as_the_server(
    scene: Scene, surroundings: Callable[[Scene], None], finding: str
) -> None:
    prepare(scene, surroundings)
    before = scene.traces()
    done = scene.run("doctor", "--json")
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    assert scene.traces() == before
    told = json.loads(done.stdout)
    problems = [name for name, one in told["findings"].items() if one["verdict"] == "problem"]
    assert problems == [finding]
    assert told["findings"][finding]["advice"]
    assert told["findings"][finding]["text"] == told["error"]
    served = scene.run("serve")
    assert served.returncode in {3, -signal.SIGKILL}
    if served.returncode == 3:
        assert served.stderr == f"numbers-uring: error: {' '.join(told['error'].split())}\n"


# Beside a server.


def test_beside_a_running_server_its_address_and_log_are_in_use_and_it_goes_on(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = serve()
    with server.connect() as client:
        client.sendall(LINES)
        scene = Scene(tmp_path, ExitStack(), ["--port", str(server.port)])
        done = scene.run("doctor")
        assert done.returncode == 1
        for words in (
            rf"PROBLEM  listen +cannot listen on 127\.0\.0\.1:{server.port}: Address already",
            r"PROBLEM  log +cannot lock the log .*: another process has locked it",
            r"^serve would not start: cannot listen on ",
        ):
            assert re.search(words, done.stdout, re.MULTILINE), done.stdout
        client.sendall(lines([999]))
    assert server.terminate() == 0
    assert server.logged_set() == {*range(100), 999}
    assert "2 clients served" in server.stderr


# How it is told.


def test_findings_that_cannot_be_written_are_one_line_and_exit_3(tmp_path: Path) -> None:
    scene = Scene(
        tmp_path, ExitStack(), ["--port", "0"], ["sh", "-c", 'exec "$@" >/dev/full', "sh"]
    )
    done = scene.run("doctor")
    assert done.returncode == 3
    assert re.fullmatch("numbers-uring: error: cannot write .*\n", done.stderr)


def test_the_json_has_every_finding_under_its_name(tmp_path: Path) -> None:
    done = Scene(tmp_path, ExitStack(), ["--port", "0", "--json"]).run("doctor")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"], told["would_start"]) == (0, 0, True)
    assert (told["error"], told["backend"]) == (None, "epoll")
    assert told["kernel"] == variants()[0].variant
    assert list(told["findings"]) == [
        *("profile", "kernel", "io_uring", "backend", "descriptors", "metrics", "memory"),
        *("huge_pages", "listen"),
        *("buffers", "log", "disk", "file_size", "memlock", "backlog", "receive_window"),
        *("processors", "confinement", "linux", "python", "program"),
    ]
    for finding in told["findings"].values():
        assert set(finding) == {"verdict", "text", "advice", "values"}
        assert finding["verdict"] in {"ok", "note"}
    assert list(told["findings"]["io_uring"]["values"]["features"]) == list(FEATURES)
    assert told["findings"]["disk"]["values"]["free_bytes"] > 0
    assert told["findings"]["memory"]["values"]["needed_bytes"] > BITMAP_BYTES
    assert told["findings"]["descriptors"]["values"]["needed"] == 5 + DESCRIPTORS_RESERVED
    assert told["findings"]["linux"]["values"]["release"] == os.uname().release


def test_the_environment_of_the_server_is_the_doctors_too(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ExitStack())
    scene.prefix = [
        *("env", "NUMBERS_URING_SERVE_MAX_CLIENTS=77", "NUMBERS_URING_SERVE_PORT=0"),
        *("NUMBERS_URING_SERVE_KERNEL=python", "NUMBERS_URING_DOCTOR_JSON=1"),
    ]
    told = json.loads(scene.run("doctor").stdout)
    assert told["kernel"] == "python"
    assert told["findings"]["descriptors"]["values"]["needed"] == 77 + DESCRIPTORS_RESERVED
    assert told["findings"]["listen"]["values"]["addresses"] == ["127.0.0.1:0"]
    wrong = Scene(tmp_path, ExitStack(), prefix=["env", "NUMBERS_URING_SERVE_PORT=http"])
    done = wrong.run("doctor")
    assert done.returncode == 2
    assert re.fullmatch(r"numbers-uring: error: .*http.*--help.*\n", done.stderr)


def test_without_options_it_is_about_the_servers_defaults(tmp_path: Path) -> None:
    # The address may be in use here, so whether a server would start is left open.
    told = json.loads(Scene(tmp_path, ExitStack()).run("doctor", "--json").stdout)
    assert told["findings"]["listen"]["values"]["addresses"] == ["127.0.0.1:4000"]
    assert told["findings"]["log"]["values"]["path"] == str(tmp_path / "numbers.log")


def test_the_help_has_the_servers_options_and_the_exit_codes(tmp_path: Path) -> None:
    done = Scene(tmp_path, ExitStack()).run("doctor", "--help")
    assert done.returncode == 0
    for word in ("--json", "--listen", "--max-clients", "--resume", "Exit status: 0"):
        assert word in done.stdout


def test_a_name_of_a_file_cannot_forge_a_line(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ExitStack(), ["--port", "0", "--log-file", "a\nserve would start: b"])
    done = scene.run("doctor")
    assert done.returncode == 0
    assert len(re.findall("^serve would", done.stdout, re.MULTILINE)) == 1


# What can't be had, or found out.


def ring_finding(tmp_path: Path, error: int, *options: str) -> dict[str, Any]:
    scene = Scene(tmp_path, ExitStack(), ["--port", "0", "--json", *options])
    forbid_rings(scene, error)
    done = scene.run("doctor")
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)
    assert told["backend"] == "epoll"
    assert told["findings"]["backend"]["verdict"] == "note"
    finding: dict[str, Any] = told["findings"]["io_uring"]
    return finding


@pytest.mark.parametrize(
    ("error", "name", "advice"),
    [
        (errno.EPERM, "EPERM", "seccomp"),
        (errno.ENOSYS, "ENOSYS", "without io_uring"),
        (errno.ENOMEM, "ENOMEM", "ulimit -l"),
        (errno.EINVAL, "EINVAL", r"Linux 6\.1"),
        (errno.EMFILE, "EMFILE", "ulimit -n"),
    ],
)
def test_why_there_is_no_ring_is_said_with_what_to_do(
    tmp_path: Path, error: int, name: str, advice: str
) -> None:
    finding = ring_finding(tmp_path, error)
    assert finding["verdict"] == "note"
    assert f"setup {name}" in finding["text"]
    assert re.search(advice, finding["advice"])
    features = finding["values"]["features"]
    assert features.pop("setup") == name
    assert set(features.values()) == {"ECANCELED"}


def test_a_kernel_that_forbids_rings_is_told_from_a_container_that_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forbidden = dict.fromkeys(FEATURES, "ECANCELED") | {"setup": "EPERM"}
    monkeypatch.setattr(examination, "try_features", lambda: forbidden)
    monkeypatch.setattr(examination, "read_integer", lambda _: 2)
    (finding,) = (one for one in examine(tmp_path).findings if one.name == "io_uring")
    assert "kernel.io_uring_disabled is 2" in str(finding.advice)


def examine(folder: Path, *options: str) -> Diagnosis:
    """Examine this process, for a server whose log would be in `folder`."""
    command = click.command()(serve_options(lambda **_: None))
    arguments = ["--port", "0", "--log-file", str(folder / "numbers.log"), *options]
    with command.make_context("serve", arguments) as context:
        return examination.examine(serve_config(context.params))


def test_a_kernel_that_this_cpu_does_not_run_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = [kernel for kernel in variants() if kernel.variant != "avx2"]
    monkeypatch.setattr(select, "variants", lambda: slow)
    monkeypatch.setattr(examination, "variants", lambda: slow)
    diagnosis = examine(tmp_path, "--kernel", "avx2")
    assert diagnosis.error == "this CPU does not run the kernel avx2, only swar and slower"
    assert diagnosis.kernel is None
    assert examine(tmp_path).kernel == "swar"


def test_without_proc_and_sys_much_is_unknown_and_nothing_breaks(tmp_path: Path) -> None:
    wants("unshare", "--mount", "true")
    scene = Scene(tmp_path, ExitStack(), ["--port", "0"])
    script = 'mount -t tmpfs none /proc && mount -t tmpfs none /sys && exec "$@"'
    scene.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    done = scene.run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("seccomp unknown", "unknown clients may wait", "an unknown file system"):
        assert words in done.stdout
    assert scene.server_starts()


def test_the_limits_of_this_process_are_told(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ExitStack(), ["--port", "0"])
    scene.prefix = ["prlimit", f"--fsize={MEGABYTE}"]
    done = scene.run("doctor")
    assert done.returncode == 0
    assert re.search(rf"note +file_size +{MEGABYTE} bytes a file\n +-> .*ulimit -f", done.stdout)


def test_a_log_that_would_be_dropped_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "numbers.log").write_bytes(LINES)
    (finding,) = (one for one in examine(tmp_path).findings if one.name == "log")
    assert finding.weight is Weight.NOTE
    assert "1000 bytes of an earlier run would be dropped" in finding.text


def test_no_descriptor_and_no_thread_is_left(tmp_path: Path) -> None:
    def left() -> tuple[int, ...]:
        return tuple(len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))

    before = left()
    examine(tmp_path, "--listen", f"unix:{tmp_path}/numbers.sock")
    assert left() == before


# What the system says of itself.


def test_the_tightest_of_nested_memory_groups_counts_without_its_files(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for group, limit, used, files in (
        (tmp_path, None, 0, 0),
        (inner.parent, "1000", 900, 400),
        (inner, "max", 300, 0),
    ):
        if limit is not None:
            (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {files}\nactive_file 0\n")
    (found,) = host_facts._limited_groups(tmp_path, "/outer/inner", host_facts._GROUP_VERSIONS[0])
    assert (found.path, found.limit_bytes, found.left_bytes) == (inner.parent, 1000, 500)


def test_of_mounts_on_one_another_the_last_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "\n".join(
        (
            "20 1 8:1 / / rw - ext4 /dev/a rw",
            "21 20 8:2 / /data\\040of\\040us rw shared:1 - xfs /dev/b rw",
            "22 21 0:9 / /data\\040of\\040us rw - tmpfs none rw",
            "nonsense",
            "23 20 0:10 / /data rw master:2 - nfs4 server:/ rw",
        )
    )
    monkeypatch.setattr(host_facts, "read_text", lambda _: table)
    assert host_facts._mount(Path("/data of us/x")) == ("/data of us", "tmpfs")
    assert host_facts._mount(Path("/data/x")) == ("/data", "nfs4")
    assert host_facts._mount(Path("/database")) == ("/", "ext4")


@pytest.mark.parametrize(
    ("kind", "words"), [("nfs4", "network"), ("tmpfs", "it is memory"), ("ext4", None)]
)
def test_a_disk_that_is_none_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, words: str | None
) -> None:
    monkeypatch.setattr(host_facts, "_mount", lambda _: ("/", kind))
    (finding,) = (one for one in examine(tmp_path).findings if one.name == "disk")
    assert (words is None) == (finding.advice is None)
    assert words is None or words in str(finding.advice)


# What the documentation explains.

TROUBLESHOOTING = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()

ERRORS = {"StartError", "SinkError", "ForwardError", "BackendError"}
OTHER_COMMANDS = {
    *(
        "log/check.py",
        "log/repair.py",
        "cli/check.py",
        "load/run.py",
        "cli/load.py",
        "cli/output.py",
        "load/plot_file.py",
    ),
}


def errors_raised() -> Iterator[str]:
    """Yield what each error of a server begins with, up to what differs from run to run."""
    package = Path(examination.__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in ERRORS or str(path.relative_to(package)) in OTHER_COMMANDS:
                continue
            (text,) = node.args
            first = text.values[0] if isinstance(text, ast.JoinedStr) else text
            if isinstance(first, ast.Constant):
                yield str(first.value).strip()


def test_every_error_of_the_server_is_explained() -> None:
    errors = set(errors_raised())
    assert {"cannot open the log", "another process listens there", "the backend failed:"} <= errors
    rows = [row for row in TROUBLESHOOTING.splitlines() if row.startswith("| `")]
    explained = [line for row in rows for line in re.findall(r"`([^`]+)`", row)]
    assert [error for error in errors if not any(error in line for line in explained)] == []


def test_every_finding_is_explained(tmp_path: Path) -> None:
    headings = re.findall(r"^### (.+)$", TROUBLESHOOTING, re.MULTILINE)
    explained = [name for heading in headings for name in heading.split(", ")]
    findings = examine(tmp_path).findings
    assert [finding.name for finding in findings] == explained
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", TROUBLESHOOTING, re.MULTILINE))
    for finding in findings:
        told = set(re.findall(r"`(\w+)`", rows[finding.name]))
        if finding.name == "program":
            assert told <= set(finding.values)
        else:
            assert set(finding.values) <= told
