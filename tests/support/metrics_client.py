"""What tests need that ask a process for its metrics and its health."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from html import unescape

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support.processes import CommandProcess, ServerProcess
from support.waiting import DEADLINE_S

Samples = dict[str, float]
"""By name and its labels' values, such as `numbers_uring_numbers_total unique`."""


def samples(families: Iterable[Metric]) -> Samples:
    found = {}
    for family in families:
        for sample in family.samples:
            values = [value for _, value in sorted(sample.labels.items())]
            found[" ".join([sample.name, *values])] = sample.value
    return found


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(
        url, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def url_of(process: ServerProcess | CommandProcess) -> str:
    found = re.search(r"metrics on (http://\S+)/metrics", process.stderr)
    assert found, process.stderr
    return found[1]


def scrape(process: ServerProcess | CommandProcess) -> Samples:
    status, body, _ = get(f"{url_of(process)}/metrics")
    assert status == 200
    return samples(parse_text(body.decode()))


def shown_rows(url: str) -> dict[str, str]:
    """Return what the page of the metrics port shows, by title."""
    status, body, _ = get(f"{url}/")
    assert status == 200
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', body.decode())
    return {title: unescape(re.sub(r"<[^>]*>", "", text)) for title, text in rows}


def health(process: ServerProcess | CommandProcess) -> tuple[int, str]:
    status, body, _ = get(f"{url_of(process)}/healthz")
    return status, json.loads(body)["status"]


def health_reason(process: ServerProcess | CommandProcess) -> str | None:
    """Return why its health is not a better one, if it tells that."""
    _, body, _ = get(f"{url_of(process)}/healthz")
    reason: str | None = json.loads(body).get("reason")
    return reason


def state_shown(process: ServerProcess | CommandProcess) -> str:
    """Return the one state that its metrics have."""
    found = scrape(process)
    (shown,) = [name for name in found if name.startswith("numbers_uring_state ") and found[name]]
    return shown.partition(" ")[2]
