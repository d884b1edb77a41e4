"""Variables that stand for options: each option has one, and no other one is taken in silence."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from numbers_uring.cli.commands import COMPLETE_VARIABLE, cli
from numbers_uring.cli.environment import option_variables
from support.processes import ServerProcess, assert_one_line_error
from support.processes import run_command as run


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


cli.load_all()
COMMANDS = list(commands(cli))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_unknown_variable_of_a_command_is_refused(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    variable = f"NUMBERS_URING_{'_'.join(command).upper()}_SPEEED"
    done = run(*command, environment={variable: "1"}, cwd=tmp_path)
    assert_one_line_error(done, 2, variable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_shown_with_an_unknown_variable_too(command: tuple[str, ...]) -> None:
    variable = f"NUMBERS_URING_{'_'.join(command).upper()}_SPEEED"
    assert run(*command, "--help", environment={variable: "1"}).returncode == 0


@pytest.mark.parametrize(
    ("command", "variable", "nearest"),
    [
        ("serve", "NUMBERS_URING_SERVE_TERMINAT", "NUMBERS_URING_SERVE_TERMINATE"),
        ("doctor", "NUMBERS_URING_SERVE_TERMINAT", "NUMBERS_URING_SERVE_TERMINATE"),
        ("serve", "NUMBERS_URING_SERV_PORT", "NUMBERS_URING_SERVE_PORT"),
        ("serve", "NUMBERS_URING_SERVE_port", "NUMBERS_URING_SERVE_PORT"),
        # Not even those that click would have for the options of the program itself.
        ("check", "NUMBERS_URING_VERSION", ""),
        ("check", "NUMBERS_URING_HELP", ""),
        ("doctor", "NUMBERS_URING_DOCTOR_JSN", "NUMBERS_URING_DOCTOR_JSON"),
        ("load", "NUMBERS_URING_LOAD_AS_JSON", "NUMBERS_URING_LOAD_JSON"),
    ],
)
def test_the_nearest_name_is_named(command: str, variable: str, nearest: str) -> None:
    assert_one_line_error(run(command, environment={variable: "1"}), 2, variable, nearest)


@pytest.mark.parametrize("name", ["SERVE_X", "SERVE_HELP", "LOAD_FOO", "X"])
def test_a_name_that_is_near_to_none_gets_no_hint(name: str) -> None:
    command = "load" if name.startswith("LOAD") else "serve"
    done = run(command, environment={f"NUMBERS_URING_{name}": "1"})
    assert_one_line_error(done, 2, f"NUMBERS_URING_{name}")
    assert "Did you mean" not in done.stderr


@pytest.mark.parametrize(
    "variable",
    [
        # For another command, as in an environment file that a host's services share.
        "NUMBERS_URING_LOAD_NUMBERS",
        "NUMBERS_URING_CLUSTER_STATUS_NATS",
        # Kubernetes sets these for a service named numbers-uring.
        "NUMBERS_URING_SERVICE_HOST",
        "NUMBERS_URING_SERVICE_PORT_METRICS",
        "NUMBERS_URING_PORT",
        "NUMBERS_URING_PORT_4000_TCP_ADDR",
    ],
)
def test_variables_that_are_not_for_the_server_do_not_matter(
    serve: Callable[..., ServerProcess], variable: str
) -> None:
    assert serve(environment={variable: "tcp://127.0.0.1:4000"}).terminate() == 0


def test_each_variable_is_named_as_its_option_is() -> None:
    for option, variable in option_variables(cli):
        names = [each.lstrip("-").replace("-", "_").upper() for each in option.opts]
        assert any(variable.endswith(f"_{name}") for name in names), variable


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("serve", "NUMBERS_URING_SERVE_PORT", "http"),
        ("serve", "NUMBERS_URING_SERVE_TERMINATE", "nevr"),
        ("serve", "NUMBERS_URING_SERVE_LISTEN", "nowhere"),
        ("serve", "NUMBERS_URING_SERVE_RESUME", "perhaps"),
        ("serve", "NUMBERS_URING_SERVE_CONCURRENT_CONNECTIONS", "0"),
        ("doctor", "NUMBERS_URING_SERVE_IDLE_TIMEOUT", "soon"),
        ("load", "NUMBERS_URING_LOAD_TIMEOUT", "nan"),
        ("collect", "NUMBERS_URING_COLLECT_PARTITIONS", "3-1"),
        # Values that are right, but not together with others.
        ("serve", "NUMBERS_URING_SERVE_PARTITIONS", "4"),
        ("doctor", "NUMBERS_URING_SERVE_NATS_CA", "ca.pem"),
        ("load", "NUMBERS_URING_LOAD_PLOT", "plot.txt"),
    ],
)
def test_a_bad_value_names_the_variable_that_it_came_from(
    command: str, variable: str, value: str
) -> None:
    assert_one_line_error(run(command, environment={variable: value}), 2, variable)


def test_values_that_exclude_each_other_name_their_variables() -> None:
    variables = {"NUMBERS_URING_SERVE_QUIET": "yes", "NUMBERS_URING_SERVE_VERBOSE": "1"}
    assert_one_line_error(run("serve", environment=variables), 2, *variables)
    done = run("serve", "--quiet", environment=variables)
    assert_one_line_error(done, 2, "NUMBERS_URING_SERVE_VERBOSE")
    assert "NUMBERS_URING_SERVE_QUIET" not in done.stderr


BAD_USAGE = [("--port", "http"), ("--nothing",), ("more",), ("--port",), ("--quiet", "--verbose")]


@pytest.mark.parametrize("arguments", [(), *BAD_USAGE], ids=" ".join)
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_wrong_usage_is_told_in_the_format_asked_for(
    command: str, arguments: tuple[str, ...]
) -> None:
    asked = {"NUMBERS_URING_SERVE_LOG_FORMAT": "json"}
    if not arguments:
        asked["NUMBERS_URING_SERVE_TERMINAT"] = "never"
    for form, environment in (
        ((), asked),
        (("--log-format", "json"), {}),
        (("--log-format=json",), {"NUMBERS_URING_SERVE_LOG_FORMAT": "text"}),
    ):
        if not (arguments or environment == asked):
            continue
        done = run(command, *form, *arguments, environment=environment)
        assert done.returncode == 2
        said = json.loads(done.stderr)
        assert said["level"] == "error"
        assert re.search(r"[.?] Try 'numbers-uring.* --help'\.$", said["message"]), said
    as_text = run(command, "--log-format", "text", *(arguments or ("x",)), environment=asked)
    assert as_text.stderr.startswith("numbers-uring: error: ")


@pytest.mark.parametrize("value", ["", "1", "complete", "bash_sorce", "bash_complete_"])
def test_a_request_that_is_of_no_completion_script_is_wrong_usage(value: str) -> None:
    done = run("completion", "bash", environment={COMPLETE_VARIABLE: value})
    if value:
        assert_one_line_error(done, 2, COMPLETE_VARIABLE)
    else:
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("NUMBERS_URING_SERVE_RESUME", "perhaps"), ("NUMBERS_URING_SERVE_PORT", "http")],
)
def test_a_bad_value_is_told_in_whole_sentences(variable: str, value: str) -> None:
    words = run("serve", environment={variable: value}).stderr
    assert re.fullmatch(
        rf"numbers-uring: error: Invalid value for '--[a-z]+': '{value}' is not a [^.:]+\. "
        rf"It comes from {variable}\. Try 'numbers-uring serve --help'\.\n",
        words,
    )


def test_a_bad_value_of_the_command_line_names_no_variable() -> None:
    done = run("serve", "--port", "http", environment={"NUMBERS_URING_SERVE_PORT": "5000"})
    assert_one_line_error(done, 2, "--port")
    assert "NUMBERS_URING" not in done.stderr
