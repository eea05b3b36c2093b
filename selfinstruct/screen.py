"""What a run shows while it goes: a few live lines on a terminal, a line every ten seconds elsewhere.

::

    rows   312 of 400 (78%)   round 5, tasks: 3 of 8 replies   about 2 min left
    yield  38.1% of 820 candidates; refused: novelty 140, length 12; not parsed 15
    teacher 41 in flight of 64, 3 wait for a rate, 2 to be asked again; 1,204,331 tokens; 1.23 of 5.00 USD
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from selfinstruct.store import TARGET, Run, Tally
from selfinstruct.teacher.counts import Progress

_EVERY = 10.0  # seconds between lines where there is no terminal


def yields(tally: Tally, rows: int) -> str:
    """The yield, and what was lost, most frequent first."""
    judged = tally.candidates - sum(count for (name, _), count in tally.refused.items() if name == TARGET)
    if not judged and not tally.unparsed:
        return "no candidates yet"
    by_filter: Counter[str] = Counter()
    for (name, _), count in tally.refused.items():
        if name != TARGET:
            by_filter[name] += count
    share = f"{rows / judged:.1%} of " if judged else ""
    parts = [f"{share}{judged:,} candidates"]
    if by_filter:
        parts.append("refused: " + ", ".join(f"{name} {count:,}" for name, count in by_filter.most_common()))
    if tally.unparsed:
        parts.append(f"not parsed {sum(tally.unparsed.values()):,}")
    if tally.failed:
        parts.append(f"no reply {sum(tally.failed.values()):,}")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


class Screen:
    """Watches a run. Use as a context manager.

    Args:
        console: where to show.
        target: rows wanted.
        currency: of the money.
        now: monotonic seconds.
    """

    def __init__(self, console: Console, target: int, currency: str, now: Callable[[], float] = time.monotonic) -> None:
        self._console, self._target, self._currency, self._now = console, target, currency, now
        self._run, self._stage = Run(), ""
        self._progress: Progress | None = None
        self._began: tuple[float, int] | None = None
        self._next = now() + _EVERY
        self._live = Live(console=console, refresh_per_second=5, transient=True) if console.is_terminal else None

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, run: Run, number: int, purpose: str, requests: int) -> None:
        self._run, self._progress = run, None
        self._stage = f"round {number}, {purpose.partition(':')[0]}: "
        self._began = self._began or (self._now(), len(run.rows))
        self._show()

    def round(self, run: Run) -> None:
        self._run = run
        self._show()

    def teacher(self, progress: Progress) -> None:
        """Callback of the dispatcher."""
        self._progress = progress
        self._show()

    def lines(self) -> list[str]:
        """The lines as they stand."""
        run, rows = self._run, len(self._run.rows)
        first = f"rows   {rows:,} of {self._target:,} ({rows / self._target:.0%})"
        if self._progress is not None:
            first += f"   {self._stage}{self._progress.done:,} of {self._progress.total:,} replies"
        if (left := self._left()) is not None:
            first += f"   about {duration(left)} left"
        out = [first, f"yield  {yields(run.tally, rows)}"]
        if (p := self._progress) is not None:
            cap = f" of {p.cap:,.2f}" if p.cap is not None else ""
            waits = f", {p.waiting:,} wait for a rate" if p.waiting else ""
            waits += f", {p.backing_off:,} to be asked again" if p.backing_off else ""
            waits += f"; {p.rate_waits:,} rate waits ({duration(p.rate_seconds)})" if p.rate_waits else ""
            money = f"; {p.money:,.2f}{cap} {self._currency}" if p.money or p.cap is not None else ""
            out.append(f"teacher {p.in_flight:,} in flight of {p.limit:,}{waits}; {p.tokens:,} tokens{money}")
        return out

    def _left(self) -> float | None:
        """Seconds to go at the pace of this process; None before it has one."""
        if self._began is None:
            return None
        spent, gained = self._now() - self._began[0], len(self._run.rows) - self._began[1]
        return spent / gained * (self._target - len(self._run.rows)) if gained > 0 and spent > 1 else None

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(Text("\n".join(self.lines()), overflow="ellipsis", no_wrap=True))
        elif (now := self._now()) >= self._next:
            self._next = now + _EVERY
            self._console.print(Text(" | ".join(self.lines())), soft_wrap=True)
