"""The Batch API: a round as files, answered within a day, for half the price; resumable across days.

::

    not in the ledger ─► input file ─► batch ─► polled ─► output and error files ─► ledger
           ▲                                                     │ faults to be retried, requests that expired
           └─────────────────────────────────────────────────────┘

``batches.json`` in the run directory holds every batch that is not yet in the ledger: it is written before a batch is created, marked
by the hash of its requests, so that a batch created just before a kill is found again by its mark and not paid for twice. A request
whose batch is open is never sent a second time.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from selfinstruct.records import Completion, Failure, Request, digest
from selfinstruct.teacher.budget import UNIT, Budget, Price, Reservation
from selfinstruct.teacher.counts import Counts, Progress
from selfinstruct.teacher.endpoints import Endpoint
from selfinstruct.teacher.faults import BudgetReached, CallFault, Stopped, classify
from selfinstruct.teacher.ledger import Entry, Ledger
from selfinstruct.teacher.paying import completion_of, restore_spent
from selfinstruct.teacher.rate import Clock
from selfinstruct.teacher.sections import BatchSection, RetriesSection
from selfinstruct.teacher.wire import PATHS, body_of, reply_of_json
from sft.errors import DataError, InputError

log = logging.getLogger(__name__)

_OPEN = ("validating", "in_progress", "finalizing", "cancelling")


class BatchClient(Protocol):
    """Files and batches of one endpoint; every method raises :class:`CallFault` only."""

    async def upload(self, name: str, content: bytes) -> str: ...

    async def create_batch(self, file_id: str, path: str, mark: str) -> dict[str, Any]: ...

    async def batch(self, id_: str) -> dict[str, Any]: ...

    async def find_batch(self, mark: str) -> dict[str, Any] | None: ...

    async def download(self, file_id: str) -> bytes: ...


@dataclass(slots=True)
class Sent:
    """One batch that is under way.

    Attributes:
        mark: hash of its requests and of the attempt; in the batch's metadata.
        ids: of its requests.
        plain, renamed: how they were put (see :class:`Asking`).
        batch: the endpoint's id; empty until it is created.
    """

    mark: str
    ids: list[str]
    plain: bool
    renamed: bool
    batch: str = ""


@dataclass(slots=True)
class _State:
    """``batches.json``: open batches, and how often each request was sent."""

    path: Path
    sent: list[Sent] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def load(path: Path) -> _State:
        try:
            value = json.loads(path.read_bytes())
            return _State(path, [Sent(**item) for item in value["sent"]], Counter(value["attempts"]))
        except FileNotFoundError:
            return _State(path)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not a state of batches ({error}); restore it, or delete it: open batches are then paid for again"
            ) from None

    def save(self) -> None:
        new = self.path.with_name(self.path.name + ".new")
        try:
            with open(new, "w", encoding="ascii") as file:
                json.dump({"sent": [asdict(item) for item in self.sent], "attempts": dict(self.attempts)}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; nothing was sent") from None


class BatchTeacher:
    """A teacher that takes a round at once.

    Args:
        endpoint: where; its ``client`` is also a :class:`BatchClient`. Its price is the price before the discount.
        ledger: open for writing.
        budget: caps; its ``prices`` are before the discount.
        batch, retries: knobs.
        state: path of ``batches.json``.
        clock: time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        budget: Budget,
        batch: BatchSection,
        retries: RetriesSection,
        state: Path,
        clock: Clock | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        client: Any = endpoint.client
        self.endpoint, self.client, self.ledger = endpoint, client, ledger
        self.budget, self.batch, self.retries = budget, batch, retries
        self.counts = Counts()
        self._state = _State.load(state)
        self._clock = clock or Clock()
        self._progress = progress
        self._held: dict[str, Reservation] = {}
        budget.prices = {model: _discounted(price, batch.discount) for model, price in budget.prices.items()}
        restore_spent(budget, ledger, None)

    async def complete(self, request: Request) -> Completion:
        """One request, as a batch of one.

        Raises:
            RequestFailed: it was given up.
        """
        from selfinstruct.teacher.faults import RequestFailed

        (result,) = await self.complete_many([request])
        if isinstance(result, Failure):
            raise RequestFailed(result)
        return result

    async def complete_many(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """A round: results in the order of the requests.

        Raises:
            BudgetReached: the cap does not allow a next batch; open batches were waited for.
            Stopped: the endpoint refuses batches, the key or the quota.
        """
        wanted = {request.id: request for request in requests}
        self.counts.ledger_hits += sum(id_ in self.ledger for id_ in wanted)
        await self._adopt(wanted)
        short: BudgetReached | None = None
        while True:
            if short is None:
                short = await self._send([request for id_, request in wanted.items() if id_ not in self.ledger])
            mine = [sent for sent in self._state.sent if any(id_ in wanted for id_ in sent.ids)]
            if not mine:
                break
            for sent in mine:
                await self._look(sent, wanted)
            self._show(wanted)
            if any(sent in self._state.sent for sent in mine):
                await self._clock.sleep(self.batch.poll)
        missing = [id_ for id_ in wanted if id_ not in self.ledger]
        if missing:
            assert short is not None
            raise short
        return [self._result(request) for request in requests]

    def _result(self, request: Request) -> Completion | Failure:
        entry = self.ledger.entry(request.id)
        assert entry is not None
        result = entry.completion or entry.failure
        assert result is not None
        return result

    async def _adopt(self, wanted: dict[str, Request]) -> None:
        """Take up the batches of an earlier process: find those that a kill cut off from their id, set their money aside again."""
        for sent in list(self._state.sent):
            if not sent.batch:
                found = await self._call(lambda mark=sent.mark: self.client.find_batch(mark))  # type: ignore[misc]
                if found is None:
                    self._state.sent.remove(sent)  # it was never created
                    continue
                sent.batch = found["id"]
            for id_ in sent.ids:
                # Already committed: set aside without asking whether it fits. A batch of another round is settled by its own round.
                if id_ in wanted and id_ not in self.ledger and id_ not in self._held:
                    self._held[id_] = self.budget.hold(wanted[id_])
        self._state.save()

    async def _send(self, missing: Sequence[Request]) -> BudgetReached | None:
        """Send what is neither in the ledger nor under way, a file's worth at a time; the error if the budget ends first."""
        open_ = {id_ for sent in self._state.sent for id_ in sent.ids}
        fresh = [request for request in missing if request.id not in open_]
        short: BudgetReached | None = None
        affordable: list[Request] = []
        for request in fresh:
            try:
                self._held[request.id] = self.budget.reserve_now(request)
            except BudgetReached as error:
                short = error
                break
            affordable.append(request)
        for kind in ("chat", "completion"):
            for chunk in self._chunks([request for request in affordable if request.kind == kind]):
                await self._create(chunk, PATHS[kind])
        return short

    def _chunks(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, bytes]]]:
        """Requests and their lines, cut by number and size."""
        chunk: list[tuple[Request, bytes]] = []
        size = 0
        for request in requests:
            asking = self.endpoint.asking(request, request.sampling.max_tokens)
            line = {"custom_id": request.id, "method": "POST", "url": PATHS[request.kind], "body": body_of(request, asking)}
            data = json.dumps(line).encode("ascii") + b"\n"
            if chunk and (len(chunk) >= self.batch.max_requests or size + len(data) > self.batch.max_bytes):
                yield chunk
                chunk, size = [], 0
            chunk.append((request, data))
            size += len(data)
        if chunk:
            yield chunk

    async def _create(self, chunk: list[tuple[Request, bytes]], path: str) -> None:
        ids = [request.id for request, _ in chunk]
        self._state.attempts.update(ids)
        mark = digest([ids, [self._state.attempts[id_] for id_ in ids]])
        sent = Sent(mark, ids, self.endpoint.plain, self.endpoint.renamed)
        file_id = await self._call(lambda: self.client.upload(f"{mark}.jsonl", b"".join(line for _, line in chunk)))
        self._state.sent.append(sent)
        self._state.save()  # before the batch exists: from here on it is found again by its mark
        sent.batch = (await self._call(lambda: self._create_once(file_id, path, mark)))["id"]
        self._state.save()
        self.counts.attempts += len(ids)
        log.info("batch %s: %d requests", sent.batch, len(ids))

    async def _create_once(self, file_id: str, path: str, mark: str) -> dict[str, Any]:
        """Create a batch; a call that was lost on the way is looked for before it is made again."""
        try:
            return await self.client.create_batch(file_id, path, mark)
        except CallFault as fault:
            if fault.action != "retry":
                raise
            found = await self.client.find_batch(mark)
            if found is None:
                raise
            return found

    async def _look(self, sent: Sent, wanted: dict[str, Request]) -> None:
        """Look at one batch; once it has ended, take its answers into the ledger, then forget it."""
        state = await self._call(lambda: self.client.batch(sent.batch))
        if state["status"] in _OPEN:
            return
        if state["status"] == "failed":
            said = "; ".join(str(error.get("message")) for error in ((state.get("errors") or {}).get("data") or [])[:3])
            self._state.sent.remove(sent)
            self._state.save()
            self._release(sent.ids)
            raise Stopped(f"the endpoint refuses batch {sent.batch}: {said or 'no reason given'}")
        for name in ("output_file_id", "error_file_id"):
            if file_id := state.get(name):
                self._take(await self._call(lambda file_id=file_id: self.client.download(file_id)), sent, wanted)  # type: ignore[misc]
        self._release(sent.ids)  # what has no answer by now expired, uncharged: it is sent again
        for id_ in sent.ids:
            if id_ in wanted and id_ not in self.ledger and self._state.attempts[id_] >= self.retries.attempts:
                self._give_up(wanted[id_], CallFault("give_up", "retries_exhausted", f"{self.retries.attempts} batches"))
        self._state.sent.remove(sent)
        self._state.save()

    def _take(self, content: bytes, sent: Sent, wanted: dict[str, Request]) -> None:
        """Take the lines of an output or error file: completions and failures into the ledger with one sync."""
        entries: dict[str, Entry] = {}
        for line in content.splitlines():
            try:
                value = json.loads(line)
                request = wanted.get(value["custom_id"])
            except (ValueError, KeyError, TypeError):
                self.counts.faults["batch_line"] += 1
                continue
            if request is None or request.id not in sent.ids or request.id in entries or request.id in self.ledger:
                self.counts.faults["batch_stray"] += request is None
                continue
            try:
                entries[request.id] = Entry(request, self._completion(value, request, sent))
            except CallFault as fault:
                self._fault(fault, request, entries)
        self.ledger.put_many(list(entries.values()))
        for id_, entry in entries.items():
            reservation = self._held.pop(id_)
            if entry.completion is None:
                self.budget.release(reservation)
                continue
            self.counts.replies += 1
            self.counts.usage_estimated += entry.completion.usage_estimated
            self.counts.schema_dropped += entry.completion.schema_dropped
            self.budget.settle(reservation, entry.completion.usage, round(entry.completion.cost * UNIT))

    def _completion(self, value: dict[str, Any], request: Request, sent: Sent) -> Completion:
        response = value.get("response") or {}
        status = response.get("status_code")
        if status is None:
            error = value.get("error") or {}
            raise CallFault("retry", str(error.get("code") or "batch_expired"), str(error.get("message") or ""))
        if status >= 400:
            raise classify(status, response.get("body"), {})
        reply = reply_of_json(response.get("body"), request, {})
        return completion_of(
            request,
            self.endpoint,
            reply,
            request.sampling.max_tokens,
            schema=not sent.plain,
            created=self._clock.unix(),
            factor=self.batch.discount,
        )

    def _fault(self, fault: CallFault, request: Request, entries: dict[str, Entry]) -> None:
        """What one line of a batch says went wrong: what can be asked again stays out of the ledger."""
        self.counts.faults[fault.code] += 1
        self.counts.actions[fault.action] += 1
        if fault.action == "stop":
            raise Stopped(f"the endpoint refuses: {fault}")
        if fault.action == "plain":
            self.endpoint.plain = True
        elif fault.action == "rename":
            self.endpoint.renamed = True
        elif fault.action in ("give_up", "shorten"):
            self.counts.failures[fault.code] += 1
            entries[request.id] = Entry(request, None, Failure(request.id, fault.code, fault.detail[:300]))

    def _give_up(self, request: Request, fault: CallFault) -> None:
        self.counts.failures[fault.code] += 1
        self.ledger.put_many([Entry(request, None, Failure(request.id, fault.code, fault.detail))])

    def _release(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            if (reservation := self._held.pop(id_, None)) is not None:
                self.budget.release(reservation)

    async def _call(self, call: Callable[[], Any]) -> Any:
        """One call about files or batches, again after a wait while the fault is a passing one.

        Raises:
            Stopped: it is not, or it does not pass.
        """
        for attempt in range(1, self.retries.attempts + 1):
            try:
                return await call()
            except CallFault as fault:
                self.counts.faults[fault.code] += 1
                if fault.action not in ("wait", "retry") or attempt == self.retries.attempts:
                    raise Stopped(f"the endpoint refuses a batch: {fault}") from None
                wait = fault.retry_after or self.retries.first_wait * 2 ** (attempt - 1)
            await self._clock.sleep(min(self.retries.longest_wait, wait))
        raise AssertionError("unreachable")

    def _show(self, wanted: dict[str, Request]) -> None:
        if self._progress is not None:
            self._progress(self.progress(sum(id_ in self.ledger for id_ in wanted), len(wanted)))

    def progress(self, done: int, total: int) -> Progress:
        return Progress(
            done=done,
            total=total,
            in_flight=len(self._held),
            waiting=0,
            backing_off=0,
            tokens=self.budget.spent.tokens,
            money=self.budget.money,
            cap=self.budget.max_money,
            rate_waits=0,
            rate_seconds=0.0,
            retries=self.counts.actions["retry"] + self.counts.actions["wait"],
            limit=self.batch.max_requests,
        )

    async def aclose(self) -> None:
        """Close connections and ledger; open batches go on, and the next run takes them up."""
        await self.endpoint.client.close()
        self.ledger.close()


def _discounted(price: Price, factor: float) -> Price:
    return Price(-int(-price.input * factor // 1), -int(-price.output * factor // 1), price.known)
