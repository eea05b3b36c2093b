"""What happened and what is happening: counts for the report, progress for the screen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Counts:
    """What happened, for the report. ``attempts`` = replies + every fault."""

    ledger_hits: int = 0
    attempts: int = 0
    replies: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Code -> attempts that ended so, whatever was done about it."""
    actions: Counter[str] = field(default_factory=Counter)
    """Action (wait, retry, shorten, rename, plain, give_up, stop) -> how often taken."""
    failures: Counter[str] = field(default_factory=Counter)
    """Code -> requests given up."""
    usage_estimated: int = 0
    schema_dropped: int = 0
    backoff_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in plain.items()}


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a round, for the screen.

    Attributes:
        done, total: requests of the round.
        in_flight: calls under way; ``waiting``: requests that wait for a rate; ``backing_off``: that wait to be asked again.
        tokens: prompts and replies of this run directory.
        money, cap: spent, and the cap (None for none), in the currency of the prices.
        rate_waits: how often, and ``rate_seconds`` how long, the queue waited for a rate limit.
        retries: attempts beyond the first, this process.
        limit: calls that may be in flight now.
    """

    done: int
    total: int
    in_flight: int
    waiting: int
    backing_off: int
    tokens: int
    money: float
    cap: float | None
    rate_waits: int
    rate_seconds: float
    retries: int
    limit: int
