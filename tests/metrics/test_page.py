"""The page at /: that it is whole, needs nothing from elsewhere, and shows what `status` shows."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from numbers_uring.errors import StartError
from numbers_uring.limits import PAGE_RATES_S_MAX, STATUS_INTERVAL_S
from numbers_uring.metrics.figures import Snapshot
from numbers_uring.metrics.glance import collector_rows, server_rows
from numbers_uring.metrics.health import State
from numbers_uring.metrics.page import Page
from support.logs import lines
from support.metrics_client import get, scrape, shown_rows, url_of
from support.processes import ServerProcess, run_command
from support.waiting import wait_until

Serve = Callable[..., ServerProcess]

VOID = {"meta", "link"}


class Reader(HTMLParser):
    """Reads a page; fails where an element is not closed, or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        """What stands in the elements script and style."""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"script", "style"}:
            self.inline[self.open[-1]] = data


def snapshot(read_s: float, numbers: int = 0, *, state: str = "ok", kernel: str = "k") -> Snapshot:
    """One of a server that has taken in so many new numbers."""
    names = [
        *("received_bytes_total", "connections", "connections_max", "held_back_seconds_total"),
        *("connections_accepted_total", "log_written_bytes_total"),
    ]
    samples: dict[tuple[str, ...], float] = {(f"numbers_uring_{name}",): 1 for name in names}
    samples["numbers_uring_numbers_total", "unique"] = numbers
    samples["numbers_uring_numbers_total", "duplicate"] = 0
    return Snapshot(read_s, state, {"version": "1", "backend": "b", "kernel": kernel}, samples)


def page_of(*snapshots: Snapshot) -> Page:
    remaining = iter(snapshots)
    return Page(lambda: next(remaining), server_rows)


def test_it_is_whole_and_runs_its_own_script_and_style_alone(serve: Serve) -> None:
    url = url_of(serve("--metrics", "127.0.0.1:0"))
    status, body, headers = get(f"{url}/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")
    page = Reader(body.decode())
    policy = dict(
        part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; ") if " " in part
    )
    # Scripts and styles, inline ones too, run only if their hash is there.
    for kind, text in page.inline.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert policy.pop("connect-src") == "'self'"
    assert policy.pop("img-src") == "data:"
    assert set(policy.values()) == {"'none'"}
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} == policy.keys()
    # What the policy would block, or what leads elsewhere.
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    links = {attributes["href"] for _, attributes in page.tags if "href" in attributes}
    assert links == {"metrics", "healthz", "data:,"}
    assert not [tag for tag, attributes in page.tags if "src" in attributes]
    assert b"//" not in re.sub(rb"^ *//.*", b"", body, flags=re.MULTILINE)


def test_it_is_for_phones_and_dark_rooms_and_browsers_without_scripts(serve: Serve) -> None:
    body = get(f"{url_of(serve('--metrics', '127.0.0.1:0'))}/")[1].decode()
    page = Reader(body)
    assert ("html", {"lang": "en"}) in page.tags
    names = {attributes.get("name") for _, attributes in page.tags}
    assert {"viewport", "color-scheme"} <= names
    assert "prefers-color-scheme: dark" in page.inline["style"]
    after = [tag for tag, _ in page.tags][[tag for tag, _ in page.tags].index("noscript") + 1]
    assert after == "meta"


def test_it_shows_what_status_shows(serve: Serve, backend: str) -> None:
    server = serve("--backend", backend, "--metrics", "127.0.0.1:0")
    server.send(lines([1, 2, 3, 1]))
    wait_until(lambda: scrape(server)["numbers_uring_connections"] == 0, "the end of the client")
    url = url_of(server)
    shown = shown_rows(url)
    printed = run_command("status", url).stdout.splitlines()
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in printed)
    assert list(shown) == [*(title for title in rows if title != "server"), "version"]
    assert shown.pop("state").startswith("ok, up 00:0")
    assert shown.pop("now") == "- numbers/s, - unique/s, - MB/s received"
    assert rows.pop("server").endswith(shown.pop("version"))
    assert shown == {title: rows[title] for title in shown}
    assert shown["total"].startswith("3 unique, 1 duplicate")


def rates(page: Page) -> str:
    found = re.search(r'<th scope="row">now</th><td><span[^>]*>(\S+) numbers/s', text_of(page))
    assert found is not None
    return found[1]


def text_of(page: Page) -> str:
    return page.answer().body.decode()


def test_rates_are_those_since_about_a_second_ago() -> None:
    page = page_of(
        *(snapshot(10, 1000), snapshot(10.5, 5000), snapshot(11, 5000), snapshot(11.5, 7000)),
        *(snapshot(12.5, 7000), snapshot(12.5 + 2 * PAGE_RATES_S_MAX, 9000)),
    )
    assert rates(page) == "-"
    assert rates(page) == "-", "half a second is too short"
    assert rates(page) == "4,000"
    assert rates(page) == "2,000"
    assert rates(page) == "0"
    assert rates(page) == "-", "too long ago to be called now"


def test_however_often_it_is_asked_for_it_keeps_little() -> None:
    page = page_of(*(snapshot(n / 10_000) for n in range(100_000)))
    for _ in range(100_000 - 1):
        page._earlier(page._take())
    assert len(page._taken) <= 10 * PAGE_RATES_S_MAX / STATUS_INTERVAL_S + 1
    assert page._earlier(page._take()) is not None


@pytest.mark.parametrize("state", State)
def test_a_state_that_is_not_ok_stands_out(state: State) -> None:
    tone = "good" if state is State.OK else "bad"
    text = text_of(page_of(snapshot(1, state=state)))
    assert f'<span class="{tone}">{state}</span>' in text
    assert f"<title>{state} - numbers-uring</title>" in text


def test_what_it_is_told_is_text_and_never_markup() -> None:
    text = text_of(page_of(snapshot(1, kernel="<script>alert(1)</script>&$rows")))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;$rows" in text
    assert text.count("<script>") == 1


def test_collectors_show_all_partitions() -> None:
    def collectors(read_s: float, unique: int) -> Iterator[tuple[tuple[str, ...], float]]:
        yield ("numbers_uring_collector_nats_connected",), 0.0
        yield ("numbers_uring_collector_nats_reconnects_total",), 3.0
        for partition in ("0", "1"):
            yield ("numbers_uring_collector_numbers_total", partition, "unique"), unique
            yield ("numbers_uring_collector_numbers_total", partition, "duplicate"), 10.0
            yield ("numbers_uring_collector_received_bytes_total", partition), 2e6
            yield ("numbers_uring_collector_held_back_seconds_total", partition), 0.5
            yield ("numbers_uring_collector_position", partition), 7.0
            yield ("numbers_uring_collector_log_numbers", partition), 5000.0
        yield ("numbers_uring_collector_waiting_sequence", "1"), 8.0
        yield ("numbers_uring_collector_lag_messages", "1"), 4.0

    info = {"version": "1", "kernel": "k"}
    before, now = (
        Snapshot(read_s, "ok", info, dict(collectors(read_s, unique)))
        for read_s, unique in ((1, 100), (3, 600))
    )
    shown = {row.title: ", ".join(row.parts) for row in collector_rows(before, now)}
    assert shown == {
        "state": "ok, up -",
        "now": "500 numbers/s, 500 unique/s, 0.0 MB/s received",
        "total": "1,200 unique, 20 duplicate, 4.0 MB received",
        "NATS server": "not connected, 3 reconnects since the start",
        "held back": "1.0 s since the start",
        "partition 0": "5,000 numbers in the log, message 7, - behind",
        "partition 1": "5,000 numbers in the log, message 7, 4 behind, waits for message 8",
        "version": "1, kernel k",
    }
    assert "- numbers/s" in str(collector_rows(None, now))


def test_without_its_file_the_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def joinpath(_: str) -> SimpleNamespace:
        return SimpleNamespace(read_text=fail)

    def fail(_: str) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    folder = SimpleNamespace(joinpath=joinpath)
    monkeypatch.setattr("numbers_uring.metrics.page.resources.files", lambda _: folder)
    with pytest.raises(StartError, match="cannot read the page"):
        page_of()
