"""Addresses: what is taken for one, how it reads, and who is local."""

import subprocess
import sys
from pathlib import Path

import pytest

from numbers_uring.addresses import Peer, TcpAddress, UnixAddress, parse_address
from support.waiting import DEADLINE_S


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4000", TcpAddress("127.0.0.1", 4000)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("0.0.0.0:65535", TcpAddress("0.0.0.0", 65535)),
        ("[::1]:4000", TcpAddress("::1", 4000)),
        ("[::]:4000", TcpAddress("::", 4000)),
        ("[fe80::1%eth0]:1", TcpAddress("fe80::1%eth0", 1)),
        ("unix:/run/numbers.sock", UnixAddress("/run/numbers.sock")),
        ("unix:/run/a:1", UnixAddress("/run/a:1")),
        ("unix:s.sock", UnixAddress(str(Path.cwd() / "s.sock"))),
    ],
)
def test_an_address_is_parsed_and_reads_the_same(
    text: str, address: TcpAddress | UnixAddress
) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "4000", ":4000", "host", "host:", "host:http", "host:65536", "host:-1"),
        *("host:+1", "host: 1", "host:1_0", "host:٣", "::1:4000", "[::1]", "[]:1", "unix:"),
        "unix:/" + "a" * 107,
        "unix:/a\0b",
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"unix|port|host|IPv6|path"):
        parse_address(text)


@pytest.mark.parametrize("host", ["", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_unix_sockets_and_loopback_addresses_are_local(host: str) -> None:
    assert Peer(host, 1).is_local


@pytest.mark.parametrize(
    "host", ["128.0.0.1", "10.0.0.1", "0.0.0.0", "::", "fe80::1%eth0", "::ffff:10.0.0.1", "2001::1"]
)
def test_no_other_host_is_local(host: str) -> None:
    assert not Peer(host, 1).is_local


WITHOUT_IDNA = """
import sys
sys.modules["encodings.idna"] = None
from numbers_uring.cli.main import main
main()
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "no.such.host.invalid"])
@pytest.mark.parametrize("command", ["doctor", "load"])
def test_a_host_is_resolved_without_the_codec_of_international_names(
    host: str, command: str, tmp_path: Path
) -> None:
    """Its module is loaded late, may find no memory, and is then missing for good."""
    port = "0" if command == "doctor" else "1"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_IDNA, command, "--host", host, "--port", port],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        text=True,
        timeout=DEADLINE_S,
    )
    said = done.stdout + done.stderr
    if "invalid" in host:
        assert f"host '{host}': " in said
    else:
        assert ("would start" if command == "doctor" else "Connection refused") in said
    assert "unexpected" not in said
