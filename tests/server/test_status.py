"""What a service manager is told of a server: its phase, its counters, its rate."""

from pathlib import Path

import pytest

from numbers_uring.ingest.report import Counts, rate_text
from numbers_uring.server.server import Phase
from numbers_uring.server.status import ServiceStatus
from numbers_uring.systemd.notify import ServiceManager
from support.notify_socket import NotifySocket


def test_phases_are_told_as_states_and_counters_as_text(tmp_path: Path) -> None:
    said: list[str] = []
    now_s = 50.0
    counts, clients = Counts(0, 0), 0
    with NotifySocket(f"@{tmp_path}") as far:
        manager = ServiceManager(far.address, watchdog_s=None, warn=said.append)
        status = ServiceStatus(
            manager, "here", counts=lambda: counts, clients=lambda: clients, clock=lambda: now_s
        )
        status.enter(Phase.SERVING)
        counts, clients, now_s = Counts(20_000_000, 5_000_000), 3, 60.0
        status.refresh()
        status.refresh()
        status.enter(Phase.HELD_BACK)
        status.enter(Phase.RELOADING)
        status.enter(Phase.HELD_BACK)
        clients = 1
        status.enter(Phase.SERVING)
        now_s = 70.0
        status.refresh()
        status.enter(Phase.STOPPING)
        manager.close()
        told = far.messages
    counted = "20000000 unique, 5000000 duplicates"
    assert [(set(message) - {"MONOTONIC_USEC"}, message["STATUS"]) for message in told] == [
        ({"READY", "STATUS"}, "Listening on here; 0 clients, 0 unique, 0 duplicates"),
        ({"STATUS"}, f"Listening on here; 3 clients, {counted}, 2.5 M/s"),
        ({"STATUS"}, f"Listening on here; 3 clients, {counted}, 0 /s"),
        ({"STATUS"}, f"No space for the log, clients are held back; 3 clients, {counted}"),
        (
            {"RELOADING", "EXTEND_TIMEOUT_USEC", "STATUS"},
            f"Reopening the log; 3 clients, {counted}",
        ),
        (
            {"READY", "STATUS"},
            f"No space for the log, clients are held back; 3 clients, {counted}",
        ),
        ({"STATUS"}, f"Listening on here; 1 client, {counted}"),
        ({"STATUS"}, f"Listening on here; 1 client, {counted}, 0 /s"),
        ({"STOPPING", "EXTEND_TIMEOUT_USEC", "STATUS"}, f"Stopping; 1 client, {counted}"),
    ]
    assert said == []


@pytest.mark.parametrize(
    ("per_s", "text"),
    [(0, "0 /s"), (999, "999 /s"), (1000, "1.0 k/s"), (12_345, "12.3 k/s"), (61.2e6, "61.2 M/s")],
)
def test_a_rate_is_told_for_people(per_s: float, text: str) -> None:
    assert rate_text(per_s) == text
