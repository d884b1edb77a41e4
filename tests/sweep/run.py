"""Runs the sweep: every system call of a server's session fails, and the contract must hold.

For each mode a plain session is recorded; then each of its calls fails in a session of its own,
once and for ever, with each error that fits it. `make sweep` runs all, `--sample N` some.
"""

import argparse
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from ports import reserve_port
from sweep.injections import Injection, plan, sample
from sweep.session import MODES, Launcher, Mode, Outcome, run_session
from sweep.verdict import Violation, judge

Result = tuple[Outcome, list[Violation]]


class Runner:
    """Runs sessions, `count` at a time, each on ports of its own."""

    def __init__(self, count: int, stack: ExitStack) -> None:
        self._launchers: queue.Queue[tuple[Launcher, tuple[int, int]]] = queue.Queue()
        self._pool = stack.enter_context(ThreadPoolExecutor(count))
        for _ in range(count):
            launcher = stack.enter_context(Launcher())
            self._launchers.put((launcher, (reserve_port(), reserve_port())))

    def run(
        self, mode: Mode, injection: Injection | None = None, record: Path | None = None
    ) -> Outcome:
        """Run one session; waits for a free launcher."""
        launcher, ports = self._launchers.get()
        try:
            if injection is None:
                return run_session(launcher, mode, ports, record=record)
            option, place = injection.option, injection.place
            return run_session(launcher, mode, ports, option, place=place)
        finally:
            self._launchers.put((launcher, ports))

    def run_all(
        self, planned: list[tuple[Mode, Injection]], note: Callable[[Result], None]
    ) -> None:
        """Run a session for each; `note` is given what came of it, one at a time."""
        lock = threading.Lock()

        def run(each: tuple[Mode, Injection]) -> None:
            outcome = self.run(*each)
            with lock:
                note((outcome, judge(outcome)))

        list(self._pool.map(run, planned))

    def plan(self, modes: list[Mode], seed: int) -> list[tuple[Mode, Injection]]:
        """Record a plain session of each mode; return the injections for its calls.

        A place that was met in an earlier mode of the same backend is not hit again.
        """
        planned = []
        chance = random.Random(seed)
        seen: dict[str, set[str]] = {}
        with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
            records = [Path(directory) / f"{index}" for index in range(len(modes))]
            outcomes = self._pool.map(
                lambda mode, record: self.run(mode, record=record), modes, records
            )
            for mode, record, outcome in zip(modes, records, outcomes, strict=True):
                problems = judge(outcome)
                if problems:
                    print(f"the plain session of {mode}: {problems}", file=sys.stderr)
                with record.open(errors="replace") as trace:
                    found = plan(trace, seen.setdefault(mode.backend, set()), chance)
                planned += [(mode, each) for each in found]
        return planned


def modes(backends: list[str], reactors: list[int], names: list[str]) -> list[Mode]:
    """Return all combinations."""
    return [Mode(b, r, name) for b in backends for r in reactors for name in names]


def choose(
    planned: list[tuple[Mode, Injection]], count: int, seed: int
) -> list[tuple[Mode, Injection]]:
    """Return `count` of them, spread over backends and calls."""
    chance = random.Random(seed)
    groups: dict[str, list[tuple[Mode, Injection]]] = {}
    for each in planned:
        groups.setdefault(each[0].backend, []).append(each)
    chosen = []
    for group in groups.values():
        of = {injection: mode for mode, injection in group}
        share = sample(list(of), count // len(groups), chance)
        chosen += [(of[injection], injection) for injection in share]
    chance.shuffle(chosen)
    return chosen


def table(results: list[Result]) -> str:
    """Return the result as a table: a row for each call and kind of violation."""
    rows: Counter[tuple[str, str]] = Counter()
    sessions: Counter[str] = Counter()
    for outcome, violations in results:
        call = outcome.injection.removeprefix("inject=").split(":")[0]
        sessions[call] += 1
        for kind in {violation.kind for violation in violations}:
            rows[call, kind] += 1
    text = [f"{'call':20} {'sessions':>8}  violations"]
    for call in sorted(sessions):
        kinds = ", ".join(f"{kind}: {n}" for (of, kind), n in sorted(rows.items()) if of == call)
        text.append(f"{call:20} {sessions[call]:8}  {kinds or '-'}")
    bad = sum(bool(violations) for _, violations in results)
    missed = sum(not outcome.injected for outcome, _ in results)
    text.append(f"{len(results)} sessions, {bad} with violations, {missed} without a failed call")
    return "\n".join(text)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--sample", type=int, default=0, help="run so many; 0 runs all")
    parser.add_argument("--backend", action="append", choices=["epoll", "uring"])
    parser.add_argument("--reactors", action="append", type=int, choices=[1, 2])
    parser.add_argument("--mode", action="append", choices=list(MODES))
    parser.add_argument("--call", action="append", help="only this system call")
    parser.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--results", type=Path, default=Path("build/sweep.jsonl"))
    return parser.parse_args()


def main() -> int:
    asked = _parse_arguments()
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    begin_s = time.monotonic()
    print(f"seed {asked.seed}", flush=True)
    with asked.results.open("w") as file, ExitStack() as stack:

        def note(result: Result) -> None:
            outcome, violations = result
            results.append(result)
            kinds = [[each.kind, each.detail] for each in violations]
            file.write(f'{outcome.to_json()[:-1]}, "violations": {_json(kinds)}}}\n')
            file.flush()
            for each in violations:
                text = f"{outcome.mode} {outcome.injection} {outcome.place}"
                print(f"{text}: {each.kind}: {each.detail.splitlines()[:1]}", flush=True)

        runner = Runner(asked.processes, stack)
        chosen = runner.plan(
            modes(
                asked.backend or ["epoll", "uring"],
                asked.reactors or [1, 2],
                asked.mode or list(MODES),
            ),
            asked.seed,
        )
        if asked.call:
            chosen = [each for each in chosen if each[1].call in asked.call]
        if asked.sample:
            chosen = choose(chosen, asked.sample, asked.seed)
        print(f"{len(chosen)} sessions", flush=True)
        runner.run_all(chosen, note)
    print(table(results))
    print(f"{time.monotonic() - begin_s:.0f} s; each session is in {asked.results}")
    return int(any(violations for _, violations in results))


def _json(value: object) -> str:
    import json  # noqa: PLC0415

    return json.dumps(value)


if __name__ == "__main__":
    sys.exit(main())
