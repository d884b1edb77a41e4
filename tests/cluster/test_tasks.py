"""Tasks that end: all of them, and what they have failed with is noticed."""

import asyncio
import gc
from typing import Any

from numbers_uring.cluster.tasks import end_tasks
from support.waiting import DEADLINE_S


def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    async def loses_the_first() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(loses_the_first())
        await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_S):
            assert await end_tasks(task) == []
        assert task.cancelled()

    asyncio.run(main())


def test_what_tasks_have_failed_with_is_returned_and_not_reported_by_asyncio() -> None:
    async def fail(text: str) -> None:
        raise OSError(text)

    async def main() -> tuple[list[str], list[dict[str, Any]]]:
        unnoticed: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unnoticed.append(context))
        tasks = [asyncio.create_task(fail(text)) for text in ("one", "two")]
        tasks.append(asyncio.create_task(asyncio.sleep(0)))
        await asyncio.wait(tasks)
        errors = [str(error) for error in await end_tasks(*tasks)]
        tasks.clear()
        gc.collect()
        return errors, unnoticed

    assert asyncio.run(main()) == (["one", "two"], [])
