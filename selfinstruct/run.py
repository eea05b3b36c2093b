"""A run from recipe to data set: the function a newcomer reads first.

::

    run directory:  recipe.yaml  run.json  ledger.jsonl  candidates.jsonl  dataset.jsonl  report.html  report.json
                    state.json  novelty.bin  journal.jsonl           (what going on needs)
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from selfinstruct.desk import Desk, open_desk, recorded_requests
from selfinstruct.job import Prepared, filter_names, prepare, refuse_other_questions, seed_facts, versions
from selfinstruct.loop import generate
from selfinstruct.recipe import Recipe
from selfinstruct.screen import Screen, duration, yields
from selfinstruct.store import Run, Store, read_json, write_json
from selfinstruct.teacher.ledger import Ledger
from sft.errors import InputError, VicugnaError

log = logging.getLogger(__name__)

RESUME = "go on with the same command"


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run ended with.

    Attributes:
        run: its state.
        facts: as in ``run.json``.
        dir: its directory.
    """

    run: Run
    facts: dict[str, Any]
    dir: Path


def run(recipe: Recipe, console: Console, *, report: bool = True) -> Finished:
    """Generate until the rows are there; an earlier run in ``output.dir`` is gone on with.

    Args:
        recipe: loaded.
        console: for the screen.
        report: write report and exports at the end.

    Raises:
        InputError: something in the recipe, or in the run directory, cannot be used.
        TeacherError: budget reached, teacher failed, interrupted, or nothing left to ask; what was paid for is kept.
    """
    prepared = prepare(recipe)
    store = Store(recipe.output.dir)
    before = read_json(store.dir / "run.json")
    if before is not None and (store.dir / "ledger.jsonl").is_file():
        refuse_other_questions(before["identity"], prepared, store.dir)
    return asyncio.run(_run(prepared, store, console, before or {}, report))


async def _run(prepared: Prepared, store: Store, console: Console, before: dict[str, Any], report: bool) -> Finished:
    recipe = prepared.recipe
    with Screen(console, recipe.output.rows, recipe.budget.currency) as screen:
        async with open_desk(recipe, store.dir, screen.teacher) as desk:
            keeper = _Keeper(prepared, store, desk, before)
            keeper.begin()
            with _on_interrupt(desk):
                try:
                    done = await generate(prepared.job, desk.ask, desk.held, store, screen)
                except VicugnaError as error:
                    keeper.end(store.run, "stopped", str(error))
                    raise
            facts = keeper.end(done, "complete")
    _tell(console, done, facts, store.dir)
    if report:
        _outputs(recipe, store.dir, console)
    return Finished(done, facts, store.dir)


def replay(recipe: Recipe, out: Path, path: Path, console: Console, *, report: bool = True) -> Finished:
    """Judge what a ledger holds again, with the recipe's filters, into another directory. Asks nobody and costs nothing.

    Args:
        recipe: whose filters and rows may differ from those of the run.
        out: directory to write; not that of a run.
        path: a ledger, or a run directory with one.
        console: for the screen.

    Raises:
        InputError: the ledger is not of this strategy, or ``out`` is a run directory.
    """
    prepared = prepare(recipe)
    path = path / "ledger.jsonl" if path.is_dir() else path
    if (out / "ledger.jsonl").exists():
        raise InputError(f"{out}: a run with a ledger of its own is here; replay into another directory")
    with Ledger.open(path, read_only=True) as ledger:
        recorded = recorded_requests(ledger, prepared.job.strategy.purpose)
        job = replace(prepared.job, recorded=recorded)
        store = Store(out)
        store.forget()
        desk = Desk(ledger)
        keeper = _Keeper(prepared, store, desk, {})
        with Screen(console, recipe.output.rows, recipe.budget.currency) as screen:
            done = asyncio.run(generate(job, desk.ask, desk.held, store, screen))
        facts = keeper.end(done, "complete" if len(done.rows) == job.rows else "ledger used up")
    _tell(console, done, facts, out)
    if report:
        _outputs(recipe, out, console)
    return Finished(done, facts, out)


@contextlib.contextmanager
def _on_interrupt(desk: Desk) -> Iterator[None]:
    """The first Ctrl-C waits for the calls under way, which are being paid for; a second one does not."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        log.warning("stopping: waiting for the calls under way (Ctrl-C again to leave at once)")
        desk.drain()

    try:
        loop.add_signal_handler(signal.SIGINT, first)
    except (ValueError, RuntimeError, NotImplementedError):  # not the main thread: nobody presses Ctrl-C here
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class _Keeper:
    """Writes ``run.json`` and ``recipe.yaml``: counts and costs over all processes that worked on the run."""

    def __init__(self, prepared: Prepared, store: Store, desk: Desk, before: dict[str, Any]) -> None:
        self.prepared, self.store, self.desk, self.before = prepared, store, desk, before
        self.began = time.monotonic()
        self.sessions = int(before.get("sessions", 0)) + 1
        self.interrupted = int(before.get("interrupted", 0)) + (before.get("status") == "running")

    def begin(self) -> None:
        self._recipe()
        write_json(
            self.store.dir / "run.json", self._facts("running") | {k: self.before[k] for k in _CARRIED if k in self.before}
        )

    def end(self, run: Run, status: str, why: str = "") -> dict[str, Any]:
        self._recipe()
        facts = self._facts(status) | self._counted(run) | ({"stopped_by": why} if why else {})
        write_json(self.store.dir / "run.json", facts)
        return facts

    def _recipe(self) -> None:
        dumped = yaml.safe_dump(self.prepared.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (self.store.dir / "recipe.yaml").write_text(dumped, encoding="utf-8")

    def _facts(self, status: str) -> dict[str, Any]:
        p, recipe = self.prepared, self.prepared.recipe
        return {
            "name": Path(recipe.output.dir).name,
            "created": self.before.get("created") or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "status": status,
            "language": p.languages[0] if p.languages else "und",
            "target": recipe.output.rows,
            "seed": recipe.seed,
            "strategy": recipe.strategy.kind,
            "teacher": {"model": recipe.teacher.model, "replay": list(recipe.teacher.replay)},
            "prompts": p.identity["prompts"],
            "seeds": seed_facts(recipe, p.job.seeds, p.identity["seeds"]) | {"unusable_rows": len(p.dropped_seeds)},
            "filters": filter_names(recipe),
            "licence_note": recipe.output.licence,
            "sessions": self.sessions,
            "interrupted": self.interrupted,
            "recipe": recipe.model_dump(mode="json"),
            "identity": p.identity,
            "versions": versions(),
        }

    def _counted(self, run: Run) -> dict[str, Any]:
        spent, models, labels = _spent(self.desk.ledger)
        now = self.desk.facts()
        both = {name: _sum(self.before.get(name, {}), now[name]) for name in ("errors", "waits")}
        teacher: dict[str, Any] = {"models": models, "endpoints": labels}
        budget = self.prepared.recipe.budget
        lost = getattr(getattr(self.desk.teacher, "budget", None), "spent", None)
        journal = getattr(self.desk.teacher, "journal", None)
        return both | {
            "teacher": teacher,
            "rows": len(run.rows),
            "rounds": run.round,
            "candidates": run.tally.candidates,
            "usage": {key: spent[key] for key in ("requests", "paid_requests", "prompt_tokens", "completion_tokens")},
            "cost": {"money": spent["money"], "currency": budget.currency, "cap": budget.max_money},
            "lost_calls": lost.lost_requests if lost is not None else 0,
            "in_flight_at_kill": journal.in_flight_at_kill if journal is not None else 0,
            "seconds": round(float(self.before.get("seconds", 0.0)) + time.monotonic() - self.began, 3),
        }


_CARRIED = ("errors", "waits", "seconds")


def _sum(old: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    return {name: old.get(name, 0) + new.get(name, 0) for name in sorted({*old, *new})}


def _spent(ledger: Ledger) -> tuple[dict[str, Any], list[str], list[str]]:
    """Sums over a ledger, the models that answered, and the endpoints."""
    sums = {"requests": 0, "paid_requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    money, models, labels = 0, set(), set()
    for entry in ledger.iterate():
        sums["requests"] += 1
        if (completion := entry.completion) is not None:
            sums["paid_requests"] += 1
            sums["prompt_tokens"] += completion.usage.prompt_tokens
            sums["completion_tokens"] += completion.usage.completion_tokens
            money += round(completion.cost * 1e12)  # whole units: the sum does not depend on the order of arrival
            models.add(completion.model or entry.request.model)
            labels.add(completion.endpoint)
    return {**sums, "money": money / 1e12}, sorted(models), sorted(labels)


def _tell(console: Console, done: Run, facts: dict[str, Any], dir: Path) -> None:
    usage, cost = facts["usage"], facts["cost"]
    console.print(
        f"{dir / 'dataset.jsonl'}: {len(done.rows):,} of {facts['target']:,} rows in {done.round} rounds, {duration(facts['seconds'])}"
    )
    console.print(f"yield {yields(done.tally, len(done.rows))}", soft_wrap=True)
    tokens = usage["prompt_tokens"] + usage["completion_tokens"]
    money = f", {cost['money']:,.4f} {cost['currency']}" if cost["money"] else ""
    console.print(
        f"teacher {usage['paid_requests']:,} replies, {tokens:,} tokens{money}; no reply to {usage['requests'] - usage['paid_requests']:,}"
    )


def _outputs(recipe: Recipe, dir: Path, console: Console) -> None:
    from selfinstruct.results.export import export_run
    from selfinstruct.results.report import write_report

    console.print(f"report: {write_report(dir)}")
    for format in recipe.output.formats:
        folder = dir / f"export-{format}"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier process in this run directory
        done = export_run(dir, folder, format)
        console.print(f"export: {done.path} ({done.rows:,} rows)")
