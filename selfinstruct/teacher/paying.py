"""One request, through ledger, budget, rate and retries.

::

    complete(request)
      ledger ── has it ──────────────────────────────────────────────► completion, free
        │ no
      budget.reserve ── does not fit ────────────────────────────────► BudgetReached
        │
      endpoints.enter (rate) → journal.sent → client.ask ── fault ───► wait and again | changed and again | Failure | Stopped
        │ reply
      ledger.put (synced) → budget.settle ───────────────────────────► completion, paid once
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from selfinstruct.records import Completion, Failure, Request
from selfinstruct.teacher.budget import UNIT, Budget, Reservation, dearest, estimate
from selfinstruct.teacher.counts import Counts, Progress
from selfinstruct.teacher.endpoints import Endpoint, Endpoints, Reply
from selfinstruct.teacher.faults import CallFault, RequestFailed, Stopped
from selfinstruct.teacher.journal import Journal
from selfinstruct.teacher.ledger import Entry, Ledger
from selfinstruct.teacher.rate import Clock, Departure
from selfinstruct.teacher.sections import RetriesSection
from selfinstruct.teacher.wire import usage_of
from sft.errors import VicugnaError

log = logging.getLogger(__name__)

_LEAST_TOKENS = 16
_FUTILE = 20


class LedgerTeacher:
    """A teacher that pays once.

    Args:
        endpoints: whom to ask.
        ledger: open for writing.
        budget: caps; its ``spent`` is set from ledger and journal here.
        retries: attempts, waits, retry budget.
        journal: of calls in flight; None in tests that count nothing.
        clock: time.
        draw: uniform numbers in [0, 1) for the jitter.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        ledger: Ledger,
        budget: Budget,
        retries: RetriesSection,
        journal: Journal | None = None,
        clock: Clock | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.endpoints, self.ledger, self.budget, self.retries = endpoints, ledger, budget, retries
        self.journal = journal
        self.counts = Counts()
        self._clock = clock or Clock()
        self._draw = draw
        self._asked: dict[str, asyncio.Task[Completion]] = {}
        self._stopped: VicugnaError | None = None
        self._backing_off = 0
        self._futile = 0
        # Which endpoint will answer is not known when money is set aside: the dearest, by prompts and by completions apart.
        prices = [item.price for item in endpoints.items]
        budget.prices = {model: dearest([price, *prices]) for model, price in budget.prices.items()}
        restore_spent(budget, ledger, journal)

    async def complete(self, request: Request) -> Completion:
        """The completion of a request: from the ledger, from an equal request under way, or asked and paid for.

        Raises:
            RequestFailed: given up, now or in an earlier process.
            BudgetReached: a cap leaves no room for it.
            Stopped: authentication, quota or an outage concerns all requests.
            LedgerBroken: the disk did not take the reply.
        """
        if (known := self._known(request.id)) is not None:
            return known
        task = self._asked.get(request.id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._pay(request))
            self._asked[request.id] = task
            task.add_done_callback(lambda done: self._forget(request.id, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _forget(self, id_: str, done: asyncio.Task[Completion]) -> None:
        self._asked.pop(id_, None)
        if not done.cancelled():
            done.exception()  # its waiter may have been cancelled: the error is then nobody's

    def _known(self, id_: str) -> Completion | None:
        entry = self.ledger.entry(id_)
        if entry is None:
            return None
        self.counts.ledger_hits += 1
        if entry.failure is not None:
            raise RequestFailed(entry.failure)
        return entry.completion

    async def _pay(self, request: Request) -> Completion:
        max_tokens, attempt, quiet = request.sampling.max_tokens, 1, self.counts.replies
        while True:
            fault = await self._attempt(request, max_tokens)
            if isinstance(fault, Completion):
                return fault
            self.counts.actions[fault.action] += 1
            if fault.action == "shorten":
                max_tokens = await self._shorter(request, max_tokens, fault)
            elif fault.action == "stop":
                raise self._stop(Stopped(f"the endpoint refuses: {fault}"))
            elif fault.action == "give_up":
                await self._give_up(request, fault)
            elif fault.action in ("wait", "retry"):
                # A rate limit costs an attempt only if nothing was answered meanwhile: it is then no limit but a dead end.
                progress = self.counts.replies > quiet
                if attempt >= self.retries.attempts and not (progress and fault.action == "wait"):
                    await self._exhausted(request, fault, progress)
                self._spend_retry(fault)
                await self._back_off(attempt, fault)
                attempt, quiet = attempt + (fault.action == "retry" or not progress), self.counts.replies

    async def _attempt(self, request: Request, max_tokens: int) -> Completion | CallFault:
        """Reserve, wait for a place, ask, write down. A fault that is a matter of form is settled on the endpoint."""
        if self._stopped is not None:
            raise _again(self._stopped)
        asked = (
            replace(request, sampling=replace(request.sampling, max_tokens=max_tokens))
            if max_tokens != request.sampling.max_tokens
            else request
        )
        reservation = await self.budget.reserve(asked)
        try:
            size = sum(estimate(message.content) for message in request.messages) + max_tokens
            endpoint, left = await self.endpoints.enter(size)
        except BaseException:
            self.budget.release(reservation)
            raise
        return await self._ask(request, endpoint, left, max_tokens, reservation)

    async def _ask(
        self, request: Request, endpoint: Endpoint, left: Departure, max_tokens: int, reservation: Reservation
    ) -> Completion | CallFault:
        gate, asking = endpoint.gate, endpoint.asking(request, max_tokens)
        try:
            if self._stopped is not None:
                raise _again(self._stopped)
            self._journal("sent", request.id, reservation.money, reservation.tokens)
        except BaseException:
            gate.failed(left, overloaded=False, retry_after=None, headers={})
            self.endpoints.left()
            self.budget.release(reservation)
            raise
        self.counts.attempts += 1
        try:
            reply = await endpoint.client.ask(request, asking)
        except CallFault as fault:
            overloaded = fault.action == "wait" or fault.code in ("timeout", "http_503", "http_529")
            longest = 10 * self.retries.longest_wait
            pause = None if fault.retry_after is None else min(fault.retry_after, longest)
            gate.failed(left, overloaded=overloaded, retry_after=pause, headers=fault.limits)
            self._lost(request, reservation) if fault.billed else self._freed(request, reservation)
            self.counts.faults[fault.code] += 1
            return self._learn(endpoint, asking.schema, asking.renamed, fault)
        except BaseException:  # cancelled with the call under way: the endpoint may go on, and charge
            gate.failed(left, overloaded=False, retry_after=None, headers={})
            self._lost(request, reservation)
            raise
        finally:
            self.endpoints.left()
        gate.answered(left, reply.completion_tokens or 0, reply.headers)
        return await self._keep(request, endpoint, asking.schema, max_tokens, reply, reservation)

    async def _keep(
        self, request: Request, endpoint: Endpoint, schema: bool, max_tokens: int, reply: Reply, reservation: Reservation
    ) -> Completion:
        completion = completion_of(request, endpoint, reply, max_tokens, schema=schema, created=self._clock.unix())
        self.count(completion)
        try:
            await self.ledger.put_soon(Entry(request, completion))
        except VicugnaError as error:
            self.budget.forfeit(reservation)
            raise self._stop(error) from None
        except asyncio.CancelledError:  # it is queued: the ledger writes it all the same, on closing at the latest
            self.budget.settle(reservation, completion.usage, round(completion.cost * UNIT))
            raise
        self.budget.settle(reservation, completion.usage, round(completion.cost * UNIT))
        return completion

    def count(self, completion: Completion) -> None:
        """Add a reply to the counts."""
        self.counts.replies += 1
        self.counts.usage_estimated += completion.usage_estimated
        self.counts.schema_dropped += completion.schema_dropped
        self._futile = 0

    def _learn(self, endpoint: Endpoint, schema: bool, renamed: bool, fault: CallFault) -> CallFault:
        """Remember what the endpoint cannot do; a refusal of what was not sent is an ordinary bad request."""
        if fault.action == "plain":
            if not schema:
                return CallFault("give_up", "bad_request", fault.detail)
            if not endpoint.plain:
                log.warning("%s refuses JSON schemas; asking for plain text from now on: %s", endpoint.label, fault.detail)
            endpoint.plain = True
        if fault.action == "rename":
            if renamed:
                return CallFault("give_up", "bad_request", fault.detail)
            endpoint.renamed = True
        return fault

    async def _shorter(self, request: Request, max_tokens: int, fault: CallFault) -> int:
        """The next ``max_tokens`` to try: what fits by the endpoint's account, else half."""
        shorter = fault.fits if fault.fits is not None and fault.fits < max_tokens else max_tokens // 2
        if shorter < _LEAST_TOKENS:
            await self._give_up(request, CallFault("give_up", "context_too_long", fault.detail))
        return shorter

    async def _give_up(self, request: Request, fault: CallFault) -> NoReturn:
        """Write the failure down, so that every later process sees the same round; then raise it."""
        self._futile += 1
        if self._futile >= _FUTILE and fault.code != "content_filter":
            raise self._stop(Stopped(f"{_FUTILE} requests in a row were refused, the last one: {fault}"))
        failure = Failure(request.id, fault.code, fault.detail)
        self.counts.failures[fault.code] += 1
        await self.ledger.put_soon(Entry(request, None, failure))
        raise RequestFailed(failure)

    async def _exhausted(self, request: Request, fault: CallFault, progress: bool) -> NoReturn:
        if not progress:
            raise self._stop(
                Stopped(f"nothing was answered in the time of {self.retries.attempts} attempts, the last one: {fault}")
            )
        await self._give_up(request, CallFault("give_up", "retries_exhausted", str(fault)))

    def _spend_retry(self, fault: CallFault) -> None:
        """The retry budget: an endpoint that fails this often is out of order."""
        allowed = self.retries.budget_floor + self.retries.budget_share * self.counts.replies
        if fault.action == "retry" and self.counts.actions["retry"] > allowed:
            raise self._stop(
                Stopped(
                    f"{self.counts.actions['retry']} retries for {self.counts.replies} replies: the retry budget is spent "
                    f"(teacher.retries.budget_share, budget_floor); the last fault: {fault}"
                )
            )

    async def _back_off(self, attempt: int, fault: CallFault) -> None:
        """Wait between half and all of a doubling time; a Retry-After is the endpoint's gate's business, plus this spread."""
        wait = min(self.retries.longest_wait, self.retries.first_wait * 2 ** min(attempt - 1, 30)) * (0.5 + self._draw() / 2)
        if fault.retry_after is not None:
            wait = min(wait, self.retries.first_wait)
        self.counts.backoff_seconds += wait
        self._backing_off += 1
        try:
            await self._clock.sleep(wait)
        finally:
            self._backing_off -= 1

    def _stop(self, error: VicugnaError) -> VicugnaError:
        """Let nothing more leave; calls under way are still waited for and kept."""
        self._stopped = self._stopped or error
        return error

    def drain(self) -> None:
        """Let nothing more leave, as on Ctrl-C; :func:`complete_all` then raises once the calls under way are written down."""
        self._stop(Stopped("interrupted; everything that was paid for is in the ledger"))

    def _lost(self, request: Request, reservation: Reservation) -> None:
        self.budget.forfeit(reservation)
        self._journal("lost", request.id)

    def _freed(self, request: Request, reservation: Reservation) -> None:
        self.budget.release(reservation)
        self._journal("free", request.id)

    def _journal(self, what: str, *values: Any) -> None:
        if self.journal is not None:
            getattr(self.journal, what)(*values)

    def progress(self, done: int, total: int) -> Progress:
        spent, gates = self.budget.spent, [item.gate for item in self.endpoints.items]
        return Progress(
            done=done,
            total=total,
            in_flight=self.endpoints.in_flight,
            waiting=self.endpoints.waiting,
            backing_off=self._backing_off,
            tokens=spent.tokens + spent.lost_tokens,
            money=self.budget.money,
            cap=self.budget.max_money,
            rate_waits=self.endpoints.waits,
            rate_seconds=self.endpoints.waited,
            retries=self.counts.actions["wait"] + self.counts.actions["retry"],
            limit=sum(int(gate.limit) for gate in gates),
        )

    @property
    def width(self) -> int:
        """Requests worth starting at once: those in flight, and some that back off."""
        return self.endpoints.width + 64

    async def aclose(self) -> None:
        """Close connections, journal and ledger."""
        await self.endpoints.close()
        if self.journal is not None:
            self.journal.close()
        self.ledger.close()


def restore_spent(budget: Budget, ledger: Ledger, journal: Journal | None) -> None:
    """Set what earlier processes spent."""
    budget.spent.money, budget.spent.tokens = ledger.totals.money, ledger.totals.tokens
    budget.spent.requests = ledger.totals.completions
    if journal is not None:
        lost = journal.spent
        budget.spent.lost_money, budget.spent.lost_tokens = lost.lost_money, lost.lost_tokens
        budget.spent.lost_requests = lost.lost_requests


def _again(error: VicugnaError) -> VicugnaError:
    """The same error for another task: raising one object in many tasks would pile up their tracebacks."""
    return type(error)(*error.args)


def completion_of(
    request: Request, endpoint: Endpoint, reply: Reply, max_tokens: int, *, schema: bool, created: float, factor: float = 1.0
) -> Completion:
    """The record of a reply. ``schema``: whether it was asked with the request's schema; ``factor``: on the price."""
    usage, estimated = usage_of(reply, request, max_tokens)
    return Completion(
        request_id=request.id,
        text=reply.text,
        finish_reason=reply.finish_reason,
        usage=usage,
        model=reply.model,
        endpoint=endpoint.label,
        cost=endpoint.price.cost(usage) * factor / UNIT,
        created=created,
        usage_estimated=estimated,
        schema_dropped=request.schema is not None and not schema,
        max_tokens=max_tokens if max_tokens != request.sampling.max_tokens else 0,
    )
