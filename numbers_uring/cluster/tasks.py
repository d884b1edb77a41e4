"""Tasks of an event loop: some of many at a time, and cancelled until they have ended."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from numbers_uring.errors import StopRequestedError
from numbers_uring.limits import CANCEL_AGAIN_S, STREAM_REQUESTS_MAX

T = TypeVar("T")
U = TypeVar("U")


async def each_of(these: Iterable[U], ask: Callable[[U], Awaitable[T]]) -> list[T]:
    """Await it of each of these, some at a time, and return the answers in order.

    Raises the first error, and ends the others.
    """
    free = asyncio.Semaphore(STREAM_REQUESTS_MAX)

    async def one(this: U) -> T:
        async with free:
            return await ask(this)

    tasks = [asyncio.ensure_future(one(this)) for this in these]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T:
    """Await what may take long. Raises StopRequestedError where `stop` is set first."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise StopRequestedError
        return task.result()
    finally:
        await end_tasks(task, stopped)


async def end_tasks(*tasks: "asyncio.Task[Any]") -> list[BaseException]:
    """Cancel tasks and wait until they have ended; return what they have failed with.

    Up to Python 3.11 asyncio.wait_for loses a cancellation that comes together with what it waits
    for. So a task that goes on is cancelled again every CANCEL_AGAIN_S.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
    errors = (None if task.cancelled() else task.exception() for task in tasks)
    return [error for error in errors if error is not None]
