"""Rounds until exactly N rows: ask, parse, judge in order, write; the same files whatever the concurrency and however often it is cut.

::

    round r:  requests = f(seed, r, rows of earlier rounds)
              replies  = ledger, else teacher                  all of them, before anything is used: the barrier
              items    = parsed, in the order of the requests
              verdicts = filters over items, in order; after the N-th row the rest is surplus
              candidates.jsonl += items and verdicts; then state.json

Nothing in a round depends on when a reply came. A budget that is reached, or a teacher that fails for good, ends the run between or
within rounds: what the ledger holds of the round is judged for the data set, but not counted as done, and the next run goes on there.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from selfinstruct.judging import Judge
from selfinstruct.records import Failure, Request, SeedTask
from selfinstruct.store import Judged, Run, Store
from selfinstruct.strategies.base import Item, Reply, Strategy, View
from sft.errors import TeacherError

Ask = Callable[[Sequence[Request]], Awaitable[list[Reply]]]
"""Answers in the order of the requests; raises :class:`TeacherError` where it cannot go on."""
_MARGIN = 1.1
"""Requests of the last rounds over those that the yield so far makes likely."""

_SAVE_EVERY = 5000
"""Rows between two savings of the novelty index, at least."""


class Watch(Protocol):
    """Who looks on. Called between rounds and after each stage of one."""

    def stage(self, run: Run, number: int, purpose: str, requests: int) -> None: ...

    def round(self, run: Run) -> None: ...


class Exhausted(TeacherError):
    """There is nothing more to ask, and the rows are not there."""


@dataclass(frozen=True, slots=True, repr=False)  # asyncio shows what a task was called with, and this is large
class Job:
    """What stays the same over a run.

    Attributes:
        seeds: in file order.
        strategy, judge: made from the recipe.
        rows: wanted.
        identity: of everything that the data depend on; a state under another identity is not continued.
        max_rounds, stall_rounds: as in the recipe's output section.
        recorded: for a replay: round -> the requests of the first stage that the ledger holds, in order.
        most_requests: of the first stage, in all; None for no bound.
    """

    seeds: list[SeedTask]
    strategy: Strategy
    judge: Judge
    rows: int
    identity: str
    max_rounds: int | None = None
    stall_rounds: int = 5
    recorded: dict[int, list[Request]] | None = None
    most_requests: int | None = None

    def requests(self, run: Run, view: View) -> list[Request]:
        """The first stage of the next round, no more of it than the rows that are missing make likely."""
        made = self.strategy.requests(run.round, view)
        if self.recorded is not None:
            held = self.recorded.get(run.round, [])
            if not held:
                return []
            if not {request.id for request in held} <= {request.id for request in made}:
                made = held  # other filters led the rounds elsewhere: what was asked then is what there is
        most = len(made) if self.most_requests is None else self.most_requests - run.tally.asked
        return made[: min(most, wanted(run, self.rows, len(made)))]

    def bounded(self) -> bool:
        """Whether running out of requests is the intended end."""
        return self.recorded is not None or self.most_requests is not None


def wanted(run: Run, target: int, most: int) -> int:
    """Requests for the next round: of earlier rounds' yield, with a margin; ``most`` while nothing is known."""
    if not run.rows or not run.tally.asked:
        return most
    each = len(run.rows) / run.tally.asked
    return min(most, max(1, math.ceil((target - len(run.rows)) / each * _MARGIN)))


async def generate(job: Job, ask: Ask, held: Ask, store: Store, watch: Watch) -> Run:
    """Play rounds until the rows are there; write ``candidates.jsonl`` and ``dataset.jsonl``.

    Args:
        job: what to do.
        ask: the teacher, ledger first.
        held: answers from the ledger alone, with a :class:`Failure` for what is not in it; never raises.
        store: the run directory; an earlier run in it is gone on with.
        watch: told what happens.

    Returns:
        The run, with ``job.rows`` rows, or fewer where ``max_rounds`` was reached or a replay has no more.

    Raises:
        TeacherError: budget reached, teacher failed, stalled or nothing left to ask. ``dataset.jsonl`` then holds the rows so far.
    """
    run = store.restore(job.identity)
    kept = len(run.rows) if job.judge.restore(run.candidates, store.index) else 0
    watch.round(run)
    try:
        while len(run.rows) < job.rows and (job.max_rounds is None or run.round < job.max_rounds):
            view = View(job.seeds, run.candidates, job.judge.screen)
            requests = job.requests(run, view)
            if not requests:
                if job.bounded():
                    break
                raise Exhausted(f"{len(run.rows)} of {job.rows} rows, and nothing is left to ask; {_MORE}")
            judged = await _play(job, run, requests, view, ask, held, store, watch)
            store.append(judged)
            run.add(judged, len(requests))
            store.commit(run, job.identity)
            if len(run.rows) >= kept + max(_SAVE_EVERY, kept // 2):  # a kill costs a rebuild of the rest at most
                job.judge.save(store.index)
                kept = len(run.rows)
            watch.round(run)
            if run.stalled >= job.stall_rounds and job.recorded is None:
                raise Exhausted(_stalled(run))
    finally:
        store.dataset(run)
        job.judge.save(store.index)
    return run


_MORE = "raise strategy.generations, give more seeds, or lower output.rows"


def _stalled(run: Run) -> str:
    top = [f"{name}: {reason} ({count})" for (name, reason), count in run.tally.refused.most_common(3)]
    top += [f"not parsed: {reason} ({count})" for reason, count in run.tally.unparsed.most_common(3)]
    return (
        f"no row in the last {run.stalled} rounds ({len(run.rows)} so far); most often: {', '.join(top) or 'no reply'}; "
        "look at selfinstruct review, then change prompt, filters or teacher, or raise output.stall_rounds"
    )


async def _play(
    job: Job, run: Run, requests: list[Request], view: View, ask: Ask, held: Ask, store: Store, watch: Watch
) -> list[Judged]:
    """One round. If the teacher stops, judge what the ledger holds of it, leave that in the files uncommitted, and raise."""
    try:
        return await _round(job, run, requests, view, ask, watch)
    except TeacherError:
        provisional = await _round(job, run, requests, view, held, watch)
        store.append([item for item in provisional if not isinstance(item, Failure)])
        run.add(provisional, 0)
        raise


async def _round(job: Job, run: Run, requests: list[Request], view: View, ask: Ask, watch: Watch) -> list[Judged]:
    failures: list[Judged] = []

    async def answered(batch: Sequence[Request]) -> list[Reply]:
        if batch:
            watch.stage(run, run.round, batch[0].purpose, len(batch))
        replies = await ask(batch) if batch else []
        failures.extend(reply for reply in replies if isinstance(reply, Failure))
        return replies

    stage = job.strategy.propose(requests, view)
    batch = next(stage)
    while True:
        replies = await answered(batch)
        try:
            batch = stage.send(replies)
        except StopIteration as done:
            items: list[Item] = done.value
            break
    judged = await job.judge.judge(items, job.rows - len(run.rows), answered)
    return [*failures, *judged]
