"""A NATS server's operator, account and user as signed JWTs, which else the tool nsc makes."""

import base64
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

import nkeys  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True)
class Identity:
    """A name with a key pair of its own."""

    name: str
    prefix: int
    seed: bytes = field(default_factory=lambda: os.urandom(32), repr=False)

    @property
    def pair(self) -> Any:
        return nkeys.from_seed(bytearray(self.encoded_seed))

    @property
    def encoded_seed(self) -> bytes:
        return bytes(nkeys.encode_seed(self.seed, self.prefix))

    @property
    def public(self) -> str:
        return str(self.pair.public_key.decode())

    def sign(
        self, subject: "Identity", kind: str, *, lasts_s: int | None = None, **claims: object
    ) -> str:
        """Return a JWT in which this one says who `subject` is."""
        now_s = int(time.time())
        payload = {
            "jti": base64.b32encode(os.urandom(32)).decode().rstrip("="),
            "iat": now_s,
            **({} if lasts_s is None else {"exp": now_s + lasts_s}),
            "iss": self.public,
            "name": subject.name,
            "sub": subject.public,
            "nats": {"type": kind, "version": 2, **claims},
        }
        signed = ".".join(map(_part, ({"typ": "JWT", "alg": "ed25519-nkey"}, payload)))
        return f"{signed}.{_encoded(self.pair.sign(signed.encode()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _part(value: object) -> str:
    return _encoded(json.dumps(value).encode())


class Operator:
    """An operator with an account that may use JetStream, and its users."""

    def __init__(self) -> None:
        self._operator = Identity("operator", nkeys.PREFIX_BYTE_OPERATOR)
        self._system = Identity("system", nkeys.PREFIX_BYTE_ACCOUNT)
        self._account = Identity("numbers", nkeys.PREFIX_BYTE_ACCOUNT)

    def settings(self) -> str:
        """Return the NATS server's, with all accounts preloaded."""
        everything = dict.fromkeys(
            ("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1
        )
        storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        system = self._operator.sign(self._system, "account", limits=everything)
        limits = {**everything, **storage, "wildcards": True}
        account = self._operator.sign(self._account, "account", limits=limits)
        operator = self._operator.sign(self._operator, "operator")
        return (
            f'operator: "{operator}"\nsystem_account: "{self._system.public}"\n'
            "resolver: MEMORY\nresolver_preload: {\n"
            f'  {self._system.public}: "{system}"\n  {self._account.public}: "{account}"\n}}\n'
        )

    def credentials(self, lasts_s: int | None = None) -> str:
        """Return those of a new user, as nsc writes them."""
        user = Identity("cluster", nkeys.PREFIX_BYTE_USER)
        rights = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
        return (
            "-----BEGIN NATS USER JWT-----\n"
            f"{self._account.sign(user, 'user', lasts_s=lasts_s, **rights)}\n"
            "------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            "NKEY Seed printed below can be used to sign and prove identity.\n\n"
            "-----BEGIN USER NKEY SEED-----\n"
            f"{user.encoded_seed.decode()}\n"
            "------END USER NKEY SEED------\n\n"
            "*************************************************************\n"
        )
