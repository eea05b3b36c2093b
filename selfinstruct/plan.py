"""What a recipe will take before it takes it: calls, tokens, money, hours, and the yield of each filter.

Measured on a pilot of a few calls, or on the replies that a ledger already holds; nothing is guessed from the recipe alone. A pilot's
replies go into the run's own ledger: the run that follows does not pay for them again.

Two estimates of the calls: the *least*, if the yield stays as it is; and the *fallen*, if it goes on falling as it fell between the first
half of the calls and all of them. New instructions collide with old ones more often as the pool grows: rows ~ calls^b (Heaps' law),
b = log2(rows of all / rows of the first half).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfinstruct.desk import Meter
from selfinstruct.screen import duration
from selfinstruct.store import TARGET, Run
from sft.errors import InputError

_LEAST_EXPONENT = 0.5
_FEWEST_CALLS = 8
"""Below this many calls the halves say nothing."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What N rows take. ``hours`` is None where no time was measured, ``money`` where no price is known."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None
    hours: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, and what it was measured on.

    Attributes:
        source: ``pilot`` or ``ledger``.
        first_calls: requests of the first stage that were answered; ``calls`` by purpose.
        candidates, rows: parsed and accepted.
        refused: filter -> candidates; ``unparsed``: reason -> pieces.
        exponent: b above; None with too few calls.
        least, fallen: the estimates.
    """

    source: str
    target: int
    first_calls: int
    calls: dict[str, int]
    candidates: int
    rows: int
    refused: dict[str, int]
    unparsed: dict[str, int]
    exponent: float | None
    least: Estimate
    fallen: Estimate | None
    cap: float | None
    currency: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pace:
    """What bounds the hours.

    Attributes:
        seconds: of the pilot's slowest barrier, about the time of one reply.
        concurrency: most calls in flight over all endpoints.
        requests_per_round: of the first stage.
        requests_per_minute, tokens_per_minute: over all endpoints; None for no limit.
    """

    seconds: float
    concurrency: int
    requests_per_round: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def hours(self, first_calls: float, calls: float, tokens: float) -> float:
        """The slowest of: barriers, places in flight, requests per minute, tokens per minute."""
        rounds = math.ceil(first_calls / self.requests_per_round)
        waves = max(rounds, calls / self.concurrency)
        minutes = [waves * self.seconds / 60]
        minutes += [calls / self.requests_per_minute] if self.requests_per_minute else []
        minutes += [tokens / self.tokens_per_minute] if self.tokens_per_minute else []
        return max(minutes) / 60


def make_plan(
    run: Run,
    meter: Meter,
    target: int,
    *,
    first: str,
    source: str,
    order: Sequence[str],
    price: tuple[float, float] | None = None,
    pace: Pace | None = None,
    cap: float | None = None,
    currency: str = "",
) -> Plan:
    """Extrapolate from a played run to ``target`` rows.

    Args:
        run: played on the pilot or the ledger.
        meter: of its replies.
        first: purpose of the first stage.
        order: names of the filters.
        price: money per prompt and per completion token; None takes what the replies did cost, if anything.

    Raises:
        InputError: nothing was accepted: there is no yield to extrapolate.
    """
    asked, rows = meter.calls[first], len(run.rows)  # not the tally's: that counts what a ledger does not hold, too
    if not asked or not rows:
        raise InputError(_no_yield(run, asked))
    exponent = _exponent(run) if asked >= _FEWEST_CALLS else None
    rate = _Rate(asked, meter, price, pace)
    refused = _refused(run, order)
    surplus = refused.pop(TARGET, 0)
    return Plan(
        source=source,
        target=target,
        first_calls=asked,
        calls=dict(meter.calls),
        candidates=run.tally.candidates - surplus,
        rows=rows,
        refused=refused,
        unparsed=dict(run.tally.unparsed.most_common()),
        exponent=exponent,
        least=rate.estimate(asked * target / rows),
        fallen=rate.estimate(asked * (target / rows) ** (1 / exponent)) if exponent is not None and target > rows else None,
        cap=cap,
        currency=currency,
    )


@dataclass(frozen=True, slots=True)
class _Rate:
    """What was measured, per request of the first stage."""

    asked: int
    meter: Meter
    price: tuple[float, float] | None
    pace: Pace | None

    def estimate(self, first_calls: float) -> Estimate:
        """For so many requests of the first stage, and what follows from them."""
        m, times = self.meter, first_calls / self.asked
        calls, tokens = sum(m.calls.values()) * times, (m.prompt_tokens + m.completion_tokens) * times
        money = self.price[0] * m.prompt_tokens + self.price[1] * m.completion_tokens if self.price else m.money or None
        return Estimate(
            math.ceil(calls),
            math.ceil(m.prompt_tokens * times),
            math.ceil(m.completion_tokens * times),
            None if money is None else money * times,
            self.pace.hours(first_calls, calls, tokens) if self.pace is not None else None,
        )


def _no_yield(run: Run, asked: int) -> str:
    reasons = ", ".join(f"{name}: {reason} ({n})" for (name, reason), n in run.tally.refused.most_common(3))
    said = f"{asked} calls gave {run.tally.candidates} candidates and {len(run.rows)} rows: there is no yield to plan with"
    return said + (f"; most often refused by {reasons}" if reasons else "")


def _refused(run: Run, order: Sequence[str]) -> dict[str, int]:
    """Filter -> candidates that it refused, in the order of the filters."""
    found = dict.fromkeys(order, 0)
    for (name, _), count in run.tally.refused.items():
        found[name] = found.get(name, 0) + count
    return found


def _exponent(run: Run) -> float | None:
    """b of rows ~ calls^b, from the rows of the first half of the calls and of all; None if the first half gave none."""
    calls = sorted({(c.round, int(c.id.split("-")[1])) for c in run.candidates})
    half = set(calls[: len(calls) // 2])
    early = sum((c.round, int(c.id.split("-")[1])) in half for c in run.candidates)
    if not early:
        return None
    grown = math.log(len(run.candidates) / early) / math.log(len(calls) / len(half))
    return min(1.0, max(_LEAST_EXPONENT, grown))


def print_plan(console: Console, plan: Plan) -> None:
    """Show it as tables and equations."""
    each = plan.rows / plan.first_calls
    what = "a pilot of" if plan.source == "pilot" else "the ledger's"
    console.print(
        f"measured on {what} {plan.first_calls:,} calls: {plan.candidates:,} candidates, {plan.rows:,} rows, {each:.2f} rows per call"
    )
    table = Table("filter", box=None)
    table.add_column("refused", justify="right")
    table.add_column("of those that reached it", justify="right")
    left = plan.candidates
    pieces = sum(plan.unparsed.values())
    table.add_row("(not parsed)", f"{pieces:,}", f"{pieces / (left + pieces):.1%}" if pieces else "")
    for name, count in plan.refused.items():
        table.add_row(Text(name), f"{count:,}", f"{count / left:.1%}")
        left -= count
    console.print(table)
    table = Table(f"for {plan.target:,} rows", "calls", "prompt tokens", "reply tokens", "money", "time", box=None)
    for name, found in (("yield stays", plan.least), ("yield falls on", plan.fallen)):
        if found is not None:
            money = "no price" if found.money is None else f"{found.money:,.2f} {plan.currency}"
            time = "?" if found.hours is None else duration(found.hours * 3600)
            table.add_row(name, f"{found.calls:,}", f"{found.prompt_tokens:,}", f"{found.completion_tokens:,}", money, time)
    console.print(table)
    if plan.exponent is not None:
        console.print(f"rows ~ calls^{plan.exponent:.2f} within what was measured")
    worst = plan.fallen or plan.least
    if plan.cap is not None and worst.money is not None and worst.money > plan.cap:
        console.print(
            f"budget.max_money = {plan.cap:,.2f} {plan.currency} may not be enough: the run then stops there, and can be gone on with"
        )
