"""The Batch API against the local server: half the price, lines that failed sent again, nothing paid twice wherever a kill falls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.records import Completion, Failure, Request
from selfinstruct.teacher.batch import BatchTeacher
from selfinstruct.teacher.budget import Budget
from selfinstruct.teacher.client import OpenAIClient
from selfinstruct.teacher.dispatch import BudgetReached, Stopped, complete_all
from selfinstruct.teacher.endpoints import Endpoint
from selfinstruct.teacher.ledger import Ledger
from selfinstruct.teacher.rate import Gate
from selfinstruct.teacher.sections import BatchSection, EndpointSection, RateSection, RetriesSection
from sft.errors import DataError
from tests.selfinstruct.bench import KEY, PRICE, SCHEMA, asked
from tests.selfinstruct.fault_server import FaultServer, answer_all
from tests.selfinstruct.timing import Moved


class Killed(BaseException):
    """What a kill looks like from within: nothing after it runs."""


async def round_(
    folder: Path,
    server: FaultServer,
    requests: list[Request],
    *,
    budget: Budget | None = None,
    spoil: Callable[[BatchTeacher], None] = lambda teacher: None,
    **batch: Any,
) -> tuple[BatchTeacher, list[Completion | Failure], Moved]:
    """One process that takes one round as batches."""
    assert server.server is not None
    moved = Moved()
    url = f"http://127.0.0.1:{server.server.sockets[0].getsockname()[1]}/v1"
    section = EndpointSection(base_url=url, name="here", key_variable="TEST_KEY")
    retries = RetriesSection(attempts=4, timeout=20.0)
    endpoint = Endpoint("here", OpenAIClient(section, retries, KEY, moved.clock), PRICE, Gate(RateSection(), moved.clock))
    ledger = Ledger.open(folder / "ledger.jsonl")
    caps = budget or Budget(prices={"m": PRICE})
    teacher = BatchTeacher(endpoint, ledger, caps, BatchSection(**batch), retries, folder / "batches.json", moved.clock)
    spoil(teacher)
    try:
        return teacher, await complete_all(teacher, requests), moved
    finally:
        await teacher.aclose()


def played(server: FaultServer, play: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        await server.start()
        try:
            return await play()
        finally:
            await server.stop()

    return asyncio.run(main())


def test_a_round_as_batches_costs_half_and_keeps_its_order(tmp_path: Path) -> None:
    server, requests = FaultServer(), [*asked(50), *asked(5, kind="completion"), *asked(3)]

    async def play() -> None:
        teacher, results, moved = await round_(tmp_path, server, requests, max_requests=20)
        assert [result.request_id for result in results] == [request.id for request in requests]
        assert len(server.batches) == 4  # 20 + 20 + 10 chat requests, 5 completions
        assert {batch["endpoint"] for batch in server.batches.values()} == {"/v1/chat/completions", "/v1/completions"}
        for result in results:
            assert isinstance(result, Completion)
            full = (result.usage.prompt_tokens + 2 * result.usage.completion_tokens) / 1e6
            assert result.cost == pytest.approx(full / 2)
        assert teacher.budget.money == pytest.approx(sum(one.cost for one in results[:55] if isinstance(one, Completion)))
        assert teacher.budget.reserved_money == 0
        assert moved.slept == [60.0]
        assert (tmp_path / "batches.json").exists()
        assert json.loads((tmp_path / "batches.json").read_text())["sent"] == []
        again, same, _ = await round_(tmp_path, server, requests)
        assert (same, len(server.batches), again.counts.ledger_hits) == (results, 4, 55)

    played(server, play)
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_lines_that_failed_are_sent_again_and_lines_refused_are_recorded(tmp_path: Path) -> None:
    faults = dict.fromkeys(("500", "429", "disconnect", "no_usage", "wrong_usage"), 0.15) | {"content_filter": 0.05}
    server, requests = FaultServer(faults=faults, in_a_row=2), asked(200)

    async def play() -> None:
        teacher, results, _ = await round_(tmp_path, server, requests)
        failed = [result for result in results if isinstance(result, Failure)]
        assert {failure.code for failure in failed} == {"content_filter"}
        assert 0 < len(failed) < 40
        assert len(server.batches) == 3
        assert server.stats.to_json()["paid_again"] == 0
        assert server.stats.paid.total() == 200 - len(failed)
        assert teacher.counts.usage_estimated > 0
        assert teacher.budget.spent.requests == 200 - len(failed)

    played(server, play)


def test_a_request_that_no_batch_answers_is_given_up(tmp_path: Path) -> None:
    server = FaultServer(always="disconnect")

    async def play() -> None:
        _, results, _ = await round_(tmp_path, server, asked(3))
        assert [result.code for result in results if isinstance(result, Failure)] == ["retries_exhausted"] * 3
        assert len(server.batches) == 4

    played(server, play)


def test_a_refused_schema_is_left_out_of_the_next_batch(tmp_path: Path) -> None:
    server = FaultServer(always="schema_refused")

    async def play() -> None:
        _, results, _ = await round_(tmp_path, server, asked(10, schema=SCHEMA))
        assert all(isinstance(result, Completion) and result.schema_dropped for result in results)
        assert len(server.batches) == 2

    played(server, play)


STEPS = ("upload", "create_batch", "batch", "download", "put_many")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_at_any_step_pays_nothing_twice(tmp_path: Path, step: str, after: bool, call: int) -> None:
    server, requests, seen = FaultServer(faults={"500": 0.3}, in_a_row=1), asked(40), [0]

    def spoil(teacher: BatchTeacher) -> None:
        where: Any = teacher.ledger if step == "put_many" else teacher.client
        real = getattr(where, step)

        def killed(*given: Any) -> Any:
            seen[0] += 1
            if seen[0] != call:
                return real(*given)
            if step == "put_many":
                if after:
                    real(*given)
                raise Killed

            async def dies() -> Any:
                if after:
                    await real(*given)
                raise Killed

            return dies()

        setattr(where, step, killed)

    async def play() -> None:
        with pytest.raises(Killed):
            await round_(tmp_path, server, requests, spoil=spoil)
        teacher, results, _ = await round_(tmp_path, server, requests)
        assert all(isinstance(result, Completion) for result in results)
        for batch in server.batches.values():  # the endpoint finishes what was created, whether anybody looks or not
            if batch["status"] != "completed":
                answer_all(server, batch)
        assert server.stats.to_json()["paid_again"] == 0
        assert server.stats.paid.total() == 40
        assert teacher.budget.spent.requests == 40
        assert teacher.budget.reserved_money == 0

    played(server, play)


def test_the_cap_holds_for_batches_and_what_fits_is_done(tmp_path: Path) -> None:
    server = FaultServer()

    async def play() -> None:
        with pytest.raises(BudgetReached, match=r"budget\.max_money is 0\.005"):
            await round_(tmp_path, server, asked(200), budget=Budget(max_money=0.005, prices={"m": PRICE}))
        assert 10 < server.stats.paid.total() < 200
        with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
            assert len(ledger) == server.stats.paid.total()
            assert ledger.totals.money <= 0.005e12

    played(server, play)


def test_a_batch_that_the_endpoint_refuses_stops_with_its_reasons(tmp_path: Path) -> None:
    def refuse(server: FaultServer, batch: dict[str, Any]) -> None:
        batch |= {"status": "failed", "errors": {"object": "list", "data": [{"message": "the model does not do batches"}]}}

    server = FaultServer(batch_answers=refuse)

    async def play() -> None:
        with pytest.raises(Stopped, match="the endpoint refuses batch batch-0: the model does not do batches"):
            await round_(tmp_path, server, asked(3))

    played(server, play)


def test_a_batch_that_expires_keeps_what_it_answered(tmp_path: Path) -> None:
    def expire(server: FaultServer, batch: dict[str, Any]) -> None:
        answer_all(server, batch)
        batch["status"] = "expired"

    server = FaultServer(faults={"hang": 0.5}, in_a_row=1, batch_answers=expire)

    async def play() -> None:
        _, results, _ = await round_(tmp_path, server, asked(40))
        assert all(isinstance(result, Completion) for result in results)
        assert len(server.batches) == 2
        assert server.stats.to_json()["paid_again"] == 0

    played(server, play)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "batches.json").write_text('{"sent": [')
    server = FaultServer()

    async def play() -> None:
        with pytest.raises(DataError, match=r"batches\.json: not a state of batches"):
            await round_(tmp_path, server, asked(1))

    played(server, play)
