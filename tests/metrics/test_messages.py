"""Requests and answers as bytes."""

from http import HTTPStatus

import pytest

from numbers_uring.limits import HTTP_HEADERS_MAX
from numbers_uring.metrics.messages import encode, head_of, parse_request, path_of, plain

WELL_FORMED = [
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: x\n\n",
    b"GET /a HTTP/1.1\r\nHost: x\n\r\n",
    b"GET /a HTTP/1.0\n\n",
    b"\r\nGET /a HTTP/1.1\r\n\r\n",
    b"\nGET /a HTTP/1.1\n\n",
    b"GET http://x/a HTTP/1.1\r\n\r\n",
    b"GET HTTP://x:1/a HTTP/1.1\r\n\r\n",
]
BAD = [
    b"GET /\r\n",
    b"GET / HTTP/2.0\r\n",
    b"PRI * HTTP/2.0\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET / x HTTP/1.1\r\n",
    b" GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1 \r\n",
    b"GET / HTTP/1.1\r\r\n",
    b"G\xc3\x84T / HTTP/1.1\r\n",
    b"GET /\x00 HTTP/1.1\r\n",
    b"123456789\n",
]
"""First lines that are no request lines."""
BAD_HEADS = [
    b"GET x HTTP/1.1\r\n\r\n",
    b"GET http://[x/ HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
    b"GET / HTTP/1.1\r\n: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * HTTP_HEADERS_MAX + b"\r\n",
]


@pytest.mark.parametrize("request_bytes", WELL_FORMED)
def test_a_request_is_whole_at_its_empty_line_however_it_comes(request_bytes: bytes) -> None:
    searched_bytes = 0
    for size in range(len(request_bytes)):
        assert head_of(request_bytes[:size], searched_bytes) is None
        searched_bytes = size
    assert head_of(request_bytes, searched_bytes) == request_bytes
    assert head_of(request_bytes + b"GET /next HTTP/1.1\r\n") == request_bytes
    request = parse_request(request_bytes)
    assert request is not None
    assert (request.method, request.path, request.query) == ("GET", "/a", "")


@pytest.mark.parametrize(
    ("leading", "line"),
    [
        *((leading, line) for leading in (b"", b"\n", b"\r\n") for line in BAD),
        *((leading, empty) for leading in (b"\n", b"\r\n") for empty in (b"\n", b"\r\n")),
    ],
)
def test_a_line_that_is_no_request_line_is_bad_at_once(leading: bytes, line: bytes) -> None:
    head = head_of(leading + line)
    assert head == leading + line
    assert parse_request(head) is None
    assert path_of(head) == ""


@pytest.mark.parametrize("head", BAD_HEADS)
def test_a_head_that_is_no_request_is_bad(head: bytes) -> None:
    assert head_of(head) == head
    assert parse_request(head) is None


def test_a_request_is_taken_apart() -> None:
    head = b"GET /a/b?c=d?&e HTTP/1.1\r\naccept:x\r\nX:  y \t\r\nACCEPT: z\n\r\n"
    request = parse_request(head)
    assert request is not None
    assert request[:3] == ("GET", "/a/b", "c=d?&e")
    assert request.headers == {"accept": "x, z", "x": "y"}
    assert path_of(head) == "/a/b"
    for asterisk in (b"OPTIONS * HTTP/1.1\n\n", b"CONNECT x:1 HTTP/1.1\n\n"):
        assert parse_request(asterisk) is not None


@pytest.mark.parametrize(
    ("head", "may_have_body"),
    [
        (b"GET / HTTP/1.1\n\n", False),
        (b"HEAD / HTTP/1.1\nAccept: x\n\n", False),
        (b"GET / HTTP/1.1\nContent-Length: 1\n\n", True),
        (b"GET / HTTP/1.1\ntransfer-encoding: chunked\n\n", True),
        (b"POST / HTTP/1.1\n\n", True),
    ],
)
def test_a_body_is_expected_where_one_may_come(head: bytes, may_have_body: bool) -> None:
    request = parse_request(head)
    assert request is not None
    assert request.may_have_body is may_have_body


def test_an_answer_is_encoded_with_its_length_and_without_a_body_for_head() -> None:
    answer = plain(HTTPStatus.NOT_FOUND, headers=[("X", "y")])
    head = (
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nX: y\r\n"
        b"Content-Length: 14\r\nConnection: close\r\n\r\n"
    )
    assert encode(answer) == head + b"404 Not Found\n"
    assert encode(answer, with_body=False) == head
