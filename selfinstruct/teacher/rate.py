"""How fast an endpoint may be asked: requests in flight, buckets, and what its answers say.

Four things hold a request back, and the tightest decides:

- **concurrency**, adaptive: doubles per round trip from the start, then grows by one per round trip; a 429, a time-out, an overload or
  a reply slower than ``slow_after`` halves it (once per round trip, however many replies tell the same); where more requests in flight
  made fewer tokens per second, it goes back to the number that made most;
- **buckets** of requests and tokens per minute, where the recipe sets them;
- **headers** ``x-ratelimit-remaining-*`` and ``-reset-*``: what is left is spent, then the reset is waited for;
- **Retry-After**: nothing is sent to that endpoint before.

Time comes from a :class:`Clock`, so that a test never waits.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from selfinstruct.teacher.sections import RateSection

_PART = re.compile(r"([0-9.]+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WORSE, _FORGET, _LEAST_WINDOW = 0.9, 0.998, 16


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, as an argument.

    Attributes:
        now: seconds since any fixed moment.
        sleep: wait so many seconds.
        unix: seconds since 1970.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    unix: Callable[[], float] = time.time


def seconds(text: str) -> float | None:
    """A duration as rate-limit headers write it: ``6m0s``, ``120ms``, ``1.5`` (seconds); None for anything else."""
    try:
        return float(text)
    except ValueError:
        parts = _PART.findall(text)
        try:
            return (
                sum(float(number) * _SECONDS[unit] for number, unit in parts) if "".join(map("".join, parts)) == text else None
            )
        except ValueError:
            return None


@dataclass(slots=True)
class Bucket:
    """A leaky bucket: ``per_minute`` on the whole, a second's worth at once, and one taking may run into debt.

    In any minute no more leaves than ``per_minute``, that second's worth, and the last taking.
    """

    per_minute: float
    level: float = 0.0
    filled: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    @property
    def burst(self) -> float:
        return max(1.0, self.per_minute / 60.0)

    def delay(self, now: float) -> float:
        """Seconds until something may be taken."""
        self.level = min(self.burst, self.level + (now - self.filled) * self.per_minute / 60.0)
        self.filled = now
        return 0.0 if self.level >= 1e-9 else (1e-6 - self.level) * 60.0 / self.per_minute

    def take(self, amount: float) -> None:
        self.level -= amount


@dataclass(slots=True)
class _Allowance:
    """What the endpoint's headers leave, until a moment."""

    left: float = float("inf")
    until: float = 0.0

    def delay(self, need: float, now: float) -> float:
        return self.until - now if self.left < need and now < self.until else 0.0


@dataclass(frozen=True, slots=True)
class Departure:
    """When a request left, and how many were in flight then, itself included."""

    at: float
    load: int


@dataclass(slots=True)
class Gate:
    """Whether one endpoint may be asked now.

    Attributes:
        limit: requests that may be in flight (its whole part).
        in_flight: requests that are.
        cuts: how often the limit was lowered.
        hints: how often the endpoint's own words (headers, Retry-After) held requests back.
    """

    rate: RateSection
    clock: Clock = field(default_factory=Clock)
    limit: float = 0.0
    in_flight: int = 0
    cuts: int = 0
    hints: int = 0
    _requests: Bucket | None = None
    _tokens: Bucket | None = None
    _request_allowance: _Allowance = field(default_factory=_Allowance)
    _token_allowance: _Allowance = field(default_factory=_Allowance)
    _closed_until: float = float("-inf")
    _doubling: bool = True
    _last_cut: float = float("-inf")
    _held: bool = False  # the limit has held a request back since the last window of replies began
    _best: tuple[float, float] = (0.0, 0.0)  # tokens per second, and the number in flight that made them
    _size: int = _LEAST_WINDOW
    _window: tuple[int, int, float, int] = (0, 0, 0.0, 0)  # replies, tokens, seconds, loads

    def __post_init__(self) -> None:
        now = self.clock.now()
        self.limit = float(min(self.rate.start_concurrency, self.rate.max_concurrency))
        if self.rate.requests_per_minute is not None:
            self._requests = Bucket(self.rate.requests_per_minute, filled=now)
        if self.rate.tokens_per_minute is not None:
            self._tokens = Bucket(self.rate.tokens_per_minute, filled=now)

    def delay(self, tokens: int) -> float:
        """Seconds until a request of ``tokens`` may leave: 0 now; infinite if only a reply can make room."""
        if self.in_flight >= int(self.limit):
            self._held = True
            return float("inf")
        now = self.clock.now()
        waits = [self._closed_until - now, self._request_allowance.delay(1, now), self._token_allowance.delay(tokens, now)]
        waits += [bucket.delay(now) for bucket in (self._requests, self._tokens) if bucket is not None]
        return max(0.0, *waits)

    def enter(self, tokens: int) -> Departure:
        """A request of ``tokens`` leaves."""
        self.in_flight += 1
        self._request_allowance.left -= 1
        self._token_allowance.left -= tokens
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)
        return Departure(self.clock.now(), self.in_flight)

    def answered(self, left: Departure, tokens: int, headers: Mapping[str, str]) -> None:
        """A reply of ``tokens`` came."""
        took = self.clock.now() - left.at
        self.in_flight -= 1
        self.heed(headers)
        if took > self.rate.slow_after:
            self.cut(left)
        elif self._held:  # growing what is not used up would mean nothing
            self.limit = min(self.rate.max_concurrency, self.limit + (1.0 if self._doubling else 1.0 / self.limit))
        self._measure(took, tokens, left.load)

    def failed(self, left: Departure, *, overloaded: bool, retry_after: float | None, headers: Mapping[str, str]) -> None:
        """No reply came; ``overloaded`` if that says that too much was asked."""
        self.in_flight -= 1
        self.heed(headers)
        if retry_after is not None:
            self.hints += 1
            self._closed_until = max(self._closed_until, self.clock.now() + retry_after)
        if overloaded:
            self.cut(left)

    def cut(self, left: Departure) -> None:
        """Halve the limit; requests that left before the last cut say nothing about the limit since."""
        self._doubling = False
        if left.at >= self._last_cut:
            self.limit = max(1.0, self.limit / 2)
            self._last_cut = self.clock.now()
            self.cuts += 1

    def heed(self, headers: Mapping[str, str]) -> None:
        """Take over what the endpoint says is left."""
        for kind, allowance in (("requests", self._request_allowance), ("tokens", self._token_allowance)):
            try:
                left = float(headers[f"x-ratelimit-remaining-{kind}"])
            except (KeyError, ValueError):
                continue
            reset = seconds(headers.get(f"x-ratelimit-reset-{kind}", ""))
            if reset is not None and left >= 0:
                allowance.left, allowance.until = left, self.clock.now() + min(reset, 3600.0)
                self.hints += left < 1

    def _measure(self, took: float, tokens: int, load: int) -> None:
        """Compare tokens per second, a window of ``limit`` replies at a time, with the best so far.

        By Little's law: tokens per second of one request, times the number in flight. Counting replies per second of the clock
        would mistake a burst on the window's edge for speed.
        """
        replies, sum_, seconds_, loads = self._window
        replies, sum_, seconds_, loads = replies + 1, sum_ + max(1, tokens), seconds_ + took, loads + load
        if replies < self._size:
            self._window = (replies, sum_, seconds_, loads)
            return
        held, self._held, self._window = self._held, False, (0, 0, 0.0, 0)
        self._size = max(_LEAST_WINDOW, int(self.limit))  # of now: a window that grew with the limit would never end
        if not held or seconds_ <= 0:  # the rounds ran out of requests: says nothing about the endpoint
            return
        mean = loads / replies
        speed, (best, at) = sum_ / seconds_ * mean, self._best
        self._best = (best * _FORGET, at)
        if speed >= best:
            self._best = (speed, mean)
        elif speed < _WORSE * best and mean > 1.2 * at:
            self.limit, self._doubling = min(self.limit, max(1.0, at)), False
            self.cuts += 1
