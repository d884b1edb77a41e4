"""Three NATS servers with the block for routes of deploy/nats.conf, and strangers who want in."""

import asyncio
import json
import re
import signal
import socket
import ssl
import subprocess
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import NoStreamResponseError

from numbers_uring.cluster.connection import connected
from numbers_uring.cluster.partitions import log_name, stream_name, subject_name
from numbers_uring.config import BrokerAccess
from support.broker import Broker, binary, leader
from support.certificates import Certificates
from support.logs import lines
from support.processes import CommandProcess, ServerProcess, run_command
from support.shipped_broker import password, route, shipped_brokers, url_of
from support.waiting import DEADLINE_S, wait_until

PARTITIONS = 2
HONEST, STRANGE = array("I", [0]).tobytes(), array("I", [1]).tobytes()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    certificates = Certificates(tmp_path_factory.mktemp("routes") / "files")
    certificates.make_ca("routes-ca")
    certificates.sign("route", ca="routes-ca", use="serverAuth,clientAuth")
    certificates.sign("stranger", ca="other-ca", use="serverAuth,clientAuth")
    return certificates


@pytest.fixture(scope="module")
def group(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Broker]]:
    """Three servers with a cluster whose streams have three replicas."""
    with shipped_brokers(tmp_path_factory.mktemp("group"), certificates, 3) as brokers:
        options = ("--partitions", str(PARTITIONS), "--replicas", "3", "--max-bytes", str(1 << 20))
        urls = urls_of(brokers, "admin")

        def made() -> bool:
            done = run_command("cluster", "init", "--nats", urls, *options, *files(certificates))
            assert "Invalid value" not in done.stderr, done.stderr
            return done.returncode == 0

        wait_until(made, "the three to know of each other")
        yield brokers


def urls_of(brokers: list[Broker], user: str) -> str:
    return ",".join(url_of(broker, user) for broker in brokers)


def files(certificates: Certificates) -> tuple[str, ...]:
    path = certificates.path
    return (f"--nats-ca={path('ca.pem')}", f"--nats-cert={path('both.pem')}")


class Stranger(Broker):
    """A server that is none of the group, has a user for us, and wants to join."""

    def __init__(self, folder: Path, group: list[Broker], tls: str, secret: str) -> None:
        super().__init__(folder)
        urls = ", ".join(f'"{route(broker.route_port, secret)}"' for broker in group)
        self.config.write_text(
            f'server_name: "stranger"\nlisten: "127.0.0.1:{self.port}"\n'
            'accounts { NUMBERS { users: [ { user: "we", password: "we" } ] } }\n'
            f'cluster {{ name: "numbers", listen: "127.0.0.1:-1", no_advertise: true\n'
            f"  {tls}\n  routes: [{urls}] }}\n"
        )
        self.url = f"nats://we:we@127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        return "Server is ready" in self.log.read_text()


def tls_of(certificates: Certificates, name: str) -> str:
    path = certificates.path
    return (
        f'tls {{ cert_file: "{path(f"{name}.pem")}", key_file: "{path(f"{name}.key")}"\n'
        f'  ca_file: "{path("routes-ca.pem")}" }}'
    )


def refusals(group: list[Broker]) -> int:
    """Return how often members have refused a server."""
    texts = [broker.log.read_text() for broker in group]
    words = ("TLS route handshake error", "authentication error")
    return sum(text.count(word) for text in texts for word in words)


async def publish_honest(client: Client) -> None:
    """Publish a number as soon as the stream has a leader, which a busy machine may change."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await client.jetstream().publish(subject_name(0), HONEST)
            except NoStreamResponseError:
                await asyncio.sleep(0.1)
            else:
                return


def attacked(stranger: Broker, group: list[Broker]) -> set[str]:
    """Read along, publish and delete a stream through `stranger`; return what was answered."""
    victim = group[0]

    async def session() -> set[str]:
        done = set()
        async with (
            connected(stranger.url, "stranger", access=BrokerAccess()) as client,
            connected(victim.url, "tests", access=victim.access) as honest,
        ):
            heard: list[bytes] = []

            async def hear(message: Msg) -> None:
                heard.append(message.data)

            await client.subscribe("numbers.*", cb=hear)
            await client.flush()
            await publish_honest(honest)
            for what, subject, data in (
                ("publish", subject_name(0), STRANGE),
                ("get", f"$JS.API.STREAM.MSG.GET.{stream_name(0)}", b'{"seq":1}'),
                ("delete", f"$JS.API.STREAM.DELETE.{stream_name(1)}", b""),
            ):
                with suppress(NatsError):
                    answer = await client.request(subject, data, timeout=0.5)
                    if "error" not in json.loads(answer.data):
                        done.add(what)
            if HONEST in heard:
                done.add("listen")
        return done

    return asyncio.run(session())


def messages(group: list[Broker]) -> int:
    """Return how many messages there are in the first stream."""
    return group[0].run(lambda js: js.stream_info(stream_name(0))).state.messages


@pytest.mark.parametrize(
    ("certificate", "secret"),
    [
        (None, password("route")),
        ("stranger", password("route")),
        ("client", password("route")),
        ("route", "guessed"),
    ],
    ids=["no-certificate", "another-ca", "the-ca-of-clients", "wrong-password"],
)
def test_a_stranger_is_refused(
    group: list[Broker],
    certificates: Certificates,
    tmp_path: Path,
    certificate: str | None,
    secret: str,
) -> None:
    before = refusals(group), messages(group)
    tls = "" if certificate is None else tls_of(certificates, certificate)
    with Stranger(tmp_path, group, tls, secret) as stranger:
        wait_until(lambda: refusals(group) >= before[0] + 2 * len(group), "refusals by all")
        assert attacked(stranger, group) == set()
    assert messages(group) == before[1] + 1


CONNECT = "CONNECT {}\r\nPING\r\n"
SPOKEN = {
    "client": CONNECT.format("{}"),
    "admin": CONNECT.format('{"user":"admin","pass":"guessed"}'),
    "leafnode": CONNECT.format('{"name":"stranger","cluster":"numbers","remote_account":"NUMBERS"}')
    + "LS+ numbers.*\r\n",
    "gateway": CONNECT.format('{"name":"stranger","gateway":"numbers"}') + "RS+ NUMBERS >\r\n",
    "server": 'INFO {"server_id":"stranger","cluster":"numbers"}\r\nRS+ NUMBERS >\r\nPING\r\n',
    "websocket": "GET / HTTP/1.1\r\nHost: numbers\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "mqtt": "\x10\x13\0\4MQTT\4\2\0\x3c\0\7strange",
}


def answer(
    broker: Broker, port: int, spoken: str, certificates: Certificates, *, encrypted: bool
) -> bytes:
    """Say that at a port, and return all that is answered until the connection is closed."""
    name, ca = ("route", "routes-ca") if port == broker.route_port else ("client", "ca")
    context = ssl.create_default_context(cafile=certificates.path(f"{ca}.pem"))
    context.load_cert_chain(certificates.path(f"{name}.pem"), certificates.path(f"{name}.key"))
    heard = bytearray()
    with ExitStack() as open_, suppress(ConnectionError, ssl.SSLError):
        connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        open_.enter_context(connection)
        if port == broker.port:
            while not heard.endswith(b"\r\n"):
                heard += connection.recv(1)
        if encrypted:
            connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
            open_.enter_context(connection)
        if spoken:
            connection.sendall(spoken.encode("latin-1"))
        while data := connection.recv(1000):
            heard += data
    return bytes(heard)


def test_no_port_answers_one_without_a_password(
    group: list[Broker], certificates: Certificates
) -> None:
    broker = group[0]
    # Also with our certificates, and one that says nothing is disconnected as well.
    cases = list(product((broker.port, broker.route_port), [*SPOKEN.values(), ""], [True, False]))

    def ask(case: tuple[int, str, bool]) -> bytes:
        port, spoken, encrypted = case
        return answer(broker, port, spoken, certificates, encrypted=encrypted)

    with ThreadPoolExecutor(len(cases)) as pool:
        answers = pool.map(ask, cases)
    greeting = rb"(INFO [^\r]*\r\n)?"
    refusal = rb"(-ERR 'Auth(orization Violation|entication Timeout)'\r\n)?"
    for case, heard in zip(cases, answers, strict=True):
        assert re.fullmatch(greeting + refusal, heard), (case, heard)
        assert b"connect_urls" not in heard, "it names the other servers"


@pytest.mark.parametrize("user", ["admin", "node", "collector", "route"])
def test_a_server_whose_passwords_are_not_set_does_not_start(
    group: list[Broker], monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    variable = f"NUMBERS_{user.upper()}_PASSWORD"
    monkeypatch.delenv(variable)
    done = subprocess.run(
        [binary(), "-t", "--config", str(group[0].config)],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert f"variable reference for '{variable}'" in done.stderr


def test_the_three_serve_a_node_and_a_collector(
    group: list[Broker], certificates: Certificates, tmp_path: Path
) -> None:
    options = ("--partitions", str(PARTITIONS), *files(certificates))
    forward = ("--forward", urls_of(group, "node"), *options)
    collect = ("--partitions", "0", "--log-dir", str(tmp_path), *files(certificates))
    with (
        ServerProcess(Path("no-log"), *forward, has_log=False) as node,
        CommandProcess("collect", "--nats", urls_of(group, "collector"), *collect) as collector,
    ):
        collector.wait_for("collecting partitions")
        node.send(lines([5, 6, 7]))
        log = tmp_path / log_name(0)
        wait_until(lambda: lines([5, 6, 7]) in log.read_bytes(), "the numbers")
        lost = leader(group, stream_name(0))
        lost.kill()
        node.send(lines([8, 9]))
        wait_until(lambda: lines([8, 9]) in log.read_bytes(), "numbers by way of the others")
        lost.start()
        lost.wait_ready()
        assert node.terminate() == 0
        assert collector.stop(signal.SIGTERM) == 0


def test_a_server_with_the_certificate_and_the_password_may_do_everything(
    group: list[Broker], certificates: Certificates, tmp_path: Path
) -> None:
    # Last, as it deletes a stream. The tests above would notice a stranger who gets in.
    tls = tls_of(certificates, "route")
    with Stranger(tmp_path, group, tls, password("route")) as stranger:
        wait_until(lambda: "listen" in attacked(stranger, group), "the stranger to join")
