"""`numbers-uring doctor` says what `serve` does, on any host, and leaves no trace."""

import ast
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest

from numbers_uring.cli.serve import serve_config
from numbers_uring.cli.serve_options import serve_options
from numbers_uring.doctor import examination, host_facts, ring_check, step_checks
from numbers_uring.doctor.checks import Diagnosis, Severity
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES, DESCRIPTORS_RESERVED
from numbers_uring.reactor.uring_features import FEATURES
from numbers_uring.server import select
from support.logs import lines
from support.processes import ServerProcess
from support.scenes import LINES, MEGABYTE, Scene, forbid_rings, wants
from support.waiting import wait_until

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
        *("descriptors", "kernel", "io_uring", "backend", "signals", "profile", "metrics"),
        *("memory", "huge_pages", "listen"),
        *("buffers", "log", "seen", "disk", "file_size", "memlock", "backlog", "receive_window"),
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
    for word in ("--json", "--listen", "--max-clients", "--resume", "Exit status:"):
        assert word in done.stdout


def test_a_name_of_a_file_cannot_forge_a_line(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ExitStack(), ["--port", "0", "--log-file", "a\nserve would start: b"])
    done = scene.run("doctor")
    assert done.returncode == 0
    assert len(re.findall("^serve would", done.stdout, re.MULTILINE)) == 1


# What is not available, or cannot be found out.


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
    monkeypatch.setattr(ring_check, "try_features", lambda: forbidden)
    monkeypatch.setattr(ring_check, "read_integer", lambda _: 2)
    (finding,) = (one for one in examine(tmp_path).checks if one.name == "io_uring")
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
    monkeypatch.setattr(step_checks, "variants", lambda: slow)
    diagnosis = examine(tmp_path, "--kernel", "avx2")
    assert diagnosis.error == "this CPU does not support the kernel avx2, only swar and slower"
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
    (finding,) = (one for one in examine(tmp_path).checks if one.name == "log")
    assert finding.severity is Severity.NOTE
    assert "1000 bytes of an earlier run would be dropped" in finding.text


def test_no_descriptor_and_no_thread_is_left(tmp_path: Path) -> None:
    def left() -> tuple[int, ...]:
        return tuple(len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))

    before = left()
    examine(tmp_path, "--listen", f"unix:{tmp_path}/numbers.sock")
    wait_until(lambda: left() == before, "the last thread to end")


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
    (finding,) = (one for one in examine(tmp_path).checks if one.name == "disk")
    assert (words is None) == (finding.advice is None)
    assert words is None or words in str(finding.advice)


# What the documentation explains.

TROUBLESHOOTING = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()

ERRORS = {"StartError", "SinkError", "ForwardError", "BackendError"}
OTHER_COMMANDS = (
    *("cli/check.py", "cli/line_files.py", "cli/load.py", "cli/output.py", "cli/watch.py"),
    *("log/check.py", "log/repair.py", "load/"),
    *("cluster/collector/", "cluster/verify/", "cluster/forget.py", "cluster/init.py"),
    "cluster/skip.py",
)
"""Files and folders with errors of other commands than serve."""


def errors_raised() -> Iterator[str]:
    """Yield what each error of a server begins with, up to what differs from run to run."""
    package = Path(examination.__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in ERRORS or path.relative_to(package).as_posix().startswith(
                OTHER_COMMANDS
            ):
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
    findings = examine(tmp_path).checks
    assert [finding.name for finding in findings] == explained
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", TROUBLESHOOTING, re.MULTILINE))
    for finding in findings:
        told = set(re.findall(r"`(\w+)`", rows[finding.name]))
        if finding.name == "program":
            assert told <= set(finding.values)
        else:
            assert set(finding.values) <= told
