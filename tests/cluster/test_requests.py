"""Questions to a NATS server that are asked again and again until one is answered."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from numbers_uring.cluster import answers
from numbers_uring.cluster.connection import connected, jetstream
from support.broker import Broker


def test_questions_that_fail_at_the_same_moment_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BROKER_ASK_AGAIN_S", 0.05)

    async def session(broker: Broker) -> list[dict[str, Any]]:
        unnoticed: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unnoticed.append(context))
        async with connected(broker.url, "tests", access=broker.access) as client:
            js = jetstream(client)
            await js.account_info()
            broker.suspend()
            with pytest.raises(TimeoutError):
                await client.request("$JS.API.INFO", b"", 0.5)
            gc.collect()
            broker.resume()
        return unnoticed

    with Broker(tmp_path / "broker") as broker:
        assert asyncio.run(session(broker)) == []
