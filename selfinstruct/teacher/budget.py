"""A cap that concurrency cannot overshoot: reserve the most that a call can cost, ask, settle what it did cost.

::

    spent + reserved ≤ cap, always
    reserve(request)  reserved += most(request)        waits while other reservations may yet come back; refuses if none is left
    settle(usage)     reserved -= most; spent += cost  never more than was reserved
    forfeit()         reserved -= most; spent += most  the call was lost, and the endpoint may have charged for it
    release()         reserved -= most                 the call was refused: nothing was charged

Money is counted in whole units of 1e-12 of the currency, so sums are exact and do not depend on their order.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from selfinstruct.records import Request, Usage
from selfinstruct.teacher.faults import BudgetReached
from selfinstruct.teacher.sections import BudgetSection, EndpointSection, PriceSection
from sft.errors import InputError

log = logging.getLogger(__name__)

UNIT = 1_000_000_000_000
"""Units of money per unit of currency."""

PRICES_DATED = "2026-06"
PRICES: dict[str, PriceSection] = {
    name: PriceSection(input=input_, output=output)
    for name, input_, output in (
        ("gpt-3.5-turbo", 0.50, 1.50),
        ("gpt-4o", 2.50, 10.00),
        ("gpt-4o-mini", 0.15, 0.60),
        ("gpt-4.1", 2.00, 8.00),
        ("gpt-4.1-mini", 0.40, 1.60),
        ("gpt-4.1-nano", 0.10, 0.40),
        ("gpt-5", 1.25, 10.00),
        ("gpt-5-mini", 0.25, 2.00),
        ("gpt-5-nano", 0.05, 0.40),
    )
}
"""US dollars per million tokens at api.openai.com, as published around ``PRICES_DATED``. ``budget.prices`` comes first."""

_OF_TABLE = "api.openai.com"


@dataclass(frozen=True, slots=True)
class Price:
    """Units of money per token; ``known`` is False where nobody said what the model costs."""

    input: int
    output: int
    known: bool = True

    @staticmethod
    def of(section: PriceSection, factor: float = 1.0) -> Price:
        per = UNIT / 1_000_000 * factor
        return Price(math.ceil(round(section.input * per, 3)), math.ceil(round(section.output * per, 3)))

    def cost(self, usage: Usage) -> int:
        """Units of money for ``usage``."""
        return self.input * usage.prompt_tokens + self.output * usage.completion_tokens


def dearest(prices: Iterable[Price]) -> Price:
    """A price that none of ``prices`` exceeds, for prompts or for completions; unknown if one of them is."""
    listed = list(prices)
    return Price(max(p.input for p in listed), max(p.output for p in listed), all(p.known for p in listed))


def price_of(model: str, endpoint: EndpointSection, budget: BudgetSection, *, factor: float = 1.0) -> Price:
    """The endpoint's price, else the recipe's, else the dated table's (for its own host and in US dollars only), else unknown."""
    section = endpoint.price or budget.prices.get(model)
    if section is None and f"//{_OF_TABLE}/" in f"{endpoint.base_url}/" and budget.currency == "USD":
        section = PRICES.get(endpoint.model or model)
        if section is not None:
            log.info("prices of %s are those of %s; write budget.prices to state yours", model, PRICES_DATED)
    return Price.of(section, factor) if section is not None else Price(0, 0, known=False)


def refuse_unknown_prices(model: str, endpoints: Iterable[EndpointSection], budget: BudgetSection) -> None:
    """A cap on money needs prices.

    Raises:
        InputError: ``budget.max_money`` is set, and an endpoint's price is not known.
    """
    for endpoint in endpoints:
        if budget.max_money is not None and not price_of(model, endpoint, budget).known:
            raise InputError(
                f"budget.max_money: the price of {model!r} at {endpoint.label} is not known, so the cap could not be kept; "
                f"write budget.prices.{model}: {{input: ..., output: ...}} (money per million tokens), or 0 and 0 for your own server"
            )


def most_prompt_tokens(request: Request) -> int:
    """No fewer tokens than any byte-level tokenizer makes of the prompt: one per UTF-8 byte, and the frame of each message."""
    text = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in request.messages)
    return text + len((request.schema or "").encode()) + 16 * len(request.messages) + 32


def estimate(text: str) -> int:
    """Tokens of a text, roughly: four ASCII characters each, other characters one each."""
    wide = sum(1 for character in text if ord(character) > 127) if not text.isascii() else 0
    return wide + (len(text) - wide + 3) // 4


@dataclass(slots=True, eq=False)
class Reservation:
    """The most that one call can cost; settled, forfeited or released exactly once."""

    money: int
    tokens: int
    open: bool = True


@dataclass(slots=True)
class Spent:
    """Of this run directory, replies of earlier processes included. ``lost_*``: calls without reply that may have been charged."""

    money: int = 0
    tokens: int = 0
    requests: int = 0
    lost_money: int = 0
    lost_tokens: int = 0
    lost_requests: int = 0


@dataclass(slots=True)
class Budget:
    """The caps, and what is left of them. One per run; used by one event loop.

    Args:
        max_money: cap in the currency of the prices; None for none.
        max_tokens: cap over prompts and replies.
        max_requests: cap on calls that were, or may have been, charged.
        prices: model -> price, the dearest of the endpoints. A model without one is refused only under ``max_money``.
    """

    max_money: float | None = None
    max_tokens: int | None = None
    max_requests: int | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    _reserved: Spent = field(default_factory=Spent)
    _changed: asyncio.Event | None = None

    def price(self, model: str) -> Price:
        return self.prices.get(model, Price(0, 0, known=False))

    def most(self, request: Request) -> Reservation:
        """The most that ``request`` can cost."""
        price = self.price(request.model)
        if self.max_money is not None and not price.known:
            raise InputError(f"budget.prices: the price of {request.model!r} is not known; a cap on money needs it")
        usage = Usage(most_prompt_tokens(request), request.sampling.max_tokens)
        return Reservation(price.cost(usage), usage.total)

    async def reserve(self, request: Request) -> Reservation:
        """Set the most that ``request`` can cost aside; waits while open reservations may make room.

        Raises:
            BudgetReached: it does not fit, and nothing is open that could come back.
        """
        wanted = self.most(request)
        while (short := self._short(wanted)) is not None:
            if self._reserved.requests == 0:
                raise BudgetReached(short)
            self._changed = self._changed or asyncio.Event()
            await self._changed.wait()
        return self._open(wanted)

    def reserve_now(self, request: Request) -> Reservation:
        """As :meth:`reserve`, without waiting.

        Raises:
            BudgetReached: it does not fit now.
        """
        wanted = self.most(request)
        if (short := self._short(wanted)) is not None:
            raise BudgetReached(short)
        return self._open(wanted)

    def hold(self, request: Request) -> Reservation:
        """Set aside what an earlier process has committed already, fit or not."""
        return self._open(self.most(request))

    def _open(self, wanted: Reservation) -> Reservation:
        self._reserved.money += wanted.money
        self._reserved.tokens += wanted.tokens
        self._reserved.requests += 1
        return wanted

    def _short(self, wanted: Reservation) -> str | None:
        """What does not fit, in words; None if all does."""
        used, lost, held = self.spent, self.spent, self._reserved
        for name, cap, spent, need, unit in (
            ("max_money", self._cap_money, used.money + lost.lost_money + held.money, wanted.money, UNIT),
            ("max_tokens", self.max_tokens, used.tokens + lost.lost_tokens + held.tokens, wanted.tokens, 1),
            ("max_requests", self.max_requests, used.requests + lost.lost_requests + held.requests, 1, 1),
        ):
            if cap is not None and spent + need > cap:
                show = (lambda value: f"{value / UNIT:.6g}") if unit == UNIT else (lambda value: f"{value:,}")
                return (
                    f"the budget is reached: budget.{name} is {show(cap)}, {show(spent)} is spent, and the next request may "
                    f"take {show(need)}; everything paid for is in the ledger: raise the cap and run again to go on"
                )
        return None

    @property
    def _cap_money(self) -> int | None:
        return None if self.max_money is None else math.floor(self.max_money * UNIT)

    def settle(self, reservation: Reservation, usage: Usage, cost: int) -> None:
        """Replace a reservation by what the call did cost: ``cost`` units of money, ``usage`` tokens."""
        self._close(reservation)
        self.spent.money += cost
        self.spent.tokens += usage.total
        self.spent.requests += 1

    def forfeit(self, reservation: Reservation) -> None:
        """The call was lost after it was sent: count it as charged in full."""
        self._close(reservation)
        self.spent.lost_money += reservation.money
        self.spent.lost_tokens += reservation.tokens
        self.spent.lost_requests += 1

    def release(self, reservation: Reservation) -> None:
        """The endpoint refused the call: nothing was charged."""
        self._close(reservation)

    def _close(self, reservation: Reservation) -> None:
        assert reservation.open, "a reservation is closed once"
        reservation.open = False
        self._reserved.money -= reservation.money
        self._reserved.tokens -= reservation.tokens
        self._reserved.requests -= 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    @property
    def reserved_money(self) -> float:
        return self._reserved.money / UNIT

    @property
    def money(self) -> float:
        """Spent, in the currency of the prices; lost calls included at their most."""
        return (self.spent.money + self.spent.lost_money) / UNIT
