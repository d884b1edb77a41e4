"""`serve --profile`: what is recorded, and that nothing else is any different for it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from numbers_uring.errors import ExitCode, StartError
from numbers_uring.profiling import perf as perf_module
from numbers_uring.profiling import py_spy as py_spy_module
from numbers_uring.profiling.flame_graph import Origin
from numbers_uring.profiling.perf import PerfRecorder
from numbers_uring.profiling.py_spy import PySpyRecorder
from numbers_uring.profiling.python_names import Names, names_offered
from numbers_uring.profiling.reading import Reading
from numbers_uring.profiling.recorder import start_recorder
from numbers_uring.profiling.recording import RecordError
from numbers_uring.system.output_file import OutputFile
from support.logs import lines
from support.processes import ServerProcess, run_text
from support.waiting import DEADLINE_S, wait_until

NUMBERS = range(300_000)
Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def perf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where perf is; skips where there is none, or the system does not allow it."""
    path = shutil.which("perf")
    if path is None:
        pytest.skip("no perf here")
    data = tmp_path_factory.mktemp("perf") / "data"
    command = [path, "record", "--event", "cpu-clock", "--output", str(data), "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"perf can't record here: {tried.stderr.strip()}")
    return path


@pytest.fixture(scope="session")
def tracing() -> None:
    """Skips where the system does not allow a child to trace its parent, as py-spy has to."""
    py_spy = shutil.which("py-spy", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    assert py_spy, "py-spy is a requirement of the tests"
    command = [py_spy, "dump", "--pid", str(os.getpid())]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode and "ermission" in tried.stderr:
        pytest.skip(f"py-spy may not look at processes here: {tried.stderr.strip()}")


@pytest.fixture
def leftovers(tmp_path: Path) -> Path:
    """The folder for temporary files of a server, see `serve_profiled`."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def serve_profiled(serve: Serve, tmp_path: Path, leftovers: Path) -> Serve:
    """Start a server that profiles itself to graph.svg; `tools` is put before its PATH."""

    def start(tools: str = "", **environment: str) -> ServerProcess:
        path = ":".join(filter(None, [tools, os.environ["PATH"]]))
        return serve(
            *("--profile", str(tmp_path / "graph.svg")),
            environment={"PATH": path, "TMPDIR": str(leftovers), **environment},
        )

    return start


def script(folder: Path, name: str, text: str) -> str:
    """Put an executable in a folder of its own; return the folder, for PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(folder)


def failing(folder: Path) -> str:
    script(folder, "py-spy", "echo 'Error: py-spy is not allowed' >&2; exit 1")
    return script(folder, "perf", "echo 'perf is not allowed' >&2; exit 1")


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def titles(graph: Path) -> list[str]:
    """Return what hovering over the frames of a picture shows."""
    return [str(title.text) for title in ElementTree.parse(graph).iter() if "title" in title.tag]


def run_busily(server: ServerProcess) -> None:
    """Have it take in enough to be sampled, and stop it; nothing may differ from other runs."""
    for _ in range(20):
        server.send(lines(NUMBERS))
    assert server.stop() == ExitCode.CLEAN
    assert server.reported() == (len(NUMBERS), 19 * len(NUMBERS), len(NUMBERS))
    assert server.logged_set() == set(NUMBERS)


def test_perf_shows_python_our_c_and_linux(
    perf: str, serve_profiled: Serve, tmp_path: Path, leftovers: Path
) -> None:
    offered = names_offered()
    option = {
        Names.FRAME_POINTERS: {"PYTHONPERFSUPPORT": "1"},
        Names.JIT_DUMP: {"PYTHON_PERF_JIT_SUPPORT": "1"},
        Names.NONE: {},
    }[offered]
    server = serve_profiled(**option)
    (recorder,) = children(server.process.pid)
    assert os.getsid(recorder) == recorder, "ctrl-C would end it before the server does"
    run_busily(server)
    assert not Path(f"/proc/{recorder}").exists()
    assert not list(leftovers.iterdir())
    shown = "\n".join(titles(tmp_path / "graph.svg"))
    # Without the right to see Linux its part is missing, which is no fault of ours.
    sees_linux = os.geteuid() == 0
    assert Origin.NATIVE.label in shown
    assert (Origin.LINUX.label in shown) >= sees_linux
    assert "Server." in shown or (offered is Names.NONE and "interpreter (Python)" in shown)
    first, *_, last = server.stderr_lines
    assert first.startswith("numbers-uring: recording a profile for ")
    assert ("without names of Python's functions" in first) == (offered is Names.NONE)
    assert re.fullmatch(r"numbers-uring: profile in \S+: \d+ samples: Python \d.*", last)


def test_the_script_draws_what_it_has_recorded_under_load(perf: str, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "perf" / "flame_graph.py"
    command = [sys.executable, str(path), "--backend", "epoll", "--numbers", "3000000"]
    subprocess.run([*command, "--out", str(tmp_path / "new")], check=True, timeout=DEADLINE_S)
    picture = tmp_path / "new" / "flame-graph-epoll.svg"
    assert any("nu_ingest" in title for title in titles(picture))
    assert "backend epoll" in picture.read_text()


def test_py_spy_takes_over_where_perf_is_not_allowed(
    tracing: None, serve_profiled: Serve, tmp_path: Path, leftovers: Path
) -> None:
    tools = script(tmp_path / "tools", "perf", "echo 'perf is not allowed' >&2; exit 1")
    server = serve_profiled(tools)
    run_busily(server)
    shown = "\n".join(titles(tmp_path / "graph.svg"))
    # Which functions a few samples meet is chance; that they are the server's is not.
    assert re.search(r"\((loop|server|epoll|intake|run)\.py\) \(Python\)", shown)
    assert "Profile._watch" not in shown
    assert "py-spy, 100 samples a second, without Linux" in server.stderr_lines[0]
    assert not list(leftovers.iterdir())


def test_a_profile_that_cannot_be_recorded_is_refused_at_the_start(
    tmp_path: Path, leftovers: Path
) -> None:
    log, graph = tmp_path / "numbers.log", tmp_path / "graph.svg"
    log.write_bytes(lines([7]))
    path = f"{failing(tmp_path / 'tools')}:{os.environ['PATH']}"
    tried = serve_in_vain(
        log, graph, environment={**os.environ, "PATH": path, "TMPDIR": str(leftovers)}
    )
    assert tried.returncode == ExitCode.NOT_STARTED
    assert tried.stderr.startswith(
        "numbers-uring: error: cannot record a profile: perf is not allowed; "
        "Error: py-spy is not allowed (install perf, as root "
    )
    assert tried.stderr.count("\n") == 1
    assert log.read_bytes() == lines([7])
    assert not graph.exists()
    assert not list(leftovers.iterdir())


@pytest.mark.parametrize(
    "name", [".", "missing/graph.svg", "numbers.log", "same.svg", "old.log", "pipe"]
)
def test_a_file_that_cannot_hold_the_profile_is_refused_at_the_start(
    name: str, tmp_path: Path
) -> None:
    log = tmp_path / "numbers.log"
    log.write_bytes(b"" if name == "same.svg" else lines([7]))
    before = log.read_bytes()
    (tmp_path / "same.svg").hardlink_to(log)
    (tmp_path / "old.log").write_bytes(lines([8]))
    os.mkfifo(tmp_path / "pipe")
    tried = serve_in_vain(log, tmp_path / name)
    assert tried.returncode in {ExitCode.NOT_STARTED, ExitCode.USAGE}
    assert tried.stderr.startswith("numbers-uring: error: ")
    assert tried.stderr.count("\n") == 1
    assert log.read_bytes() == before
    assert (tmp_path / "old.log").read_bytes() == lines([8])


def serve_in_vain(
    log: Path, graph: Path, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "numbers_uring", "serve", "--port", "0"]
    return run_text(
        [*command, "--log-file", str(log), "--profile", str(graph)],
        capture_output=True,
        env=environment,
        timeout=DEADLINE_S,
    )


def test_a_recording_that_dies_is_one_warning_and_the_server_goes_on(
    perf: str, serve_profiled: Serve, tmp_path: Path, leftovers: Path
) -> None:
    server = serve_profiled()
    (recorder,) = children(server.process.pid)
    os.kill(recorder, signal.SIGKILL)
    warning = "the recording of the profile ended early"
    wait_until(lambda: warning in server.stderr, "the warning")
    run_busily(server)
    assert server.stderr.count(warning) == 1
    assert "no profile in" in server.stderr_lines[-1]
    assert not (tmp_path / "graph.svg").exists()
    assert not list(leftovers.iterdir())


def test_a_recording_that_cannot_be_read_changes_nothing_else(
    perf: str, serve_profiled: Serve, tmp_path: Path
) -> None:
    text = f'[ "$1" = script ] && {{ echo broken >&2; exit 1; }}; exec {perf} "$@"'
    server = serve_profiled(script(tmp_path / "tools", "perf", text))
    run_busily(server)
    assert server.stderr_lines[-1].endswith("graph.svg: broken")
    assert not (tmp_path / "graph.svg").exists()


def test_all_is_closed_before_a_profile_is_drawn_and_a_second_signal_ends_the_drawing(
    perf: str, serve_profiled: Serve, tmp_path: Path, leftovers: Path
) -> None:
    text = f'[ "$1" = script ] && exec sleep 1000; exec {perf} "$@"'
    server = serve_profiled(script(tmp_path / "tools", "perf", text))
    (recorder,) = children(server.process.pid)
    client = server.connect()
    client.sendall(lines([7]))
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopped by SIGTERM" in server.stderr, "the last line")
    wait_until(lambda: children(server.process.pid) not in ([recorder], []), "the drawing")
    assert client.recv(1) == b""
    client.close()
    assert server.logged() == [7]
    assert server.reported() == (1, 0, 1)
    with pytest.raises(ConnectionRefusedError):
        server.connect()

    def ended() -> bool:
        # Those that come at once with the first are no further ones.
        server.process.send_signal(signal.SIGINT)
        return server.process.poll() is not None

    wait_until(ended, "the end")
    assert server.wait() == ExitCode.CLEAN
    assert "no profile in" in server.stderr_lines[-1]
    assert not list(leftovers.iterdir())


def test_reading_ends_when_its_time_is_up() -> None:
    reading = Reading(0.05)
    assert not list(reading.lines(["sleep", "1000"]))
    assert reading.was_cut


def test_what_was_read_until_the_cut_counts() -> None:
    reading = Reading(DEADLINE_S)
    found = reading.lines(["sh", "-c", "echo one; echo two; exec sleep 1000"])
    assert next(iter(found)) == "one\n"
    reading.cut()
    assert list(found) in ([], ["two\n"])
    assert reading.was_cut
    assert not list(reading.lines(["sleep", "1000"])), "nothing is read after a cut"
    reading.close()


def test_a_tool_that_fails_is_an_error_with_its_own_words() -> None:
    reading = Reading(DEADLINE_S)
    with pytest.raises(RecordError, match=r"^the data is broken$"):
        list(reading.lines(["sh", "-c", "echo Error:; echo the data is broken >&2; exit 3"]))
    reading.close()


def test_a_process_that_is_not_there_cannot_be_recorded(perf: str, tracing: None) -> None:
    none_has = 2**22
    with pytest.raises(RecordError):
        PerfRecorder(none_has, Names.NONE)
    with pytest.raises(RecordError):
        PySpyRecorder(none_has)


FAILING_TOOLS = {
    "a reason": ("#!/bin/sh\necho Error:; echo; echo not allowed >&2; exit 1\n", "not allowed"),
    "no reason": ("#!/bin/sh\nexit 1\n", "failed, and gave no reason"),
    "no end": ("#!/bin/sh\nexec sleep 1000\n", "failed, and gave no reason"),
    "no program": ("\x7fELF", "cannot run "),
}


@pytest.mark.parametrize(("text", "reason"), FAILING_TOOLS.values(), ids=FAILING_TOOLS)
def test_tools_that_fail_are_one_error_with_a_reason_for_each(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("perf", "py-spy"):
        script(tmp_path / "tools", name, "")
        (tmp_path / "tools" / name).write_text(text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    for module in (perf_module, py_spy_module):
        monkeypatch.setattr(module, "PROFILE_START_S", 0.5)
    with pytest.raises(StartError) as refused:
        start_recorder(os.getpid(), Names.NONE)
    message = str(refused.value)
    assert message.count(reason) == 2
    assert "\n" not in message


def test_without_a_folder_for_its_files_no_tool_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(
        StartError, match=r"perf cannot create a folder .*; py-spy cannot create a folder "
    ):
        start_recorder(os.getpid(), Names.NONE)


def test_without_any_tool_the_hint_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StartError) as refused:
        start_recorder(os.getpid(), Names.NONE)
    assert str(refused.value).startswith(
        "cannot record a profile: perf is not installed; py-spy is not installed"
    )
    assert "pip install py-spy" in str(refused.value)


def test_an_output_file_is_as_it_was_until_it_is_written(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"something long")
    with OutputFile(old), OutputFile(new):
        assert new.exists()
    assert old.read_bytes() == b"something long"
    assert not new.exists()
    with OutputFile(old) as first, OutputFile(new) as second:
        first.write(b"short")
        second.write(b"short")
        first.close()
    assert old.read_bytes() == new.read_bytes() == b"short"
