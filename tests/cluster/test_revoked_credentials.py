"""A user whom the NATS server will not have any more, while nodes and collectors run so."""

import signal
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from numbers_uring.cluster.partitions import log_name, subject_name
from support.broker import Broker
from support.logs import lines
from support.processes import CommandProcess, ServerProcess, assert_one_line_error, run_command
from support.waiting import wait_until


def users(*names: str) -> str:
    """Return the NATS server's settings for these users, each with its name as the password."""
    each = ", ".join(f'{{ user: "{name}", password: "secret-{name}" }}' for name in names)
    return f"authorization {{ users: [{each}] }}\n"


def url_of(broker: Broker, name: str) -> str:
    return f"nats://{name}:secret-{name}@127.0.0.1:{broker.port}"


@pytest.fixture
def broker_with_users(tmp_path: Path) -> Iterator[Broker]:
    """A NATS server with the users `tests` and `cluster`, and with a cluster of one partition."""
    broker_with_users = Broker(tmp_path / "broker", settings=users("tests", "cluster"))
    broker_with_users.url = url_of(broker_with_users, "tests")
    with broker_with_users:
        done = run_command("cluster", "init", "--nats", broker_with_users.url, "--partitions", "1")
        assert done.returncode == 0, done.stderr
        assert "secret" not in done.stderr
        yield broker_with_users


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_nodes_and_collectors_stop_and_say_what_is_not_where_it_belongs(
    broker_with_users: Broker, tmp_path: Path, how: str
) -> None:
    url = url_of(broker_with_users, "cluster")
    arguments = ("collect", "--partitions", "0", "--log-dir", str(tmp_path), "--nats")
    log = tmp_path / log_name(0)
    options = ("--forward", url, "--partitions", "1")
    with (
        ServerProcess(Path("no-log"), *options, has_log=False) as node,
        CommandProcess(*arguments, url) as collector,
    ):
        collector.wait_for("collecting partitions")
        node.send(lines([1, 2, 3]))
        wait_until(lambda: log.read_bytes() == lines([1, 2, 3]), "the first numbers")
        broker_with_users.configure(users("tests"))
        if how == "reload":
            broker_with_users.reload()
        else:
            broker_with_users.kill()
            broker_with_users.start()
        wait_until(lambda: "lost the connection" in node.stderr, "the loss by the node")
        collector.wait_for("lost the connection")
        node.send(lines([4, 5]))
        broker_with_users.run(_publish)
        assert node.wait() == 4
        assert collector.wait() == 1
    (error,) = [line for line in node.stderr_lines if "error: " in line]
    assert "is no longer usable: Authorization Violation" in error
    assert "2 numbers that were taken in are not acknowledged" in error
    assert node.reported()[2] == 3
    (error,) = [line for line in collector.stderr_lines if "error: " in line]
    assert "is no longer usable: Authorization Violation" in error
    for said in (node.stderr, collector.stderr):
        assert "secret" not in said
        assert "Traceback" not in said
    # What was published since is read by the next one.
    assert log.read_bytes() == lines([1, 2, 3])
    with CommandProcess(*arguments, broker_with_users.url) as collector:
        wait_until(lambda: log.read_bytes() == lines([1, 2, 3, 7, 8]), "the next collector")
        assert collector.stop(signal.SIGTERM) == 0
    assert log.read_bytes() == lines([1, 2, 3, 7, 8])


async def _publish(js: JetStreamContext) -> None:
    await js.publish(subject_name(0), array("I", [7, 8]).tobytes())


def test_a_wrong_password_is_one_line_at_once(broker_with_users: Broker, tmp_path: Path) -> None:
    url = f"nats://cluster:guessed@127.0.0.1:{broker_with_users.port}"
    for arguments in (
        ("cluster", "status", "--nats", url),
        ("collect", "--nats", url, "--partitions", "0", "--log-dir", str(tmp_path)),
        ("serve", "--port", "0", "--forward", url, "--partitions", "1"),
    ):
        done = run_command(*arguments)
        assert_one_line_error(
            done, 3, f"127.0.0.1:{broker_with_users.port}: Authorization Violation"
        )
        assert "guessed" not in done.stderr
