"""What the parts of the fuzzer share: a law that does not hold, the clock, and the search for a smaller input that still breaks it."""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

LONGEST = 2.0
"""Seconds of processor time that one input may take."""
_GIVE_UP = 20  # seconds after which it is stopped
_TRIES, _PATIENCE = 4_000, 20.0  # for making a failing input smaller


class Broken(Exception):
    """A law that an input breaks.

    Attributes:
        law: the same words for the same law.
    """

    def __init__(self, law: str) -> None:
        self.law = law
        super().__init__(law)


class Stopped(BaseException):
    """Took far too long."""


class Part(Protocol):
    """A part of the way of the data under fuzz."""

    name: str

    def draw(self, dice: random.Random) -> Any:
        """An input: plain data."""

    def check(self, made: Any, counts: Counter[str]) -> None:
        """Put it through, count what becomes of it; raises :class:`Broken`, or whatever escapes."""


def require(condition: bool, law: str) -> None:
    """Raise :class:`Broken` unless the condition holds."""
    if not condition:
        raise Broken(law)


def failure(part: Part, made: Any, counts: Counter[str]) -> tuple[str | None, float]:
    """What goes wrong with an input, in words that are the same for the same fault, and the processor time it took."""
    begin = time.process_time()
    found: str | None = None
    signal.setitimer(signal.ITIMER_REAL, _GIVE_UP)
    try:
        part.check(made, counts)
    except Broken as error:
        found = f"law broken: {error.law}"
    except Stopped:
        found = "slow"
    except Exception as error:  # anything at all: that is what is looked for
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "fuzz" not in Path(frame.filename).name]
        ours = [frame for frame in frames if "site-packages" not in frame.filename] or frames
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "here"
        found = f"{type(error).__name__} escapes from {place}: {str(error)[:100]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken = time.process_time() - begin
    return ("slow" if found is None and taken > LONGEST else found), taken


def alike(one: str | None, other: str | None) -> bool:
    """Whether two failures are the same but for what the message quotes."""
    return one is not None and other is not None and one.split(":")[:2] == other.split(":")[:2]


def watch() -> None:
    """Let the alarm stop an input."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    signal.signal(signal.SIGALRM, stop)


def smallest(part: Part, made: Any, wrong: str) -> Any:
    """An input that fails the same way and has nothing more that could be left out, as far as patience goes."""
    tries, end = 0, time.monotonic() + _PATIENCE
    improved = True
    while improved:
        improved = False
        for smaller in _smaller(made):
            tries += 1
            if tries > _TRIES or time.monotonic() > end:
                return made
            if alike(failure(part, smaller, Counter())[0], wrong):
                made, improved = smaller, True
                break
    return made


def _smaller(made: Any) -> Iterator[Any]:
    """Values like this one with something left out, what leaves out most first."""
    if isinstance(made, (str, bytes)):
        size = len(made)
        step = (size + 1) // 2
        while step:
            for at in range(0, size, step):
                yield made[:at] + made[at + step :]
            step //= 2
        return
    if isinstance(made, (list, tuple)):
        kind: Callable[[list[Any]], Any] = type(made)
        items = list(made)
        for at in range(len(items)):
            yield kind(items[:at] + items[at + 1 :])
        for at, item in enumerate(items):
            for one in _smaller(item):
                yield kind([*items[:at], one, *items[at + 1 :]])
    elif isinstance(made, dict):
        for key in made:
            yield {name: item for name, item in made.items() if name != key}
        for key, item in made.items():
            for one in _smaller(item):
                yield {**made, key: one}
