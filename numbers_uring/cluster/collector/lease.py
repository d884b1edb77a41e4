"""The lease of a partition: who collects it, said again and again, and known to all.

A lease keeps a second collector from starting. It does not fence: a process that is paused for
longer than the lease lasts, and wakes up in the middle of a write, finishes it.
"""

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numbers_uring.errors import StartError
from numbers_uring.limits import LEASE_REFRESH_S, LEASE_S

if TYPE_CHECKING:
    from nats.js.kv import KeyValue

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RUN = uuid.uuid4().hex


class LeaseLostError(Exception):
    """Another process may collect the partition; its text is the one line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a collector tells of a partition."""

    numbers: int = 0
    """All that are in the log, those of earlier runs included."""
    unique: int = 0
    duplicates: int = 0
    """Of this run, as is the one above."""
    per_s: float = 0.0
    """The recent rate."""


class Lease:
    """The lease of `partition` for the process that has locked its log, open as `log_fd`.

    `leases` forgets what is not said again for LEASE_S, `settings` keeps what it is told. `say`
    takes one line for the operator.
    """

    def __init__(
        self,
        partition: int,
        *,
        leases: "KeyValue",
        settings: "KeyValue",
        log_path: Path,
        log_identity: str,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._partition = partition
        self._leases = leases
        self._settings = settings
        self._log_identity = log_identity
        self._holder = {
            "collector": f"process {os.getpid()} on {socket.gethostname()}",
            "run": _RUN,
            "log": str(log_path),
            "log_identity": log_identity,
        }
        self._say = say
        self._clock = clock
        self._revision = 0
        self._refreshed_s: float | None = None
        self._told = Progress(), clock()
        self._recorded_numbers: int | None = None

    @property
    def fresh(self) -> bool:
        """Whether it can't have run out, and will not for the next moments."""
        age_s = self.age_s
        return age_s is not None and age_s < LEASE_S - LEASE_REFRESH_S

    @property
    def age_s(self) -> float | None:
        """How long ago it was said last; None before that. From any thread."""
        refreshed_s = self._refreshed_s
        return None if refreshed_s is None else self._clock() - refreshed_s

    async def take(self) -> int:
        """Take it; return how many numbers its last collector said the log has.

        A process that holds the lock of the very same log follows its predecessor, which must be
        dead, at once. Raises StartError where another process has the lease.
        """
        from nats.js.errors import KeyWrongLastSequenceError  # noqa: PLC0415

        value, began_s = self._value(Progress()), self._clock()
        try:
            self._revision = await self._leases.create(str(self._partition), value)
        except KeyWrongLastSequenceError:
            holder, revision = await self._held()
            if holder is not None and holder.get("log_identity") != self._log_identity:
                raise StartError(
                    f"partition {self._partition} is collected by {holder.get('collector')}, "
                    f"with the log {holder.get('log')}; it is free {LEASE_S:g} s after its end"
                ) from None
            try:
                self._revision = await self._leases.update(
                    str(self._partition), value, last=revision
                )
            except KeyWrongLastSequenceError as error:
                raise StartError(
                    f"partition {self._partition} was taken by another collector just now"
                ) from error
        self._refreshed_s = began_s
        return int((await self._record()).get("numbers", 0))

    async def record(self, progress: Progress) -> None:
        """Have it known, for as long as there is a cluster, how far the log is.

        Once the log was read, that is; each refresh does the same from then on.
        """
        if progress.numbers != self._recorded_numbers:
            value = {"run": _RUN, "numbers": progress.numbers}
            await self._settings.put(self._key, json.dumps(value).encode())
            self._recorded_numbers = progress.numbers

    async def refresh(self, progress: Progress) -> None:
        """Renew the lease. Raises LeaseLostError, and what the NATS client raises.

        A lease that ran out while the NATS server was away, and that no one has had since, is taken
        anew. Replicas without a leader lose what they are sent, so there is a TimeoutError
        as soon as it is time to say it again.
        """
        began_s = self._clock()
        async with asyncio.timeout(LEASE_REFRESH_S):
            await self._update(self._value(self._with_rate(progress, began_s)))
            self._refreshed_s = began_s
            if self._recorded_numbers is not None:
                await self.record(progress)

    async def _update(self, value: bytes) -> None:
        from nats.js.errors import KeyWrongLastSequenceError  # noqa: PLC0415

        try:
            self._revision = await self._leases.update(
                str(self._partition), value, last=self._revision
            )
        except KeyWrongLastSequenceError:
            await self._reclaim(value)

    async def _reclaim(self, value: bytes) -> None:
        from nats.js.errors import KeyWrongLastSequenceError  # noqa: PLC0415

        holder, revision = await self._held()
        if holder is not None and holder.get("run") == _RUN:
            # An update that was not answered in time has been made all the same.
            self._revision = revision
            return
        if holder is None and (await self._record()).get("run") == _RUN:
            try:
                self._revision = await self._leases.create(str(self._partition), value)
            except KeyWrongLastSequenceError:
                holder, _ = await self._held()
            else:
                self._say(
                    f"the lease of partition {self._partition} had expired, and no other collector "
                    "took it: continuing"
                )
                return
        raise LeaseLostError(
            f"partition {self._partition} is collected by "
            f"{'another collector' if holder is None else holder.get('collector')} now: "
            "what this collector has acknowledged is on file, and it stops"
        )

    async def release(self) -> None:
        """Give it up at once, unless another process has it."""
        from nats.js.errors import KeyWrongLastSequenceError  # noqa: PLC0415

        with suppress(KeyWrongLastSequenceError):
            await self._leases.delete(str(self._partition), last=self._revision)

    @property
    def _key(self) -> str:
        return f"log.{self._partition}"

    def _value(self, progress: Progress) -> bytes:
        return json.dumps({**self._holder, **asdict(progress)}).encode()

    def _with_rate(self, progress: Progress, now_s: float) -> Progress:
        before, before_s = self._told
        self._told = progress, now_s
        came = progress.unique + progress.duplicates - before.unique - before.duplicates
        return replace(progress, per_s=round(came / max(now_s - before_s, 1e-3), 1))

    async def _held(self) -> tuple[dict[str, Any] | None, int]:
        return await read_object(self._leases, str(self._partition))

    async def _record(self) -> dict[str, Any]:
        return (await read_object(self._settings, self._key))[0] or {}


async def read_object(bucket: "KeyValue", key: str) -> tuple[dict[str, Any] | None, int]:
    """Return the JSON object of the key, and its revision; None and 0 where there is none."""
    from nats.js.errors import KeyNotFoundError  # noqa: PLC0415

    try:
        entry = await bucket.get(key)
    except KeyNotFoundError:
        return None, 0
    try:
        value = json.loads(entry.value or b"")
    except ValueError:
        value = {}
    return value if isinstance(value, dict) else {}, entry.revision or 0


def log_identity(path: Path) -> str:
    """Return what no other file has, on this host since it was booted, or on any other.

    Raises StartError where the boot can't be told from others, as where /proc is hidden.
    """
    try:
        boot_id = _BOOT_ID.read_text().strip()
    except OSError as error:
        raise StartError(f"cannot read {_BOOT_ID}: {error.strerror}") from error
    state = path.stat()
    return f"{boot_id}:{state.st_dev}:{state.st_ino}"
