"""The Containerfile's steps, as far as namespaces can stand for an engine.

`make container-check` takes all of them, in a Debian of their own.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from numbers_uring.cli.environment import ENVIRONMENT_PREFIX
from numbers_uring.cli.serve import serve
from support.containerfile import CONTAINERFILE, Stage, stages
from support.namespaces import AS_PID_1, children, confined, run, without_rights
from support.waiting import DEADLINE_S, wait_until

HEALTH_PORT = 9464


@pytest.fixture(scope="module")
def builder() -> Stage:
    return stages()[0]


@pytest.fixture(scope="module")
def image() -> Stage:
    return stages()[-1]


def test_the_image_is_a_slim_debian_without_the_compiler(builder: Stage, image: Stage) -> None:
    assert builder.base == image.base
    assert image.base.startswith("debian:")
    assert image.base.endswith("-slim")
    assert " gcc " in builder.all("RUN")[0]
    assert not any("gcc" in step for step in image.all("RUN"))
    assert image.one("COPY").startswith(f"--from={builder.name} ")


def test_what_the_builder_copies_is_enough_for_a_wheel(builder: Stage, tmp_path: Path) -> None:
    copied = tmp_path / "src"
    for step in builder.all("COPY"):
        *sources, target = step.split()
        for source in map(CONTAINERFILE.parent.joinpath, sources):
            if source.is_dir():
                ignored = shutil.ignore_patterns("*.so", "__pycache__", "_native.c")
                shutil.copytree(source, copied / target, ignore=ignored)
            else:
                (copied / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copied / target)
    # The build's requirements are those of the tests, too: they need not be fetched once more.
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    done = run(*pip, f"--wheel-dir={tmp_path}", str(copied))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("numbers_uring-*.whl"))) == 1


def test_all_that_comes_from_an_index_has_to_have_a_known_hash(builder: Stage) -> None:
    """Without --no-deps and --no-build-isolation, pip would get more by itself."""
    steps = re.split(r" && ", " && ".join(builder.all("RUN")))
    asks = [step for step in steps if re.search(r"/pip (install|wheel) ", step)]
    assert len(asks) >= 2
    for step in asks:
        assert "--no-deps" in step
        assert re.search(r"--require-hashes|--no-index|pip wheel .*--no-build-isolation", step)


def test_each_variable_is_that_of_an_option(image: Stage) -> None:
    prefix = f"{ENVIRONMENT_PREFIX}_SERVE_"
    options = {str(option.name).upper() for option in serve.params}
    set_here = {name for name in image.environment if name != "PATH"}
    assert set_here
    assert set_here <= {prefix + name for name in options}


def test_what_a_stop_and_a_probe_need_is_said(image: Stage) -> None:
    assert image.one("STOPSIGNAL") == "SIGTERM"
    assert image.one("EXPOSE").split() == ["4000", str(HEALTH_PORT)]
    user, group = image.one("USER").split(":")
    assert user == group
    assert f"--uid {user} " in image.one("RUN")
    log = Path(image.environment["NUMBERS_URING_SERVE_LOG_FILE"])
    assert str(log.parent) == image.one("VOLUME") == image.one("WORKDIR")
    assert image.environment["NUMBERS_URING_SERVE_METRICS"].endswith(f":{HEALTH_PORT}")


# The health check.


@pytest.fixture(params=[200, 503])
def answering(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A port where /healthz is answered, and with what."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, request.param
        server.shutdown()
        thread.join()


def probe(image: Stage, port: int) -> int:
    """Return the exit code of the health check, done to `port`."""
    python, *words = image.health_command
    assert python == "python3"
    asked = [word.replace(str(HEALTH_PORT), str(port)) for word in words]
    assert asked != words
    # A proxy for all that is outside must not be asked for what is inside.
    done = subprocess.run(
        [sys.executable, *asked],
        capture_output=True,
        check=False,
        env={**os.environ, "http_proxy": "http://127.0.0.1:1"},
        timeout=DEADLINE_S,
    )
    return done.returncode


def test_the_health_check_passes_where_the_answer_is_200_alone(
    image: Stage, answering: tuple[int, int]
) -> None:
    port, status = answering
    assert (probe(image, port) == 0) == (status == 200)


def test_the_health_check_fails_where_no_server_listens(image: Stage) -> None:
    assert probe(image, 1) == 1


# The whole of it.


@pytest.mark.usefixtures("namespaces")
def test_the_command_serves_as_a_container_would_run_it(image: Stage, tmp_path: Path) -> None:
    """Process number 1, no rights, a read-only root, the log on a mount, a network of its own."""
    program = Path(sys.executable).with_name(image.array("ENTRYPOINT")[0])
    user = int(image.one("USER").split(":")[0])
    by_user = without_rights(user)
    tried = run(*by_user, sys.executable, "-c", "import numbers_uring")
    if tried.returncode != 0:
        pytest.skip(f"this Python can't be run by another user: {tried.stderr.strip()}")
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, user, user)
    setup = f"""
        ip link set lo up
        mount -t tmpfs none /var/log
        mkdir '{image.one("VOLUME")}'
        mount --bind '{volume}' '{image.one("VOLUME")}'
        mount -o remount,bind,ro /
        cd '{image.one("WORKDIR")}'
    """
    server = subprocess.Popen(
        [
            *confined(setup, *AS_PID_1, "--mount", "--net"),
            *(*by_user, str(program), *image.array("CMD")),
        ],
        env={
            **image.environment,
            "PATH": os.environ["PATH"],
            "NUMBERS_URING_SERVE_MAX_CLIENTS": "1",
        },
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: children(server.pid), "process number 1")
        ((pid, _),) = children(server.pid)
        inside = ("nsenter", "--net", "--target", str(pid))

        def is_healthy() -> bool:
            assert server.poll() is None
            return run(*inside, sys.executable, *image.health_command[1:]).returncode == 0

        wait_until(is_healthy, "a good health")
        # The one slot is taken for as long as its client waits for what never comes.
        client = subprocess.Popen(
            [*inside, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/4000; echo 000000007 >&3; read <&3"]
        )
        try:
            log = volume / "numbers.log"
            wait_until(lambda: log.read_bytes() == b"000000007\n", "the number")
            assert is_healthy()
        finally:
            os.kill(pid, signal.Signals[image.one("STOPSIGNAL")])
            client.wait(DEADLINE_S)
        stdout, stderr = server.communicate(timeout=DEADLINE_S)
    finally:
        server.kill()
        server.wait(DEADLINE_S)
    assert server.returncode == 0, stderr
    assert "Received 1 unique numbers" in stdout
    assert "1 client served, 0 refused" in stderr
    assert log.stat().st_uid == user
