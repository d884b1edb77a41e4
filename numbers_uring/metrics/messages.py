"""HTTP/1.1 as messages, without I/O: when a request is whole, what it asks for, an answer's bytes.

By RFC 9112, and lenient where it allows that: a line may end with a bare LF, one empty line may
come before the request, and a target may be absolute.
"""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from numbers_uring.limits import HTTP_HEADERS_MAX

_REQUEST_LINE = re.compile(rb"(?:\r?\n)?([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[0-9]\r?\n")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_PLAIN_TEXT = (("Content-Type", "text/plain; charset=utf-8"),)


class Request(NamedTuple):
    """What a client asks for; the names of headers are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def may_have_body(self) -> bool:
        """Whether more bytes may follow the head."""
        announced = {"content-length", "transfer-encoding"} & self.headers.keys()
        return bool(announced) or self.method not in {"GET", "HEAD"}


class Answer(NamedTuple):
    """What the client gets; Content-Length and Connection are added."""

    status: HTTPStatus
    body: bytes
    headers: Sequence[tuple[str, str]] = _PLAIN_TEXT


def plain(
    status: HTTPStatus, detail: str | None = None, headers: Sequence[tuple[str, str]] = ()
) -> Answer:
    """Return an answer of one line: the status, and its usual phrase or `detail`."""
    body = f"{status} {detail or status.phrase}\n".encode(errors="replace")
    return Answer(status, body, (*_PLAIN_TEXT, *headers))


def head_of(received: bytes, searched_bytes: int = 0) -> bytes | None:
    """Return the head of the request, up to its empty line; None if it is not whole yet.

    A first line that is no request line is returned at once: nothing behind it could mend it.
    `searched_bytes` of `received` were searched in vain before.
    """
    leading_bytes = 2 if received.startswith(b"\r\n") else int(received.startswith(b"\n"))
    first_end = received.find(b"\n", leading_bytes)
    if first_end < 0:
        return None
    if not _REQUEST_LINE.match(received):
        return received[: first_end + 1]
    end = _EMPTY_LINE.search(received, max(first_end, searched_bytes - 2))
    return None if end is None else received[: end.end()]


def path_of(head: bytes) -> str:
    """Return the path that the request asks for, from its first line alone; "" if it is bad."""
    found = _REQUEST_LINE.match(head)
    return "" if found is None else found[2].decode("ascii").partition("?")[0]


def parse_request(head: bytes) -> Request | None:
    """Return the request that `head` makes; None if it is a bad one."""
    found = _REQUEST_LINE.match(head)
    if found is None:
        return None
    lines = head[found.end() :].decode("latin-1").split("\n")
    if len(lines) > HTTP_HEADERS_MAX:
        return None
    method, target = found[1].decode("ascii"), found[2].decode("ascii")
    headers: dict[str, str] = {}
    for line in lines:
        if line in {"", "\r"}:
            break
        header = _HEADER.fullmatch(line.removesuffix("\r"))
        if header is None:
            return None
        name, value = header[1].lower(), header[2].rstrip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, _, query = target.partition("?")
    if target.lower().startswith(("http://", "https://")):
        try:
            url = urlsplit(target)
        except ValueError:
            return None
        path, query = url.path, url.query
    elif not target.startswith("/") and target != "*" and method != "CONNECT":
        return None
    return Request(method, path, query, headers)


def encode(answer: Answer, *, with_body: bool = True) -> bytes:
    """Return the bytes of a response after which the connection is closed."""
    headers = (
        *answer.headers,
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
    )
    lines = [f"HTTP/1.1 {answer.status} {answer.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (answer.body if with_body else b"")
