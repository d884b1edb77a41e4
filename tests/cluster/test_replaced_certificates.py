"""Certificates that are replaced on disk while a connection is open, or wrong for a while."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from numbers_uring.cluster.connection import connected
from numbers_uring.config import BrokerAccess
from support.broker import Broker
from support.certificates import Certificates
from support.waiting import DEADLINE_S


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    certificates = Certificates(tmp_path / "certificates")
    certificates.sign("others", ca="other-ca", use="clientAuth")
    certificates.sign("other-server", ca="other-ca", use="serverAuth")
    certificates.sign("expired", ca="other-ca", use="clientAuth", days=-1)
    return certificates


class Ours:
    """The files that a connection is made with; each can be replaced by another one."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        folder.mkdir()
        self._certificates = certificates
        self.access = BrokerAccess(
            ca=folder / "ca.pem", certificate=folder / "our.pem", key=folder / "our.key"
        )
        self.replace("ca.pem", "ca.pem")
        self.replace("our.pem", "client.pem")
        self.replace("our.key", "client.key")

    def replace(self, name: str, by: str, *, half: bool = False) -> None:
        assert self.access.ca is not None
        data = self._certificates.path(by).read_bytes()
        self.access.ca.with_name(name).write_bytes(data[: len(data) // 2] if half else data)


@pytest.fixture
def ours(tmp_path: Path, certificates: Certificates) -> Ours:
    return Ours(tmp_path / "ours", certificates)


@pytest.fixture
def broker(tmp_path: Path, certificates: Certificates, ours: Ours) -> Iterator[Broker]:
    """A NATS server that encrypts, at once if it is asked to, and wants to see a certificate."""
    path = certificates.path
    folder = path("theirs.pem").parent
    tls = (
        f'cert_file: "{folder}/theirs.pem", key_file: "{folder}/theirs.key"\n'
        f'  ca_file: "{folder}/their-ca.pem", verify: true, handshake_first: auto'
    )
    broker = Broker(tmp_path / "broker", settings=f"tls {{ {tls} }}\n")
    use(certificates, "server", ca="ca")
    broker.url = f"tls://127.0.0.1:{broker.port}"
    broker.access = ours.access
    with broker:
        yield broker


def use(certificates: Certificates, name: str, *, ca: str) -> None:
    """Let the NATS server have these at its next start."""
    shutil.copy(certificates.path(f"{name}.pem"), certificates.path("theirs.pem"))
    shutil.copy(certificates.path(f"{name}.key"), certificates.path("theirs.key"))
    shutil.copy(certificates.path(f"{ca}.pem"), certificates.path("their-ca.pem"))


class Said:
    """The lines for the operator."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._new = asyncio.Event()

    def __call__(self, text: str) -> None:
        self.lines.append(text)
        self._new.set()

    async def wait_for(self, words: str) -> None:
        """Wait for a line with them; it and those before it are then forgotten."""
        async with asyncio.timeout(DEADLINE_S):
            while not any(words in line for line in self.lines):
                self._new.clear()
                await self._new.wait()
        place = next(i for i, line in enumerate(self.lines) if words in line)
        del self.lines[: place + 1]


def test_certificates_that_were_replaced_are_used_at_the_next_connection(
    broker: Broker,
    certificates: Certificates,
    ours: Ours,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("numbers_uring.cluster.client.BROKER_RECONNECT_S", 0.05)

    async def session() -> None:
        said = Said()
        async with connected(broker.url, "tests", access=ours.access, say=said) as client:
            broker.kill()
            await said.wait_for("lost the connection")
            # One of a node, which has taken the place of a NATS server.
            use(certificates, "client", ca="ca")
            broker.start_only()
            await said.wait_for("unsuitable certificate purpose")
            broker.kill()
            # All of the NATS server's are signed by another CA now.
            use(certificates, "other-server", ca="other-ca")
            broker.start_only()
            await said.wait_for("certificate verify failed")
            ours.replace("ca.pem", "other-ca.pem", half=True)
            await said.wait_for(f"cannot use the certificates of the CA {ours.access.ca}: ")
            ours.replace("ca.pem", "other-ca.pem")
            await said.wait_for("unknown ca")
            ours.replace("our.pem", "others.pem", half=True)
            await said.wait_for(f"cannot use the certificate {ours.access.certificate} with")
            ours.replace("our.pem", "others.pem")
            await said.wait_for("key values mismatch")
            ours.replace("our.key", "expired.key")
            ours.replace("our.pem", "expired.pem")
            await said.wait_for("certificate expired")
            ours.replace("our.key", "others.key")
            ours.replace("our.pem", "others.pem")
            await said.wait_for("reconnected to")
            await client.flush()

    asyncio.run(session())
