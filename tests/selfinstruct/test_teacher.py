"""The paying teacher through the real ``openai`` client against the local server: every fault, the cap, the key."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.records import Completion, Failure
from selfinstruct.teacher.budget import UNIT, Budget, Price
from selfinstruct.teacher.dispatch import BudgetReached, LedgerTeacher, Stopped, complete_all
from selfinstruct.teacher.endpoints import Endpoint, Endpoints, key_of
from selfinstruct.teacher.faults import CallFault
from selfinstruct.teacher.ledger import Ledger
from selfinstruct.teacher.rate import Gate
from selfinstruct.teacher.sections import EndpointSection, RateSection, RetriesSection
from sft.errors import InputError, TeacherError
from tests.selfinstruct.bench import EVERY, KEY, SCHEMA, Bench, asked, bench
from tests.selfinstruct.fault_server import FaultServer


def test_every_passing_fault_is_got_over_and_paid_once(tmp_path: Path) -> None:
    requests = asked(400)

    async def use(bench: Bench) -> list[Any]:
        results = await complete_all(bench.teacher, requests)
        assert [result.request_id for result in results if isinstance(result, Completion)] == [one.id for one in requests]
        assert len({result.text for result in results if isinstance(result, Completion)}) > 390
        stats = bench.server.stats
        assert set(stats.faults) == set(EVERY)
        assert stats.to_json()["paid_again"] == 0
        assert bench.counts.attempts == stats.requests == bench.counts.replies + bench.counts.faults.total()
        assert bench.counts.usage_estimated == stats.faults["no_usage"] + stats.faults["wrong_usage"]
        assert bench.budget.spent.lost_requests == stats.lost.total() > 0
        assert bench.budget.spent.requests == 400
        asked_before = stats.requests
        assert await complete_all(bench.teacher, requests) == results
        assert (stats.requests, bench.counts.ledger_hits) == (asked_before, 400)
        return results

    first = bench(tmp_path, FaultServer(faults=dict.fromkeys(EVERY, 0.05), in_a_row=3), use)

    async def again(bench: Bench) -> list[Any]:
        results = await complete_all(bench.teacher, requests)
        assert bench.server.stats.requests == 0
        assert bench.budget.spent.requests == 400
        assert bench.budget.spent.lost_requests > 0
        return results

    assert bench(tmp_path, FaultServer(), again) == first


def test_a_hang_is_timed_out_and_asked_again(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        (result,) = await complete_all(bench.teacher, asked(1))
        assert isinstance(result, Completion)
        assert dict(bench.counts.faults) == {"timeout": 1}
        assert bench.endpoint.gate.cuts == 1

    bench(tmp_path, FaultServer(faults={"hang": 1.0}, in_a_row=1), use, retries={"timeout": 0.2})


def test_retry_after_is_obeyed_and_back_off_doubles_with_jitter(tmp_path: Path) -> None:
    async def use(bench: Bench) -> tuple[float, list[float]]:
        start = bench.moved.time
        await complete_all(bench.teacher, asked(1))
        return bench.moved.time - start, bench.moved.slept

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    took, _ = bench(tmp_path / "a", FaultServer(faults={"429_after": 1.0}, in_a_row=1, retry_after="37"), use)
    assert 37 <= took <= 39
    _, slept = bench(tmp_path / "b", FaultServer(faults={"500": 1.0}, in_a_row=6), use, retries={"longest_wait": 8.0})
    assert len(slept) == 6
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(slept, (1, 2, 4, 8, 8, 8), strict=True))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "the endpoint refuses: unauthorized: Incorrect API key provided"),
        ("403", "the endpoint refuses: forbidden"),
        ("quota", "the endpoint refuses: insufficient_quota"),
    ],
)
def test_what_concerns_all_requests_stops_at_once(tmp_path: Path, fault: str, says: str) -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(Stopped, match=says):
            await complete_all(bench.teacher, asked(500))
        assert bench.server.stats.requests <= 8
        assert bench.budget.money == 0
        assert len(bench.teacher.ledger) == 0

    bench(tmp_path, FaultServer(always=fault), use, concurrency=8)


def test_an_outage_stops_and_fails_no_request_for_good(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(Stopped, match="nothing was answered in the time of 4 attempts, the last one: http_500"):
            await complete_all(bench.teacher, asked(20))
        assert len(bench.teacher.ledger) == 0

    bench(tmp_path, FaultServer(always="500"), use, retries={"attempts": 4})


def test_nobody_there_stops(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        await bench.server.stop()
        with pytest.raises(Stopped, match="nothing was answered in the time of 3 attempts, the last one: disconnect: Connect"):
            await complete_all(bench.teacher, asked(5))
        assert bench.budget.spent.lost_requests == 0

    bench(tmp_path, FaultServer(), use, retries={"attempts": 3})


def test_the_retry_budget_stops_an_endpoint_that_fails_too_often(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(Stopped, match=r"retries for \d+ replies: the retry budget is spent"):
            await complete_all(bench.teacher, asked(2000))

    knobs = {"budget_share": 0.1, "budget_floor": 10}
    bench(tmp_path, FaultServer(faults={"500": 0.5}), use, retries=knobs)


def test_a_request_that_alone_fails_is_given_up_for_good(tmp_path: Path) -> None:
    async def use(bench: Bench) -> list[Any]:
        return await complete_all(bench.teacher, asked(60))

    for fault, code in (("content_filter", "content_filter"), ("bad_request", "bad_request")):
        (folder := tmp_path / fault).mkdir()
        results = bench(folder, FaultServer(faults={fault: 0.1}, in_a_row=1), use)
        failed = [result for result in results if isinstance(result, Failure)]
        assert 0 < len(failed) < 30
        assert {failure.code for failure in failed} == {code}
        assert bench(folder, FaultServer(), use) == results  # a later process sees the same round


def test_a_prompt_that_is_always_refused_stops_before_the_money_is_gone(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(
            Stopped, match="20 requests in a row were refused, the last one: bad_request: temperature is out of"
        ):
            await complete_all(bench.teacher, asked(500))

    bench(tmp_path, FaultServer(always="bad_request"), use, concurrency=4)


def test_a_refused_schema_is_dropped_once_and_recorded(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        results = await complete_all(bench.teacher, asked(50, schema=SCHEMA))
        assert all(isinstance(result, Completion) and result.schema_dropped for result in results)
        assert bench.counts.schema_dropped == 50
        assert bench.counts.actions["plain"] <= 4
        assert "response_format" not in bench.server.stats.bodies[-1]

    bench(tmp_path, FaultServer(always="schema_refused", keep=True), use, concurrency=4)

    async def taken(bench: Bench) -> None:
        (result,) = await complete_all(bench.teacher, asked(1, schema=SCHEMA, max_tokens=201))
        assert isinstance(result, Completion)
        assert not result.schema_dropped
        assert bench.server.stats.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}

    bench(tmp_path, FaultServer(keep=True), taken)


def test_max_tokens_is_renamed_and_shortened_as_the_endpoint_asks(tmp_path: Path) -> None:
    async def renamed(bench: Bench) -> None:
        await complete_all(bench.teacher, asked(10))
        assert bench.server.stats.bodies[-1]["max_completion_tokens"] == 200

    async def shorter(bench: Bench) -> None:
        (result,) = await complete_all(bench.teacher, asked(1, max_tokens=5000))
        assert isinstance(result, Completion)
        assert result.max_tokens == 900
        assert [body["max_tokens"] for body in bench.server.stats.bodies] == [5000, 900]

    async def never(bench: Bench) -> None:
        (result,) = await complete_all(bench.teacher, asked(1, max_tokens=5001))
        assert isinstance(result, Failure)
        assert result.code == "context_too_long"

    bench(tmp_path, FaultServer(always="renamed", keep=True), renamed)
    bench(tmp_path, FaultServer(always="context", context=1000, keep=True), shorter)
    bench(tmp_path, FaultServer(always="context", context=100), never)


def test_odd_replies_are_kept_as_they_are(tmp_path: Path) -> None:
    async def use(bench: Bench) -> Any:
        (result,) = await complete_all(bench.teacher, asked(1))
        assert isinstance(result, Completion)
        return result.text, result.finish_reason

    for fault, expected in (("refusal", ("I cannot help with that.", "refusal")), ("null_length", ("", "length"))):
        (folder := tmp_path / fault).mkdir()
        assert bench(folder, FaultServer(always=fault), use) == expected


def test_legacy_completions(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        (result,) = await complete_all(bench.teacher, asked(1, kind="completion"))
        assert isinstance(result, Completion)
        (body,) = bench.server.stats.bodies
        assert (body["prompt"], body["max_tokens"], "messages" in body) == ("question 0", 200, False)

    bench(tmp_path, FaultServer(keep=True), use)


# --- the cap


@pytest.mark.parametrize(
    ("cap", "spent"),
    [
        ({"max_money": 0.026}, lambda spent: (spent.money + spent.lost_money) / UNIT / 0.026),
        ({"max_tokens": 21_000}, lambda spent: (spent.tokens + spent.lost_tokens) / 21_000),
        ({"max_requests": 300}, lambda spent: (spent.requests + spent.lost_requests) / 300),
    ],
)
def test_256_at_once_do_not_overshoot_the_cap(tmp_path: Path, cap: dict[str, float], spent: Callable[[Any], float]) -> None:
    async def use(bench: Bench) -> float:
        with pytest.raises(BudgetReached, match=rf"the budget is reached: budget\.{next(iter(cap))} is "):
            await complete_all(bench.teacher, asked(2000, max_tokens=20))
        assert bench.server.stats.peak > 200
        # What the server did, by its own count of answers given and answers lost, is within what we say was spent.
        did = bench.server.stats.paid.total() + bench.server.stats.lost.total()
        assert did == bench.budget.spent.requests + bench.budget.spent.lost_requests
        return spent(bench.budget.spent)

    wild = dict.fromkeys(EVERY, 0.05)
    share = bench(
        tmp_path, FaultServer(faults=wild, delay=0.01), use, budget=cap, concurrency=256, retries={"budget_floor": 9999}
    )
    assert 0.9 < share <= 1.0

    async def nothing(bench: Bench) -> None:  # a second process starts where the first one stopped
        with pytest.raises(BudgetReached):
            await complete_all(bench.teacher, asked(50, first=5000, max_tokens=9000))
        assert bench.server.stats.requests == 0 or "max_requests" not in cap

    bench(tmp_path, FaultServer(), nothing, budget=cap, concurrency=256)


def test_with_several_endpoints_the_dearest_is_set_aside(tmp_path: Path) -> None:
    async def main() -> None:
        unused: Any = None
        prices = [Price(1, 90), Price(50, 2)]
        ends = [Endpoint(str(n), unused, price, Gate(RateSection())) for n, price in enumerate(prices)]
        with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
            budget = Budget(max_money=1, prices={"m": prices[0]})
            LedgerTeacher(Endpoints(ends), ledger, budget, RetriesSection())
            held = budget.most(asked(1, max_tokens=10)[0])
            assert held.money == 50 * (held.tokens - 10) + 90 * 10

    asyncio.run(main())


# --- the key


def test_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen = io.StringIO()  # no list: the tracebacks show all locals, and would show a list in a list in a list

    def look(bench: Bench, error: BaseException | None = None) -> None:
        seen.writelines([repr(bench), repr(bench.endpoint.client), repr(vars(bench.endpoint.client)), repr(bench.counts)])
        while error is not None:
            seen.writelines(traceback.TracebackException.from_exception(error, capture_locals=True).format())
            seen.writelines([repr(error), str(error), repr(error.args)])
            assert error.__context__ is None or not type(error.__context__).__module__.startswith(("openai", "httpx"))
            error = error.__cause__ or error.__context__

    async def use(bench: Bench) -> None:
        try:
            results = await complete_all(bench.teacher, asked(30))
            seen.write(repr(results))
            look(bench)
        except TeacherError as error:
            look(bench, error)
        try:  # at the door itself: nothing of the package's own errors may hang on to the fault
            await bench.endpoint.client.ask(asked(1)[0], bench.endpoint.asking(asked(1)[0], 200))
        except CallFault as fault:
            look(bench, fault)

    for fault in ("", "401", "429", "500", "disconnect", "cut_json", "bad_request", "content_filter", "quota", "context"):
        (folder := tmp_path / (fault or "none")).mkdir()
        server = FaultServer(always=fault, echo_key=True, context=100)
        bench(folder, server, use, retries={"attempts": 2}, concurrency=2)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "[key]" in seen.getvalue()
    assert "[key]" in written
    for text in (written, caplog.text, seen.getvalue()):
        assert KEY not in text
        assert KEY[3:20] not in text


def test_the_key_comes_from_the_environment_or_not_at_all() -> None:
    section = EndpointSection(base_url="http://127.0.0.1:1/v1", key_variable="SOME_KEY")
    assert key_of(section, {"SOME_KEY": " abc\n"}) == "abc"
    assert key_of(section.model_copy(update={"key_variable": None}), {}) is None
    with pytest.raises(InputError, match=r"the key of 127\.0\.0\.1:1 is missing: set the environment variable SOME_KEY"):
        key_of(section, {})
    with pytest.raises(InputError, match="SOME_KEY does not hold a key") as caught:
        key_of(section, {"SOME_KEY": "a b"})
    assert "a b" not in str(caught.value)
