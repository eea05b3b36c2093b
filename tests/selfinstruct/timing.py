"""Time for tests: a clock that sleeping moves, and an event loop whose time jumps to its next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from selfinstruct.teacher.rate import Clock

T = TypeVar("T")


class Moved:
    """A clock whose sleeps take no time: each moves it forward. For tests over real sockets.

    Attributes:
        slept: every sleep asked for, in seconds.
    """

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []
        self.clock = Clock(now=lambda: self.time, sleep=self.sleep, unix=lambda: 1.7e9 + self.time)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: where the loop would wait, its time moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.time += timeout
        return super().select(0)


def virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time: seconds of ``asyncio.sleep`` cost none. Without sockets only."""
    selector = _Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.time  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def loop_clock() -> Clock:
    """The running loop's time."""
    loop = asyncio.get_running_loop()
    return Clock(now=loop.time, sleep=asyncio.sleep, unix=loop.time)
