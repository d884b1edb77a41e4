"""The doctor tries the steps of a start in the server's order: their first error is the same."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import click
import pytest

from numbers_uring.cli.serve import serve_config
from numbers_uring.cli.serve_options import serve_options
from numbers_uring.config import Config
from numbers_uring.server.steps import start_steps
from support.scenes import DOES_NOT, FAULTS, STARTS, Scene, a_ring, prepare


def config_of(options: list[str]) -> Config:
    """Return what a server with these options is asked for."""
    command = click.command()(serve_options(lambda **_: None))
    with command.make_context("serve", [*options]) as context:
        return serve_config(context.params)


def names(faults: tuple[Callable[[Scene], None], ...]) -> str:
    return "-".join(fault.__name__ for fault in faults)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as undo:
        yield Scene(tmp_path, undo)


@pytest.mark.parametrize("host", STARTS, ids=lambda case: case.__name__)
def test_where_a_server_starts_the_doctor_says_so(
    scene: Scene, host: Callable[[Scene], None], request: pytest.FixtureRequest
) -> None:
    if host is a_ring:
        request.getfixturevalue("ring")
    prepare(scene, host)
    before = scene.traces()
    done = scene.run("doctor")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^serve would start: backend \w+, kernel \w+$", done.stdout, re.MULTILINE)
    assert "PROBLEM" not in done.stdout
    assert scene.traces() == before
    assert scene.server_starts()


@pytest.mark.parametrize(
    ("host", "finding"), DOES_NOT.items(), ids=[case.__name__ for case in DOES_NOT]
)
def test_where_no_server_starts_the_doctor_says_the_same_as_the_server(
    scene: Scene, host: Callable[[Scene], None], finding: str
) -> None:
    prepare(scene, host)
    before = scene.traces()
    done = scene.run("doctor", "--json")
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    assert scene.traces() == before
    told = json.loads(done.stdout)
    problems = [name for name, one in told["findings"].items() if one["verdict"] == "problem"]
    assert problems[0] == finding
    assert told["findings"][finding]["advice"]
    assert told["findings"][finding]["text"] == told["error"]
    served = scene.run("serve")
    assert served.returncode in {3, -signal.SIGKILL}
    if served.returncode == 3:
        assert served.stderr == f"numbers-uring: error: {' '.join(told['error'].split())}\n"


# Two faults at a time: neighbours are enough, for the order is that of one list of steps.


@pytest.mark.parametrize("faults", list(pairwise(FAULTS)), ids=names)
def test_of_two_faults_the_doctor_and_the_server_name_the_same(
    scene: Scene, faults: tuple[Callable[[Scene], None], ...]
) -> None:
    for fault in faults:
        prepare(scene, fault)
    before = scene.traces()
    examined = scene.run("doctor", "--json")
    assert (examined.returncode, examined.stderr) == (1, ""), examined.stdout
    assert scene.traces() == before
    told = json.loads(examined.stdout)
    problems = [name for name, one in told["findings"].items() if one["verdict"] == "problem"]
    # An option that is given twice has the value of the second fault.
    assert {FAULTS[fault] for fault in faults} >= set(problems) != set()
    assert told["findings"][problems[0]]["text"] == told["error"]
    served = scene.run("serve")
    *before_it, line = served.stderr.splitlines()
    assert (served.returncode, served.stdout) == (3, "")
    assert line == f"numbers-uring: error: {told['error']}"
    assert not [line for line in before_it if "error" in line]
    # A server that does not start makes no file either, and changes none.
    assert scene.traces()[:-1] == before[:-1]


@pytest.mark.parametrize("forward", [[], ["--forward", "nats://127.0.0.1", "--partitions", "1"]])
def test_the_doctor_has_a_check_of_each_step_in_the_servers_order(
    scene: Scene, forward: list[str]
) -> None:
    scene.options += ["--port", "0", *forward]
    told = json.loads(scene.run("doctor", "--json").stdout)
    steps = [step.name for step in start_steps(config_of(scene.options))]
    assert [name for name in told["findings"] if name in {*steps}] == steps
