"""What is injected, and a sample of the sweep; `make sweep` runs it whole."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from support.faults import needs_strace
from support.waiting import DEADLINE_S
from sweep.injections import Injection, plan, sample

TRACE = """\
7 openat(AT_FDCWD</tmp/run>, "/tmp/run/numbers.log", O_WRONLY) = 4</tmp/run/numbers.log>
7 write(4</tmp/run/numbers.log>, "000000001\\n", 10) = 10
8 fdatasync(4</tmp/run/numbers.log> <unfinished ...>
7 write(4</tmp/run/numbers.log>, "000000002\\n", 10) = 10
8 <... fdatasync resumed>) = 0
7 write(2<pipe:[2]>, "numbers-uring: bye\\n", 19) = 19
7 write(4</tmp/run/numbers.log>, "000000003\\n", 10) = 10
--- SIGTERM {si_signo=SIGTERM} ---
7 exit_group(0) = ?
""".splitlines()


def test_each_place_is_hit_at_its_first_time_and_later_once_and_for_ever() -> None:
    planned = plan(TRACE, set(), random.Random(1))
    to_the_log = [each for each in planned if each.call == "write" and "numbers.log" in each.place]
    assert {each.when for each in to_the_log} >= {"1", "4", "1+", "4+"}
    assert {each.action for each in to_the_log} >= {"error=EIO", "error=ENOSPC"}
    others = [each for each in planned if each.call == "write" and each not in to_the_log]
    assert {each.when for each in others} == {"3", "3+"}


def test_syncs_are_delayed_too_and_what_cannot_fail_is_left_alone() -> None:
    planned = plan(TRACE, set(), random.Random(1))
    assert "delay_enter=300ms" in {each.action for each in planned if each.call == "fdatasync"}
    assert {"openat", "write", "fdatasync"} == {each.call for each in planned}


def test_a_place_that_was_seen_is_not_hit_again() -> None:
    seen: set[str] = set()
    assert plan(TRACE, seen, random.Random(1))
    assert plan(TRACE, seen, random.Random(1)) == []


def test_a_listener_and_a_client_are_two_places_and_two_clients_are_one() -> None:
    trace = """\
7 socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP) = 6<socket:[100]>
7 recvfrom(15<socket:[102]>, "", 10, MSG_DONTWAIT, NULL, NULL) = 0
7 recvfrom(14<socket:[101]>, "", 10, MSG_DONTWAIT, NULL, NULL) = 0
7 close(15<socket:[102]>) = 0
7 close(14<socket:[101]>) = 0
7 close(6<socket:[100]>) = 0
""".splitlines()
    places = [each.place for each in plan(trace, set(), random.Random(1))]
    assert set(places) == {
        "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC",
        "recvfrom(#<accepted>",
        "close(#<accepted>",
        "close(#<AF_INET>",
    }


def test_a_sample_has_every_call_before_any_twice() -> None:
    planned = [Injection(call, f"error={n}", "1", call) for call in "abc" for n in range(9)]
    chosen = sample(planned, 6, random.Random(1))
    assert sorted(each.call for each in chosen) == ["a", "a", "b", "b", "c", "c"]
    assert sample(planned, 6, random.Random(1)) == sample(planned, 6, random.Random(1))


@needs_strace
@pytest.mark.usefixtures("ring")
def test_a_sample_of_the_sweep_passes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sweep.run"),
            *("--sample", "6", "--mode", "plain", "--reactors", "1"),
            *("--results", str(tmp_path / "sweep.jsonl")),
        ],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{root / 'tests'}:{root / 'perf'}"},
        text=True,
        timeout=4 * DEADLINE_S,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
