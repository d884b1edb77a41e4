"""Commands that reach a NATS server by certificates, credentials and rights, or are refused."""

import asyncio
import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from nats.aio.client import Client

from numbers_uring.cluster.access import client_for
from numbers_uring.cluster.connection import connected
from numbers_uring.cluster.partitions import log_name
from numbers_uring.config import BrokerAccess
from numbers_uring.errors import StartError
from ports import reserve_port
from support.broker import Broker
from support.certificates import Certificates
from support.logs import lines
from support.processes import CommandProcess, ServerProcess, assert_one_line_error, run_command
from support.signed_jwts import Operator
from support.waiting import DEADLINE_S, wait_until

STATUS = ("cluster", "status", "--json")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates") / "files")


@pytest.fixture(scope="module")
def encrypted(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A NATS server that encrypts, and asks for our certificate and for a password."""
    path = certificates.path
    settings = (
        f'tls {{ cert_file: "{path("server.pem")}", key_file: "{path("server.key")}"\n'
        f'  ca_file: "{path("ca.pem")}", verify: true }}\n'
        'authorization { user: "cluster", password: "secret" }\n'
    )
    broker = Broker(tmp_path_factory.mktemp("encrypted"), settings=settings)
    broker.url = f"tls://cluster:secret@127.0.0.1:{broker.port}"
    broker.access = BrokerAccess(ca=path("ca.pem"), certificate=path("both.pem"))
    with broker:
        yield broker


@pytest.fixture
def access(certificates: Certificates) -> tuple[str, ...]:
    """The options that the NATS server above asks for."""
    path = certificates.path
    files = {"ca": path("ca.pem"), "cert": path("client.pem"), "key": path("client.key")}
    return tuple(f"--nats-{name}={file}" for name, file in files.items())


def assert_numbers_get_through(
    broker: Broker,
    access: tuple[str, ...],
    folder: Path,
    *,
    away: Callable[[], AbstractContextManager[None]] = nullcontext,
    words: str = "reconnected to",
) -> None:
    """Run a whole cluster of one partition, also while its NATS server is away and after that."""
    url = broker.url
    done = run_command("cluster", "init", "--nats", url, "--partitions", "1", *access)
    assert done.returncode == 0, done.stderr
    arguments = ("collect", "--nats", url, "--partitions", "0", "--log-dir", str(folder), *access)
    options = ("--forward", url, "--partitions", "1", *access)
    with (
        CommandProcess(*arguments) as collector,
        ServerProcess(Path("no-log"), *options, has_log=False) as node,
    ):
        collector.wait_for("collecting partitions")
        node.send(lines([1, 2, 3]))
        log = folder / log_name(0)
        wait_until(lambda: log.read_bytes() == lines([1, 2, 3]), "the numbers")
        broker.kill()
        collector.wait_for("lost the connection")
        with away():
            broker.start()
            collector.wait_for(words)
        node.send(lines([4]))
        wait_until(lambda: log.read_bytes() == lines([1, 2, 3, 4]), "the number after the return")
        done = run_command(*STATUS, "--nats", url, *access)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert json.loads(done.stdout)["totals"]["collected"] == 1
        assert node.terminate() == 0
        assert "secret" not in node.stderr + collector.stderr
    done = run_command("doctor", "--port", "0", *options, cwd=folder)
    assert " answers, and the settings of its 1 stream are right" in done.stdout, done.stdout
    assert "secret" not in done.stdout


def test_a_cluster_works_with_certificates_on_both_sides(
    encrypted: Broker, access: tuple[str, ...], tmp_path: Path
) -> None:
    assert_numbers_get_through(encrypted, access, tmp_path)
    # What begins with nats:// is encrypted as well, and options come from the environment.
    environment = {
        option.partition("=")[0].replace("--", "NUMBERS_URING_CLUSTER_STATUS_").replace("-", "_"): (
            option.partition("=")[2]
        )
        for option in access
    }
    environment = {name.upper(): value for name, value in environment.items()}
    url = encrypted.url.replace("tls://", "nats://")
    done = run_command(*STATUS, "--nats", url, environment=environment)
    assert json.loads(done.stdout)["settings"]["partitions"] == 1


def test_a_nats_server_that_is_not_to_be_trusted_or_does_not_trust_us_is_one_line(
    encrypted: Broker, certificates: Certificates, access: tuple[str, ...]
) -> None:
    ca, cert, key = access
    other = f"--nats-ca={certificates.path('other-ca.pem')}"
    for options, words in (
        ((), "certificate verify failed"),
        ((other, cert, key), "certificate verify failed"),
        # The server's reset may overtake its alert, and then nothing else is known.
        ((ca,), "certificate required|[Cc]onnection (reset|lost)"),
    ):
        done = run_command(*STATUS, "--nats", encrypted.url, *options)
        assert_one_line_error(done, 3, "cannot reach the NATS server at tls://127.0.0.1")
        assert re.search(words, done.stderr), done.stderr
        assert "secret" not in done.stderr
    url = encrypted.url.replace("127.0.0.1", "localhost")
    done = run_command(*STATUS, "--nats", url, *access)
    assert_one_line_error(done, 3, "localhost")


@pytest.mark.parametrize("option", ["tls://", "--nats-ca", "--nats-cert"])
def test_nothing_is_said_to_a_nats_server_without_tls_where_tls_is_asked_for(
    certificates: Certificates, option: str
) -> None:
    said: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.settimeout(DEADLINE_S)
                client.sendall(b'INFO {"auth_required":true,"max_payload":1048576}\r\n')
                said.append(client.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"{'tls' if option == 'tls://' else 'nats'}://user:secret@127.0.0.1:{port}"
        files = {"--nats-ca": "ca.pem", "--nats-cert": "both.pem"}
        options = [f"{option}={certificates.path(files[option])}"] if option in files else []
        done = run_command(*STATUS, "--nats", url, *options)
        thread.join(DEADLINE_S)
    assert_one_line_error(done, 3, "it does not offer TLS")
    assert said == [b""]


def test_only_servers_that_the_user_named_are_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("numbers_uring.cluster.client.BROKER_RECONNECT_S", 0.05)

    async def session() -> None:
        others: list[asyncio.StreamWriter] = []

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Name another server, and close the connection once it is made."""
            names = {"max_payload": 1000, "connect_urls": [f"127.0.0.1:{other_port}"]}
            writer.write(f"INFO {json.dumps(names)}\r\n".encode())
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
            await writer.drain()
            writer.close()
            named.release()

        async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            others.append(writer)
            writer.close()

        named = asyncio.Semaphore(0)
        async with (
            await asyncio.start_server(greet, "127.0.0.1", 0) as server,
            await asyncio.start_server(take, "127.0.0.1", 0) as other,
            asyncio.timeout(DEADLINE_S),
        ):
            (port, other_port) = (each.sockets[0].getsockname()[1] for each in (server, other))
            async with connected(f"nats://127.0.0.1:{port}", "tests", access=BrokerAccess()):
                for _ in range(4):
                    await named.acquire()
        assert not others

    asyncio.run(session())


def test_commands_say_nothing_but_their_own_lines_over_tls(
    encrypted: Broker, access: tuple[str, ...], tmp_path: Path
) -> None:
    environment = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "always"}
    options = ("--nats", encrypted.url, *access)
    said: list[str] = []
    # It is a problem if no collector has reported in the last seconds.
    for arguments, codes in ((("cluster", "init", "--partitions", "1"), {0}), (STATUS, {0, 1})):
        done = run_command(*arguments, *options, environment=environment)
        assert done.returncode in codes, done.stderr
        said += done.stderr.splitlines()
    collect = ("collect", "--partitions", "0", "--log-dir", str(tmp_path), *options)
    serve = ("--forward", encrypted.url, "--partitions", "1", *access)
    with (
        CommandProcess(*collect, environment=environment) as collector,
        ServerProcess(Path("no-log"), *serve, has_log=False, environment=environment) as node,
    ):
        collector.wait_for("collecting partitions")
        assert node.terminate() == 0
        assert collector.stop(signal.SIGTERM) == 0
    said += collector.stderr_lines + node.stderr_lines
    # Python's development mode also says what took long.
    strange = [line for line in said if " took " not in line]
    for word in ("asyncio", "Warning", "Traceback"):
        assert not [line for line in strange if word in line]


def test_a_cluster_works_with_credentials(tmp_path: Path) -> None:
    operator = Operator()
    credentials, ours, others = (
        tmp_path / f"{name}.creds" for name in ("theirs", "ours", "others")
    )
    for path, who in ((credentials, operator), (ours, operator), (others, Operator())):
        path.write_text(who.credentials())
    broker = Broker(tmp_path / "broker", settings=operator.settings())
    broker.access = BrokerAccess(credentials=ours)
    with broker:
        logs = tmp_path / "logs"
        logs.mkdir()

        @contextmanager
        def replaced() -> Iterator[None]:
            """Have no whole file at the client's place for a moment; at our own, all the time."""
            text = credentials.read_text()
            credentials.write_text(text[:-300])
            yield
            credentials.write_text(text)

        assert_numbers_get_through(
            broker,
            (f"--nats-credentials={credentials}",),
            logs,
            away=replaced,
            words=f"cannot use the credentials {credentials}: they are no user's JWT",
        )
        for options in ((), (f"--nats-credentials={others}",)):
            done = run_command(*STATUS, "--nats", broker.url, *options)
            assert_one_line_error(done, 3, "Authorization Violation")


@pytest.mark.alone  # A collector has to start before its credentials expire.
@pytest.mark.waiting
def test_credentials_that_expire_can_be_replaced_meanwhile(tmp_path: Path) -> None:
    operator = Operator()
    credentials, ours = tmp_path / "theirs.creds", tmp_path / "ours.creds"
    ours.write_text(operator.credentials())
    broker = Broker(tmp_path / "broker", settings=operator.settings())
    broker.access = BrokerAccess(credentials=ours)
    access = ("--nats", broker.url, f"--nats-credentials={credentials}")
    with broker:
        credentials.write_text(operator.credentials())
        done = run_command("cluster", "init", "--partitions", "1", *access)
        assert done.returncode == 0, done.stderr
        credentials.write_text(operator.credentials(lasts_s=4))
        with CommandProcess(
            "collect", "--partitions", "0", f"--log-dir={tmp_path}", *access
        ) as collector:
            collector.wait_for("collecting partitions")
            credentials.write_text(operator.credentials())
            collector.wait_for("reconnected to the NATS server")
            assert collector.stop(signal.SIGTERM) == 0
        credentials.write_text(operator.credentials(lasts_s=4))
        with CommandProcess(
            "collect", "--partitions", "0", f"--log-dir={tmp_path}", *access
        ) as collector:
            collector.wait_for("collecting partitions")
            assert collector.wait() == 1
            assert "is no longer usable: " in collector.stderr_lines[-1]


@pytest.fixture
def bad(certificates: Certificates, tmp_path: Path) -> Callable[[str], str]:
    """Return the path of a file that is of no use, or of one that is."""

    def path(name: str) -> str:
        if name == "text":
            (tmp_path / name).write_text("-----BEGIN NATS USER JWT-----\nno more\n")
        if name == "seedless":
            text = Operator().credentials()
            start = text.index("SU", text.index("SEED-----"))
            (tmp_path / name).write_text(text[:start] + "SUX" + text[start + 3 :])
        ours = certificates.path(name)
        return str(ours if ours.exists() else tmp_path / name)

    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"credentials": "absent"}, "cannot use the credentials"),
        ({"credentials": "text"}, "no user's JWT and seed"),
        ({"credentials": "seedless"}, "no user's JWT and seed"),
        ({"ca": "absent"}, "cannot use the certificates of the CA"),
        ({"ca": "text"}, "cannot use the certificates of the CA"),
        ({"cert": "absent"}, "cannot use the certificate"),
        ({"cert": "text"}, "cannot use the certificate"),
        ({"cert": "client.pem"}, "cannot use the certificate"),
        ({"cert": "client.pem", "key": "ca.key"}, "mismatch"),
        ({"cert": "client.pem", "key": "secret.key"}, "its key is encrypted"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else None,
)
def test_files_of_no_use_are_one_line(
    bad: Callable[[str], str], options: dict[str, str], words: str
) -> None:
    given = [f"--nats-{option}={bad(name)}" for option, name in options.items()]
    done = run_command(*STATUS, *given)
    assert_one_line_error(done, 3, words, given[0].partition("=")[2])


def test_all_commands_refuse_files_of_no_use(tmp_path: Path) -> None:
    absent = f"--nats-ca={tmp_path / 'absent'}"
    for arguments in (
        ("serve", "--port", "0", "--forward", "nats://127.0.0.1:4222", "--partitions", "1"),
        ("collect", "--partitions", "0", "--log-dir", str(tmp_path / "logs")),
        ("cluster", "init", "--partitions", "1"),
    ):
        done = run_command(*arguments, absent)
        assert_one_line_error(done, 3, "absent", "No such file or directory")
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_go_together_are_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for option in ("--nats-credentials", "--nats-ca", "--nats-cert", "--nats-key"):
        done = run_command("serve", "--port", "0", f"{option}={file}", cwd=tmp_path)
        assert_one_line_error(done, 2, option, "--forward")
    done = run_command(*STATUS, f"--nats-key={file}")
    assert_one_line_error(done, 2, "--nats-key needs --nats-cert")
    done = run_command(*STATUS, "--nats", f"user:secret@127.0.0.1:{reserve_port()}")
    assert_one_line_error(done, 2, "nats://HOST:PORT")
    assert "secret" not in done.stderr


def test_a_missing_library_for_credentials_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "nkeys.py").write_text("raise ModuleNotFoundError('there is none')\n")
    credentials = tmp_path / "user.creds"
    credentials.write_text(Operator().credentials())
    environment = {"PYTHONPATH": str(tmp_path)}
    done = run_command(*STATUS, f"--nats-credentials={credentials}", environment=environment)
    assert_one_line_error(done, 3, "nkeys", "pip install 'numbers-uring[cluster]'")


@pytest.mark.parametrize(
    ("user", "inbox"),
    [
        ("node:secret@", "_INBOX.node"),
        ("secret-token@", "_INBOX"),
        ("a.b:secret@", "_INBOX"),
        ("*:secret@", "_INBOX"),
        ("", "_INBOX"),
    ],
)
def test_answers_arrive_below_the_name_of_the_user(user: str, inbox: str) -> None:
    url = f"nats://{user}127.0.0.1:4222,nats://127.0.0.1:4223"
    assert client_for(url, BrokerAccess())[1]["inbox_prefix"] == inbox


def test_a_client_library_without_what_is_needed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for step in ("_connect_command", "_connect_to_server", "_process_info", "ssl_context"):
        with monkeypatch.context() as patch:
            patch.delattr(Client, step)
            with pytest.raises(StartError, match=f"no Client.{step}, which is needed"):
                client_for("nats://127.0.0.1:4222", BrokerAccess())
