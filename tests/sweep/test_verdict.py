"""The sweep's verdict sees each kind of violation, and lets every outcome pass that is allowed."""

from dataclasses import replace
from typing import Any

import pytest

from sweep.session import EARLIER, Client, Outcome
from sweep.verdict import judge

START = "numbers-uring: listening on 127.0.0.1:4000, backend epoll"
END = "numbers-uring: stopped by SIGTERM: 3 numbers written to /tmp/numbers.log, 2 clients served"
SAID = "numbers-uring: no space for the log numbers.log: holding the clients back"
LOG_FAILED = "numbers-uring: error: cannot write the log numbers.log: Input/output error"
LOG = "000000001\n000000002\n000000003\n"
REPORTS = [
    "Received 2 unique numbers, 1 duplicates. Unique total: 2",
    "Received 1 unique numbers, 0 duplicates. Unique total: 3",
]
HELD_BACK = "000000001\n"
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/usr/lib/numbers_uring/server/run.py", line 70, in run_server',
    "    serve()",
    '  File "/usr/lib/numbers_uring/reactor/epoll.py", line 12, in wait',
    "    poll()",
    "OSError: [Errno 12] Cannot allocate memory",
]


def good(**changes: Any) -> Outcome:
    """Return the outcome of a session in which nothing went wrong, with changes."""
    outcome = Outcome(
        mode="plain",
        injection="inject=read:error=EIO:when=1",
        code=0,
        started=True,
        stdout=REPORTS,
        stderr=[START, END],
        logs=["000000001\n000000002\n", "000000003\n"],
        clients=[Client("first", [1, 2], "fin"), Client("second", [3], "fin")],
        probes={"/healthz": "HTTP/1.1 200 OK"},
    )
    return replace(outcome, **changes)


def failed(**changes: Any) -> Outcome:
    """Return that of a session whose log has failed, with one of three numbers on file."""
    end = f"{LOG_FAILED}; 2 counted numbers are lost, they are not in it"
    clients = [Client("first", [1, 2], "reset"), Client("second", [3], "reset")]
    outcome = good(code=4, stderr=[START, end], logs=[HELD_BACK], clients=clients)
    return replace(outcome, **changes)


def not_started(**changes: Any) -> Outcome:
    said = ["numbers-uring: error: cannot listen on 127.0.0.1:4000: Address already in use"]
    outcome = Outcome(mode="plain", code=3, stderr=said, logs=[EARLIER])
    return replace(outcome, **changes)


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(good(), id="full service"),
        pytest.param(
            good(resumes=True, logs=[f"{EARLIER}000000001\n000000002\n", "000000003\n"]),
            id="full service after a resume",
        ),
        pytest.param(failed(), id="the log failed, and the loss is said"),
        pytest.param(not_started(), id="not started"),
        pytest.param(
            good(
                stderr=[START, SAID, END],
                clients=[*good().clients, Client("third", [4], "reset")],
                probes={"/healthz": "timed out"},
            ),
            id="less service, and that is said",
        ),
        pytest.param(
            good(code=1, stderr=[START, "numbers-uring: error: the backend failed: no memory"]),
            id="the backend failed, and everything is on file",
        ),
        pytest.param(
            good(stderr=['{"level": "info", "message": "listening on 127.0.0.1:4000"}']),
            id="lines of JSON",
        ),
        pytest.param(
            not_started(
                stderr=[*not_started().stderr, *(f"numbers-uring: {each}" for each in TRACEBACK)]
            ),
            id="a traceback in debug lines",
        ),
        pytest.param(
            good(
                mode="refuse",
                clients=[*good().clients, Client("waits 1", [4], "reset")],
            ),
            id="refused clients",
        ),
        pytest.param(
            failed(clients=[Client("first", [1, 2], "fin", is_unix=True)]),
            id="a unix socket cannot be reset",
        ),
        pytest.param(
            good(
                stdout=REPORTS[:1],
                injected=['12 write(9<pipe:[3]>, "Received 1 "..., 60) = -1 (INJECTED)'],
            ),
            id="a report that could not be written",
        ),
        pytest.param(
            failed(
                stderr=[START],
                injected=['12 write(9<pipe:[3]>, "numbers-uring: error: ", 60) = -1'],
            ),
            id="a line that could not be written",
        ),
    ],
)
def test_what_the_contract_allows_passes(outcome: Outcome) -> None:
    assert judge(outcome) == []


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("traceback", good(stderr=[START, *TRACEBACK], code=1)),
        ("traceback", good(stderr=[START, "Exception ignored in: <x>", END])),
        ("spin", good(spin=0.9)),
        ("hang at the stop", good(hang="stop", code=None)),
        ("hang at the start", not_started(hang="start", code=None)),
        ("death by signal", good(code=-15)),
        ("death by signal", failed(code=-1)),
        ("exit code", good(code=7)),
        ("exit code", good(code=3, stderr=[START, LOG_FAILED])),
        ("exit code", not_started(code=1)),
        ("exit code", not_started(code=0, stderr=[])),
        ("stray line on stderr", good(stderr=[START, "free(): invalid pointer", END])),
        ("stray line on stderr", good(stderr=[START, '{"level": "info"', END])),
        ("error lines", good(stderr=[START, LOG_FAILED, END])),
        ("error lines", not_started(stderr=[])),
        ("error lines", failed(stderr=[*failed().stderr, LOG_FAILED])),
        ("flood", good(stderr=[START, *[SAID] * 20, END])),
        ("something else on stdout", good(stdout=[*REPORTS, "bye"])),
        ("reports", good(stdout=[REPORTS[1]])),
        ("reports", good(stdout=[])),
        ("log", good(logs=[LOG[:-1]])),
        ("log", good(logs=["000000001\n000000002000000003\n"])),
        ("log", good(logs=["000000001\n00000\n000000002\n000000003\n"])),
        ("log", good(logs=[LOG, "000000001\n"])),
        ("log", good(logs=[LOG, "000000009\n"])),
        ("log", good(resumes=True)),
        ("the old log was changed by a failed start", not_started(logs=[""])),
        ("the old log was changed by a failed start", not_started(logs=[])),
        ("numbers lost", good(logs=["000000001\n000000002\n"])),
        ("numbers lost", good(code=1, stderr=[START, LOG_FAILED], logs=[HELD_BACK])),
        ("numbers lost", failed(stderr=[START, LOG_FAILED])),
        ("numbers on file that were not counted", failed(logs=[LOG])),
        ("last line", good(stderr=[START, END.replace("3 numbers", "4 numbers")])),
        ("a FIN that lies", failed(clients=[Client("first", [1, 2], "fin")])),
        (
            "a FIN that lies",
            good(
                stderr=[START, SAID, END],
                clients=[*good().clients, Client("third", [4, 5], "fin")],
            ),
        ),
        (
            "less service without a word",
            good(clients=[*good().clients, Client("third", [4], "reset")]),
        ),
        (
            "less service without a word",
            good(clients=[*good().clients, Client("third", [], "refused")]),
        ),
        ("less service without a word", good(probes={"/metrics": "timed out"})),
    ],
)
def test_each_kind_of_violation_is_seen(kind: str, outcome: Outcome) -> None:
    assert kind in {violation.kind for violation in judge(outcome)}


def test_a_traceback_is_told_by_its_innermost_place_of_ours() -> None:
    (violation,) = judge(good(stderr=[START, *TRACEBACK]))
    assert violation.detail.startswith("numbers_uring/reactor/epoll.py:12, in wait: OSError")
