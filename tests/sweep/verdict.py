"""Judges a session by the contract: what may come of a failed call, and what may not."""

import json
import re
from collections import Counter
from dataclasses import dataclass

from sweep.session import SPIN, Client, Outcome

REPORT = re.compile(r"Received (\d+) unique numbers, (\d+) duplicates\. Unique total: (\d+)")
_LOST = re.compile(r"(\d+) counted numbers? (?:is|are) lost")
_WRITTEN = re.compile(r"(\d+) numbers? written to")
_USUAL = ("listening on ", "stopped by ", "client ", "resumed ", "resuming ", "read ", "reading ")
_USUAL_TOO = (" is reopened", "clients disconnected", "clients refused: all slots are taken")
_TRACES = ("Traceback", "Exception ignored", "Fatal Python error", "  File ")
_OF_PYTHON = "Exception ignored when trying to write to the signal wakeup fd:"
"""What the interpreter itself writes, where our hook for such errors has no say."""
_REPEATS_MAX = 5
_EXIT_CODES = {0, 1, 3, 4}
_NETWORK = ("ECONNRESET", "ECONNABORTED", "ENOTCONN", "EPIPE", "recvfrom", "sendto")
"""What a peer or the network did, or seems to do: that ends its connection with a reset, which is
counted, and nothing needs to be said."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that a session broke."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Said:
    """A line on standard error, of either format."""

    is_error: bool
    text: str


def judge(outcome: Outcome) -> list[Violation]:
    """Return what the session did wrong: empty where it kept every promise."""
    return [
        *_end(outcome),
        *_stderr(outcome),
        *_stdout(outcome),
        *_log(outcome),
        *_counts(outcome),
        *_clients(outcome),
    ]


def _refused_writes(outcome: Outcome) -> set[str]:
    """Return the standard streams whose writes were made to fail, as their lines tell."""
    lines = [line for line in outcome.injected if re.search(r"\b(write|sendto)\(", line)]
    begins = {'"Received': "stdout", "numbers-uring: ": "stderr", r'"{\"time': "stderr"}
    return {name for line in lines for begin, name in begins.items() if begin in line}


def _end(outcome: Outcome) -> list[Violation]:
    found = []
    if outcome.hang:
        found.append(Violation(f"hang at the {outcome.hang}", outcome.stack))
    elif outcome.code is None or outcome.code < 0:
        found.append(Violation("death by signal", f"{outcome.code}"))
    elif outcome.code not in _EXIT_CODES:
        found.append(Violation("exit code", f"{outcome.code}"))
    elif outcome.code == 3 and outcome.started:
        found.append(Violation("exit code", "3 after the start"))
    elif outcome.code in {0, 1} and not outcome.started:
        found.append(Violation("exit code", f"{outcome.code} without a start"))
    if outcome.spin > SPIN:
        found.append(Violation("spin", f"{outcome.spin:.0%} of a processor for nothing"))
    return found


def _parse(line: str) -> _Said | None:
    if line.startswith("{"):
        try:
            said = json.loads(line)
            return _Said(said["level"] == "error", said["message"])
        except (ValueError, KeyError):
            return None
    prefix, error = "numbers-uring: ", "error: "
    if not line.startswith(prefix):
        return None
    text = line.removeprefix(prefix)
    return _Said(text.startswith(error), text.removeprefix(error))


def _is_usual(said: _Said) -> bool:
    return not said.is_error and (
        said.text.startswith(_USUAL) or any(words in said.text for words in _USUAL_TOO)
    )


def _stderr(outcome: Outcome) -> list[Violation]:
    lines = [line for line in outcome.stderr if line != _OF_PYTHON]
    # One in debug lines is what --verbose promises.
    if any(words in line and _parse(line) is None for line in lines for words in _TRACES):
        return [Violation("traceback", _last_place(lines))]
    found = []
    said = [_parse(line) for line in lines]
    strays = [line for line, parsed in zip(lines, said, strict=True) if parsed is None]
    if strays:
        found.append(Violation("stray line on stderr", strays[0]))
    errors = [each.text for each in said if each is not None and each.is_error]
    if "stderr" not in _refused_writes(outcome) and not outcome.hang:
        expected = 1 if outcome.code else 0
        if len(errors) != expected:
            found.append(Violation("error lines", f"{len(errors)} with exit {outcome.code}"))
    texts = Counter(re.sub(r"\d+", "#", each.text) for each in said if each and not _is_usual(each))
    for text, count in texts.items():
        if count > _REPEATS_MAX:
            found.append(Violation("flood", f"{count} times {text}"))
    return found


def _last_place(lines: list[str]) -> str:
    """Return the innermost place of ours in a traceback, and the error."""
    places = [
        match[1]
        for line in lines
        if (match := re.search(r'File "[^"]*/(numbers_uring/[^"]+", line \d+, in \w+)', line))
    ]
    errors = [line for line in lines if re.match(r"\w*(Error|Exception|Interrupt)\b", line)]
    place = places[-1].replace('", line ', ":") if places else "outside of our code"
    return f"{place}: {errors[-1] if errors else lines[-1]}"


def _stdout(outcome: Outcome) -> list[Violation]:
    total = 0
    for line in outcome.stdout:
        report = REPORT.fullmatch(line)
        if report is None:
            return [Violation("something else on stdout", line)]
        total += int(report[1])
        if total != int(report[3]):
            return [Violation("reports", f"do not add up: {outcome.stdout}")]
    return []


def _numbers(outcome: Outcome) -> list[int] | Violation:
    """Return what this run has put on file; a violation where that is not what was sent."""
    text = "".join(outcome.logs)
    if not outcome.started and text != outcome.earlier:
        return Violation("the old log was changed by a failed start", f"{text[:50]!r}...")
    earlier = outcome.earlier if outcome.resumes or not outcome.started else ""
    if not text.startswith(earlier):
        return Violation("log", "numbers of an earlier run are gone")
    text = text.removeprefix(earlier)
    if not re.fullmatch(r"(?:[0-9]{9}\n)*", text):
        return Violation("log", "something else than whole lines")
    numbers = [int(line) for line in text.split()]
    wrong = set(numbers) - {
        number for client in outcome.clients for number in [*client.sent, *client.tried]
    }
    if wrong:
        return Violation("log", f"numbers that no client sent: {sorted(wrong)[:5]}")
    if len(set(numbers)) != len(numbers):
        return Violation("log", "a number is there twice")
    return numbers


def _log(outcome: Outcome) -> list[Violation]:
    numbers = _numbers(outcome)
    return [numbers] if isinstance(numbers, Violation) else []


def _counts(outcome: Outcome) -> list[Violation]:
    """Compare the reports, the last line and the loss that was said with the file."""
    numbers = _numbers(outcome)
    if isinstance(numbers, Violation) or not outcome.started or outcome.code not in {0, 1, 4}:
        return []
    on_file = len(numbers)
    found = []
    stderr = "\n".join(outcome.stderr)
    written = _WRITTEN.search(stderr)
    if written and int(written[1]) != on_file:
        found.append(Violation("last line", f"{written[0]}..., on file are {on_file}"))
    reports = [REPORT.fullmatch(line) for line in outcome.stdout]
    if _refused_writes(outcome):
        return found
    if not reports or reports[-1] is None:
        return [*found, Violation("reports", "no last report")]
    lost = _LOST.search(stderr)
    counted = int(reports[-1][3]) - (int(lost[1]) if lost else 0)
    if counted != on_file:
        loss = f", {lost[1]} of them said to be lost" if lost else ""
        detail = f"{reports[-1][3]} counted{loss}, on file are {on_file}"
        kind = "numbers lost" if counted > on_file else "numbers on file that were not counted"
        found.append(Violation(kind, f"exit {outcome.code}: {detail}"))
    return found


def _clients(outcome: Outcome) -> list[Violation]:
    numbers = _numbers(outcome)
    on_file = set() if isinstance(numbers, Violation) else set(numbers)
    if isinstance(numbers, Violation):
        return []
    found = []
    for client in outcome.clients:
        # A unix socket cannot be reset, so only a clean end says something there.
        says = client.end == "fin" and (not client.is_unix or outcome.code == 0)
        if says and not on_file.issuperset(client.sent):
            missing = len(set(client.sent) - on_file)
            detail = f"client {client.name!r}: {missing} of {len(client.sent)} are not on file"
            found.append(Violation("a FIN that lies", detail))
    if outcome.code == 0 and not outcome.hang and not found:
        found += _service(outcome, on_file)
    return found


def _service(outcome: Outcome, on_file: set[int]) -> list[Violation]:
    """Where nothing was said, everybody must have been served."""
    parsed = [_parse(line) for line in outcome.stderr]
    if any(said is not None and not _is_usual(said) for said in parsed):
        return []
    if "stderr" in _refused_writes(outcome) or any(name in outcome.injection for name in _NETWORK):
        return []
    unserved = [each.name for each in outcome.clients if not _is_served(each, outcome, on_file)]
    unserved += [path for path, said in outcome.probes.items() if " 200" not in said]
    if unserved:
        return [Violation("less service without a word", ", ".join(unserved))]
    return []


def _is_served(client: Client, outcome: Outcome, on_file: set[int]) -> bool:
    if "refuse" in outcome.mode and client.name.startswith("waits"):
        return True
    # Where the option of an orderly close is refused there is a reset, which promises nothing.
    ends = {"fin", "reset"} if "SO_LINGER" in "".join(outcome.injected) else {"fin"}
    return client.end in ends and on_file.issuperset(client.sent)
