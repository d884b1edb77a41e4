"""NATS servers with deploy/nats.conf, of which only paths, addresses and names are replaced."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from numbers_uring.config import BrokerAccess
from ports import reserve_port
from support.broker import Broker
from support.certificates import Certificates

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nats.conf"
_CLUSTER = re.compile(r"\n(#[^\n]*\n)*cluster \{\n.*?\n\}\n", re.DOTALL)


def password(user: str) -> str:
    return f"secret-{user}"


def url_of(broker: Broker, user: str) -> str:
    return f"tls://{user}:{password(user)}@127.0.0.1:{broker.port}"


def route(port: int, secret: str = password("route")) -> str:
    return f"nats-route://route:{secret}@127.0.0.1:{port}"


def _shipped(
    folder: Path, certificates: Certificates, routes: tuple[int, ...], member: int
) -> Broker:
    """Return a member of the group, or one alone: that is without the block for routes."""
    broker = Broker(folder, routes=routes, member=member)
    replaced = {
        'server_name: "nats-0"': f'server_name: "{broker.name}"',
        "0.0.0.0:4222": f"127.0.0.1:{broker.port}",
        "/var/lib/nats": str(folder / "store"),
        "/etc/nats": str(certificates.path("ca.pem").parent),
    }
    text = EXAMPLE.read_text()
    if routes:
        replaced["0.0.0.0:6222"] = f"127.0.0.1:{routes[member]}"
    else:
        text, blocks = _CLUSTER.subn("\n", text)
        assert blocks == 1
    for there, here in replaced.items():
        assert there in text
        text = text.replace(there, here)
    broker.config.write_text(text)
    broker.access = BrokerAccess(
        ca=certificates.path("ca.pem"), certificate=certificates.path("both.pem")
    )
    broker.url = url_of(broker, "admin")
    return broker


@contextmanager
def shipped_brokers(
    folder: Path, certificates: Certificates, count: int, *, settings: str = ""
) -> Iterator[list[Broker]]:
    """Run one server, or a group of three, with more settings."""
    routes = tuple(reserve_port() for _ in range(count if count > 1 else 0))
    environment = {
        f"NUMBERS_{user.upper()}_PASSWORD": password(user)
        for user in ("admin", "node", "collector", "route")
    } | {"NUMBERS_ROUTES": json.dumps([route(port) for port in routes])}
    with ExitStack() as running:
        running.enter_context(mock.patch.dict(os.environ, environment))
        brokers = [
            _shipped(folder / f"server-{member}", certificates, routes, member)
            for member in range(count)
        ]
        for broker in brokers:
            with broker.config.open("a") as config:
                config.write(settings)
            running.enter_context(broker)
        for broker in brokers:
            broker.wait_ready()
        yield brokers
