"""The page at /: the process at a glance, for a browser, from the metrics alone.

The server writes the figures into it, the rates too, so that it needs no script: without one the
browser loads it again every PAGE_RELOAD_S. With it, the page asks for itself every PAGE_REFRESH_S
and replaces what has changed. Nothing comes from elsewhere, and the headers forbid it.
"""

import base64
import hashlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from html import escape
from http import HTTPStatus
from importlib import resources
from string import Template

from numbers_uring.errors import StartError
from numbers_uring.limits import PAGE_RATES_S_MAX, PAGE_REFRESH_S, PAGE_RELOAD_S, STATUS_INTERVAL_S
from numbers_uring.metrics.figures import Snapshot
from numbers_uring.metrics.glance import CONNECTED, NOT_CONNECTED, Row
from numbers_uring.metrics.health import State
from numbers_uring.metrics.messages import Answer

Rows = Callable[[Snapshot | None, Snapshot], Sequence[Row]]
"""Return what is shown, from a snapshot that is some seconds old, if there is one, and from now."""

_GOOD = frozenset({State.OK, CONNECTED})
_BAD = frozenset(State) | {NOT_CONNECTED}
"""What is shown in a colour; good is looked for first."""
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page:
    """Answers with the page; `take` returns the figures of this moment. Raises StartError."""

    def __init__(self, take: Callable[[], Snapshot], rows: Rows) -> None:
        self._take = take
        self._rows = rows
        try:
            text = resources.files(__package__).joinpath("page.html").read_text("utf-8")
        except OSError as error:
            raise StartError(
                f"cannot read the page for the metrics port: {error.strerror}"
            ) from error
        self._template = Template(text)
        self._headers = (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", _policy(self._template)),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        )
        self._taken: deque[Snapshot] = deque()
        """What rates are measured from, the oldest first."""

    def answer(self) -> Answer:
        now = self._take()
        rows = self._rows(self._earlier(now), now)
        text = self._template.substitute(
            state=escape(now.state),
            reload_s=f"{PAGE_RELOAD_S:.0f}",
            refresh_ms=f"{1000 * PAGE_REFRESH_S:.0f}",
            rows="\n".join(map(_html, rows)),
        )
        return Answer(HTTPStatus.OK, text.encode(), self._headers)

    def _earlier(self, now: Snapshot) -> Snapshot | None:
        """Return the youngest snapshot over which rates can be measured; keep `now` for later."""
        taken = self._taken
        while taken and now.read_s - taken[0].read_s > PAGE_RATES_S_MAX:
            taken.popleft()
        # A browser's second is sometimes a little shorter than ours.
        old_enough_s = now.read_s - 0.9 * STATUS_INTERVAL_S
        earlier = next((each for each in reversed(taken) if each.read_s <= old_enough_s), None)
        # However often the page is asked for, few are kept.
        if not taken or now.read_s - taken[-1].read_s >= STATUS_INTERVAL_S / 10:
            taken.append(now)
        return earlier


def _html(row: Row) -> str:
    parts = ", ".join(map(_part, row.parts))
    return f'<tr><th scope="row">{escape(row.title)}</th><td>{parts}</td></tr>'


def _part(part: str) -> str:
    tone = "good" if part in _GOOD else "bad" if part in _BAD else "plain"
    return f'<span class="{tone}">{escape(part)}</span>'


def _policy(template: Template) -> str:
    """Return the content security policy: the page's own script and style, and nothing else."""
    hashes: dict[str, str] = {}
    for kind, text in _INLINE.findall(template.safe_substitute()):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind] = f"'sha256-{digest}'"
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes['script']}",
            f"style-src {hashes['style']}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
