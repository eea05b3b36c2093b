"""Whom a run asks: endpoints, a Batch API, or recorded ledgers; always through the ledger of the run directory.

::

    recipe.teacher ─► LedgerTeacher | BatchTeacher | ReplayTeacher ─► Desk.ask     all replies of a batch of requests, paid once
                                                      run's ledger ─► Desk.held    what it holds, without asking anybody
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from selfinstruct.recipe import Recipe
from selfinstruct.recipe import Teacher as TeacherOf
from selfinstruct.records import Completion, Failure, Request
from selfinstruct.strategies.base import Reply
from selfinstruct.teacher.counts import Progress
from selfinstruct.teacher.dispatch import Teacher, complete_all
from selfinstruct.teacher.ledger import Entry, Ledger
from selfinstruct.teacher.sections import BudgetSection
from sft.errors import InputError

NOT_RECORDED = "not_recorded"
"""Code of a request that the ledger does not hold."""


class Meter:
    """Sums over replies, by purpose of the request; each request counts once.

    Attributes:
        calls: purpose -> replies.
        prompt_tokens, completion_tokens, money: sums.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = 0
        self.money = 0.0
        self._seen: set[str] = set()

    def add(self, request: Request, reply: Reply) -> None:
        if isinstance(reply, Completion) and request.id not in self._seen:
            self._seen.add(request.id)
            self.calls[request.purpose.partition(":")[0]] += 1
            self.prompt_tokens += reply.usage.prompt_tokens
            self.completion_tokens += reply.usage.completion_tokens
            self.money += reply.cost


class Desk:
    """Args: the ledger of the run; a teacher, or None to answer from the ledger alone; whether the teacher is a replay.

    Attributes:
        meter: of every reply that was used, whoever gave it.
    """

    def __init__(
        self,
        ledger: Ledger,
        teacher: Teacher | None = None,
        *,
        copies: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.ledger, self.teacher, self.meter = ledger, teacher, Meter()
        self._copies, self._progress = copies, progress

    async def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Every reply, in the order of the requests."""
        if self.teacher is None:
            return await self.held(requests)
        replies = await complete_all(self.teacher, requests, progress=self._progress)
        if self._copies:
            self.ledger.put_many([_entry(*pair) for pair in zip(requests, replies, strict=True)])
        return self._metered(requests, replies)

    async def held(self, requests: Sequence[Request]) -> list[Reply]:
        """What the ledger holds, and failures for the rest."""
        return self._metered(requests, [self._held(request) for request in requests])

    def _held(self, request: Request) -> Reply:
        entry = self.ledger.entry(request.id)
        if entry is None:
            return Failure(request.id, NOT_RECORDED)
        reply = entry.completion or entry.failure
        assert reply is not None
        return reply

    def _metered(self, requests: Sequence[Request], replies: list[Reply]) -> list[Reply]:
        for request, reply in zip(requests, replies, strict=True):
            self.meter.add(request, reply)
        return replies

    def drain(self) -> None:
        """Let nothing more leave; calls under way are still waited for."""
        stop = getattr(self.teacher, "drain", None)
        if stop is not None:
            stop()

    def facts(self) -> dict[str, Any]:
        """Errors and waits of this process, as ``run.json`` has them."""
        counts = getattr(self.teacher, "counts", None)
        endpoints = getattr(self.teacher, "endpoints", None)
        if counts is None:
            return {"errors": {}, "waits": {}}
        waits = {"back-off": counts.backoff_seconds}
        waits |= {"rate limit": endpoints.waited} if endpoints is not None else {}
        return {"errors": dict(counts.faults), "waits": {name: seconds for name, seconds in waits.items() if seconds}}


class Asking(Protocol):
    """A recipe that asks a teacher: of a generation, or of a judgment."""

    @property
    def teacher(self) -> TeacherOf:
        """Who is asked."""

    @property
    def budget(self) -> BudgetSection:
        """What it may cost."""


def _entry(request: Request, reply: Reply) -> Entry:
    return Entry(request, None, reply) if isinstance(reply, Failure) else Entry(request, reply)


@asynccontextmanager
async def open_desk(recipe: Asking, run_dir: Path, progress: Callable[[Progress], None] | None = None) -> AsyncIterator[Desk]:
    """Open ledger and teacher of a recipe; closes both.

    Raises:
        InputError: ledger locked or not writable, key missing, price unknown under a cap on money.
        DataError: the ledger is damaged.
    """
    ledger = Ledger.open(run_dir / "ledger.jsonl")
    try:
        if recipe.teacher.replay:
            from selfinstruct.teacher.replay import ReplayTeacher

            recorded = ReplayTeacher(recipe.teacher.replay)
            try:
                yield Desk(ledger, recorded, copies=True, progress=progress)
            finally:
                recorded.close()
        else:
            teacher = _live(recipe, ledger, run_dir, progress)
            try:
                yield Desk(ledger, teacher, progress=progress)
            finally:
                await teacher.aclose()
    finally:
        ledger.close()


def _live(recipe: Asking, ledger: Ledger, run_dir: Path, progress: Callable[[Progress], None] | None) -> Any:
    """The teacher behind the recipe's endpoints."""
    from selfinstruct.teacher.budget import Budget, dearest, price_of, refuse_unknown_prices
    from selfinstruct.teacher.client import OpenAIClient
    from selfinstruct.teacher.endpoints import Endpoint, Endpoints, key_of
    from selfinstruct.teacher.journal import Journal
    from selfinstruct.teacher.rate import Gate

    t, b = recipe.teacher, recipe.budget
    refuse_unknown_prices(t.model, t.endpoints, b)
    endpoints = []
    for section in t.endpoints:
        client = OpenAIClient(section, t.retries, key_of(section))
        price = price_of(t.model, section, b)
        endpoints.append(Endpoint(section.label, client, price, Gate(section.rate), section.weight, section.model))
        if section.structured == "never":
            endpoints[-1].plain = True
        endpoints[-1].renamed = section.max_tokens_field == "max_completion_tokens"
    budget = Budget(b.max_money, b.max_tokens, b.max_requests, {t.model: dearest(e.price for e in endpoints)})
    if t.batch.enabled:
        from selfinstruct.teacher.batch import BatchTeacher

        state = run_dir / "batches.json"
        return BatchTeacher(endpoints[0], ledger, budget, t.batch, t.retries, state, progress=progress)
    from selfinstruct.teacher.paying import LedgerTeacher

    journal = Journal(run_dir / "journal.jsonl", ledger.__contains__)
    return LedgerTeacher(Endpoints(endpoints), ledger, budget, t.retries, journal)


def token_price(recipe: Recipe) -> tuple[float, float] | None:
    """Money per prompt and per completion token at the dearest endpoint, the Batch API's discount included; None if unknown or a replay."""
    from selfinstruct.teacher.budget import UNIT, dearest, price_of

    if recipe.teacher.replay:
        return None
    factor = recipe.teacher.batch.discount if recipe.teacher.batch.enabled else 1.0
    prices = [price_of(recipe.teacher.model, e, recipe.budget, factor=factor) for e in recipe.teacher.endpoints]
    most = dearest(prices)
    return (most.input / UNIT, most.output / UNIT) if most.known else None


def recorded_requests(ledger: Ledger, purpose: str) -> dict[int, list[Request]]:
    """Round -> requests of a strategy's first stage that a ledger holds, in their order.

    Raises:
        InputError: it holds none.
    """
    rounds: dict[int, dict[int, Request]] = {}
    for entry in ledger.iterate():
        if entry.request.purpose.partition(":")[0] == purpose:
            rounds.setdefault(entry.request.round, {})[entry.request.index] = entry.request
    if not rounds:
        raise InputError(
            f"{ledger.path}: no request of this strategy's first stage ({purpose!r}); it belongs to another strategy"
        )
    return {number: [found[index] for index in sorted(found)] for number, found in rounds.items()}
