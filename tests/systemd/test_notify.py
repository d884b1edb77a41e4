"""Messages to the service manager: their form, their pace, and that nothing waits for them."""

import errno
import math
import os
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from numbers_uring.systemd.notify import ServiceManager
from support.notify_socket import NotifySocket


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(params=["path", "abstract"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}"
    with NotifySocket(address) as listening:
        yield listening


def test_each_state_is_one_message(far: NotifySocket, said: list[str]) -> None:
    manager = ServiceManager(far.address, watchdog_s=None, warn=said.append)
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.starting("40 %\nof it")
    manager.ready("here")
    manager.reloading("the log")
    manager.ready("again")
    manager.status("fine")
    manager.stopping("bye")
    manager.close()
    manager.status("too late")
    starting, ready, reloading, again, status, stopping = far.messages
    assert starting == {"STATUS": "40 % of it", "EXTEND_TIMEOUT_USEC": "60000000"}
    assert ready == {"READY": "1", "STATUS": "here"}
    reloaded_us = int(reloading.pop("MONOTONIC_USEC"))
    assert before_us <= reloaded_us <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    extended = {"EXTEND_TIMEOUT_USEC": "300000000"}
    assert reloading == {"RELOADING": "1", "STATUS": "the log", **extended}
    assert again == {"READY": "1", "STATUS": "again"}
    assert status == {"STATUS": "fine"}
    assert stopping == {"STOPPING": "1", "STATUS": "bye", **extended}
    assert said == []


def test_heartbeats_in_time_are_sent_at_twice_the_watchdogs_pace(
    far: NotifySocket, said: list[str]
) -> None:
    clock = Clock()
    manager = ServiceManager(far.address, watchdog_s=8, warn=said.append, clock=clock)
    assert manager.heartbeat_interval_s == 2
    fed_s: list[float] = []
    for step_s in (0, 0.1, 1.8, 1.9, 0.01, 0.2, 2.0, 1.99, 0.5, 0.001, 2.0):
        clock.now_s += step_s
        manager.heartbeat()
        fed_s += [clock.now_s] * len(far.messages[len(fed_s) :])
    manager.close()
    assert far.messages == [{"WATCHDOG": "1"}] * len(fed_s)
    gaps_s = [later - sooner for sooner, later in pairwise(fed_s)]
    assert len(gaps_s) >= 3
    assert all(2 <= gap_s <= 4 for gap_s in gaps_s), gaps_s


def test_a_full_queue_is_not_waited_for_and_the_state_comes_later(
    far: NotifySocket, said: list[str]
) -> None:
    clock = Clock()
    manager = ServiceManager(far.address, watchdog_s=8, warn=said.append, clock=clock)
    filled = far.fill()
    manager.ready("here")
    manager.status("lost")
    manager.heartbeat()
    assert far.messages == [{"FILL": "1"}] * filled
    clock.now_s += 2
    manager.heartbeat()
    manager.status("fine")
    manager.close()
    assert far.messages[filled:] == [{"READY": "1", "WATCHDOG": "1"}, {"STATUS": "fine"}]
    assert said == []


def test_only_the_last_of_the_states_that_could_not_be_sent_comes_later(
    far: NotifySocket, said: list[str]
) -> None:
    manager = ServiceManager(far.address, watchdog_s=None, warn=said.append)
    filled = far.fill()
    manager.ready("here")
    manager.stopping("bye")
    assert len(far.messages) == filled
    manager.status("syncing")
    manager.close()
    assert far.messages[filled:] == [
        {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "300000000", "STATUS": "syncing"}
    ]


def test_a_manager_that_vanishes_and_comes_back_is_no_failure(
    tmp_path: Path, said: list[str]
) -> None:
    address = str(tmp_path / "notify")
    with NotifySocket(address) as before:
        manager = ServiceManager(address, watchdog_s=8, warn=said.append)
        manager.ready("here")
        assert before.values("READY") == ["1"]
    manager.status("alone")
    manager.heartbeat()
    with NotifySocket(address) as after:
        manager.status("together")
        manager.close()
        assert after.messages == [{"STATUS": "together"}]
    assert said == []


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("notify", "no absolute path"),
        ("@", "Connection refused"),
        ("vsock:2:1234", "no absolute path"),
        ("/nowhere/notify", "No such file"),
        ("/dev/null", "Connection refused"),
        ("/" + "x" * 200, "too long"),
    ],
)
def test_an_unusable_socket_is_one_warning(address: str, reason: str, said: list[str]) -> None:
    manager = ServiceManager(address, watchdog_s=8, warn=said.append)
    manager.starting("beginning")
    manager.ready("here")
    manager.heartbeat()
    manager.stopping("bye")
    manager.close()
    (warning,) = said
    assert reason in warning
    assert "NOTIFY_SOCKET" in warning
    assert manager.heartbeat_interval_s == math.inf


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EINTR"])
@pytest.mark.parametrize("call", ["socket", "sendto"])
def test_what_the_system_lacks_for_a_moment_is_one_warning_and_the_state_comes_later(
    far: NotifySocket, said: list[str], monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    class Failing(socket.socket):
        def __init__(self, *arguments: int) -> None:
            if call == "socket":
                raise OSError(getattr(errno, name), name)
            super().__init__(*arguments)

        def sendto(self, *_: object) -> int:
            raise OSError(getattr(errno, name), name)

    manager = ServiceManager(far.address, watchdog_s=8, warn=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Failing)
        manager.ready("here")
        manager.status("lost")
    if call == "sendto":
        manager._socket = None
    manager.heartbeat()
    manager.close()
    assert far.messages == [{"READY": "1", "WATCHDOG": "1"}]
    (warning,) = said
    assert name in warning


def test_the_environment_is_taken_out_and_says_who_is_meant(
    far: NotifySocket, said: list[str]
) -> None:
    mine, other = str(os.getpid()), "1"
    for pid, interval_s in ((None, 0.5), (mine, 0.5), (other, math.inf)):
        environment = {"NOTIFY_SOCKET": far.address, "WATCHDOG_USEC": "2000000", "HOME": "/"}
        if pid is not None:
            environment["WATCHDOG_PID"] = pid
        manager = ServiceManager.from_environment(environment, said.append)
        assert manager.heartbeat_interval_s == interval_s
        manager.heartbeat()
        manager.close()
        assert environment == {"HOME": "/"}
    assert far.messages == [{"WATCHDOG": "1"}] * 2
    assert said == []


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "abc", "٣", "9" * 5000])
def test_a_watchdog_time_that_is_none_is_one_warning(
    far: NotifySocket, said: list[str], text: str
) -> None:
    environment = {"NOTIFY_SOCKET": far.address, "WATCHDOG_USEC": text}
    manager = ServiceManager.from_environment(environment, said.append)
    manager.heartbeat()
    manager.ready("here")
    manager.close()
    assert far.values("READY") == ["1"]
    assert far.values("WATCHDOG") == []
    assert len(said) == 1
    assert "WATCHDOG_USEC" in said[0]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "2000000"}])
def test_without_a_manager_nothing_happens(environment: dict[str, str], said: list[str]) -> None:
    manager = ServiceManager.from_environment(environment, said.append)
    manager.ready("here")
    manager.heartbeat()
    manager.close()
    assert manager.heartbeat_interval_s == math.inf
    assert said == []
