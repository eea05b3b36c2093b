"""Play a recipe on a few calls, or on what a ledger holds, in a scratch directory: what a plan is made from."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from selfinstruct.desk import Desk, Meter, open_desk, recorded_requests, token_price
from selfinstruct.job import Prepared, filter_names, prepare, refuse_other_questions
from selfinstruct.loop import generate
from selfinstruct.plan import Pace, Plan, make_plan
from selfinstruct.recipe import Recipe
from selfinstruct.records import Request
from selfinstruct.screen import Screen
from selfinstruct.store import Run, Store, read_json
from selfinstruct.strategies.base import Reply
from selfinstruct.teacher.ledger import Ledger
from sft.errors import InputError


class _Clocked:
    """Asks a desk and remembers its slowest answer to a batch of requests."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.slowest = desk, 0.0

    async def ask(self, requests: Sequence[Request]) -> list[Reply]:
        began = time.monotonic()
        try:
            return await self.desk.ask(requests)
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)


def measure(recipe: Recipe, *, pilot: int, ledger: Path | None, console: Console) -> Plan:
    """Measure, and extrapolate to the recipe's rows.

    Args:
        recipe: loaded.
        pilot: calls of the first stage to make now; 0 asks nobody.
        ledger: measured instead of the recipe's own, or of the ledgers that its teacher replays.
        console: for the pilot's screen.

    Raises:
        InputError: there is nothing to measure on, or no yield.
        TeacherError: the pilot's teacher failed.
    """
    prepared = prepare(recipe)
    with tempfile.TemporaryDirectory(prefix="selfinstruct-plan-") as scratch:
        if pilot:
            run, meter, seconds = asyncio.run(_pilot(prepared, pilot, Store(scratch), console))
            source, pace = "pilot", _pace(recipe, seconds)
        else:
            run, meter = _held(prepared, _path(recipe, ledger), Store(scratch), console)
            source, pace = "ledger", None
    return make_plan(
        run,
        meter,
        recipe.output.rows,
        first=prepared.job.strategy.purpose,
        source=source,
        order=filter_names(recipe),
        price=token_price(recipe),
        pace=pace,
        cap=recipe.budget.max_money,
        currency=recipe.budget.currency,
    )


async def _pilot(prepared: Prepared, pilot: int, store: Store, console: Console) -> tuple[Run, Meter, float]:
    recipe = prepared.recipe
    own = Store(recipe.output.dir).dir
    before = read_json(own / "run.json")
    if before is not None and (own / "ledger.jsonl").is_file():
        refuse_other_questions(before["identity"], prepared, own)
    with Screen(console, recipe.output.rows, recipe.budget.currency) as screen:
        async with open_desk(recipe, own, screen.teacher) as desk:
            clocked = _Clocked(desk)
            job = replace(prepared.job, most_requests=pilot)
            run = await generate(job, clocked.ask, desk.held, store, screen)
    return run, desk.meter, clocked.slowest


def _held(prepared: Prepared, path: Path, store: Store, console: Console) -> tuple[Run, Meter]:
    with Ledger.open(path, read_only=True) as ledger:
        job = replace(prepared.job, recorded=recorded_requests(ledger, prepared.job.strategy.purpose))
        desk = Desk(ledger)
        with Screen(console, job.rows, "") as screen:
            run = asyncio.run(generate(job, desk.ask, desk.held, store, screen))
    return run, desk.meter


def _path(recipe: Recipe, ledger: Path | None) -> Path:
    """The ledger to measure on: the one named, else the run's own, else the first that the teacher replays."""
    own = Path(recipe.output.dir) / "ledger.jsonl"
    found = ledger or (own if own.is_file() else Path(recipe.teacher.replay[0]) if recipe.teacher.replay else None)
    if found is None:
        raise InputError(
            f"{own}: no ledger yet, so there is nothing to plan with; add --pilot 20: it asks the teacher 20 times, and the run "
            "does not pay for these again"
        )
    return found / "ledger.jsonl" if found.is_dir() else found


def _pace(recipe: Recipe, seconds: float) -> Pace:
    rates = [endpoint.rate for endpoint in recipe.teacher.endpoints]

    def total(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return Pace(
        seconds,
        sum(rate.max_concurrency for rate in rates),
        recipe.strategy.requests_per_round,
        total([rate.requests_per_minute for rate in rates]),
        total([rate.tokens_per_minute for rate in rates]),
    )
