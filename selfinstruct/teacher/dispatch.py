"""A round of requests at once, results in the order of the requests: a barrier.

Nothing that follows a round can depend on when a reply came, or on how many calls were under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, runtime_checkable

from selfinstruct.records import Completion, Failure, Request
from selfinstruct.teacher.counts import Counts, Progress
from selfinstruct.teacher.faults import BudgetReached, RequestFailed, Stopped
from selfinstruct.teacher.paying import LedgerTeacher

__all__ = [
    "BudgetReached",
    "Counts",
    "Failure",
    "LedgerTeacher",
    "ManyTeacher",
    "Progress",
    "Stopped",
    "Teacher",
    "complete_all",
]


class Teacher(Protocol):
    """Whoever answers. Raises :class:`RequestFailed` for this request alone, any other ``TeacherError`` for all."""

    async def complete(self, request: Request) -> Completion: ...


@runtime_checkable
class ManyTeacher(Protocol):
    """A teacher that takes a round at once (the Batch API)."""

    async def complete_many(self, requests: Sequence[Request]) -> list[Completion | Failure]: ...


async def complete_all(
    teacher: Teacher,
    requests: Sequence[Request],
    *,
    width: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    every: float = 0.2,
) -> list[Completion | Failure]:
    """All replies of a round, in the order of the requests: a barrier.

    Args:
        teacher: asked for each request; a :class:`ManyTeacher` for all at once.
        requests: of the round; equal ones are asked once.
        width: requests under way at once; None takes the teacher's ``width``, else 256.
        progress: called about every ``every`` seconds, and at the end, if the teacher has a ``progress`` of its own.

    Raises:
        VicugnaError: the first one that concerns all requests, once every call under way has ended and is written down.
    """
    if isinstance(teacher, ManyTeacher):
        return await teacher.complete_many(requests)
    results: list[Completion | Failure | None] = [None] * len(requests)
    trouble: list[BaseException] = []
    queue = iter(range(len(requests)))
    done = 0

    async def work() -> None:
        nonlocal done
        for at in queue:
            if trouble:
                return
            try:
                results[at] = await teacher.complete(requests[at])
            except RequestFailed as error:
                results[at] = error.failure
            except Exception as error:
                trouble.append(error)
                return
            done += 1

    count = min(len(requests), width or getattr(teacher, "width", 256))
    workers = [asyncio.ensure_future(work()) for _ in range(count)]
    async with _shown(teacher, lambda: (done, len(requests)), progress, every):
        try:
            await asyncio.gather(*workers)
        except BaseException:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            raise
    if trouble:
        # A budget that is reached says less than a fault that came with it.
        raise min(trouble, key=lambda error: isinstance(error, BudgetReached))
    return [result for result in results if result is not None]


@contextlib.asynccontextmanager
async def _shown(
    teacher: object, state: Callable[[], tuple[int, int]], callback: Callable[[Progress], None] | None, every: float
) -> AsyncIterator[None]:
    """Call back every so often while the block runs, and at its end, also when nothing moves."""
    of: Callable[[int, int], Progress] | None = getattr(teacher, "progress", None)
    if callback is None or of is None:
        yield
        return

    async def tick() -> None:
        while True:
            callback(of(*state()))
            await asyncio.sleep(every)

    ticking = asyncio.ensure_future(tick())
    try:
        yield
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        callback(of(*state()))
