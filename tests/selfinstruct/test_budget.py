"""The budget's law, spent + reserved ≤ cap, for any order of events; prices; usage that endpoints get wrong; recipe refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct.records import Message, Request, Sampling, Usage
from selfinstruct.teacher.budget import (
    PRICES,
    UNIT,
    Budget,
    Price,
    Reservation,
    dearest,
    estimate,
    most_prompt_tokens,
    price_of,
    refuse_unknown_prices,
)
from selfinstruct.teacher.endpoints import Reply
from selfinstruct.teacher.faults import BudgetReached
from selfinstruct.teacher.sections import (
    BatchSection,
    BudgetSection,
    EndpointSection,
    PriceSection,
    SamplingSection,
    TeacherSection,
)
from selfinstruct.teacher.wire import usage_of
from sft.config import build, read_yaml
from sft.errors import InputError, RecipeError
from tests.selfinstruct.timing import virtual

PRICE = Price(3, 7)


def request(text: str = "question", max_tokens: int = 100) -> Request:
    return Request(model="m", messages=(Message("user", text),), sampling=Sampling(max_tokens))


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "settle", "forfeit", "release"]), st.integers(1, 500), st.floats(0, 1)), max_size=80
    ),
    st.integers(1, 20_000),
)
def test_spent_and_reserved_never_exceed_the_cap(events: list[tuple[str, int, float]], cap: int) -> None:
    budget = Budget(max_money=cap / UNIT, max_tokens=cap, max_requests=20, prices={"m": PRICE})
    open_: list[tuple[Reservation, Request]] = []
    for what, size, share in events:
        if what == "ask":
            try:
                open_.append((budget.reserve_now(request(max_tokens=size)), request(max_tokens=size)))
            except BudgetReached:
                continue
        elif open_:
            held, asked = open_.pop(size % len(open_))
            if what == "settle":
                usage = Usage(int(most_prompt_tokens(asked) * share), int(asked.sampling.max_tokens * share))
                budget.settle(held, usage, PRICE.cost(usage))
            else:
                getattr(budget, what)(held)
        spent, reserved = budget.spent, budget._reserved
        assert spent.money + spent.lost_money + reserved.money <= cap
        assert spent.tokens + spent.lost_tokens + reserved.tokens <= cap
        assert spent.requests + spent.lost_requests + reserved.requests <= 20
    for held, _ in open_:
        budget.release(held)
    assert (budget._reserved.money, budget._reserved.tokens, budget._reserved.requests) == (0, 0, 0)


def test_a_request_waits_for_what_others_may_give_back_and_refuses_only_then() -> None:
    async def main() -> list[str]:
        budget, story = Budget(max_requests=2), []

        async def one(name: str, held: float) -> None:
            try:
                reservation = await budget.reserve(request(name))
            except BudgetReached:
                story.append(f"{name} refused")
                return
            await asyncio.sleep(held)
            if name == "a":
                budget.release(reservation)
            else:
                budget.settle(reservation, Usage(1, 1), 0)
            story.append(f"{name} done")

        await asyncio.gather(one("a", 1), one("b", 2), one("c", 3), one("d", 4))
        return story

    assert virtual(main()) == ["a done", "b done", "c done", "d refused"]


def test_a_reservation_is_closed_once() -> None:
    budget = Budget()
    held = budget.hold(request())
    budget.release(held)
    with pytest.raises(AssertionError, match="closed once"):
        budget.release(held)


def test_the_prompt_bound_holds_for_bytes_of_any_script() -> None:
    for text in ("hello " * 50, "作为一个人工智能" * 50, "🙂🙃" * 50, "\ud800", ""):
        assert most_prompt_tokens(request(text)) >= len(text.encode("utf-8", "surrogatepass"))
        assert most_prompt_tokens(request(text)) > estimate(text)


# --- prices


def endpoint(**knobs: Any) -> EndpointSection:
    return EndpointSection(**{"base_url": "http://127.0.0.1:8000/v1", **knobs})


def test_where_a_price_comes_from() -> None:
    here, openai = endpoint(), endpoint(base_url="https://api.openai.com/v1")
    own = endpoint(price=PriceSection(input=0, output=0))
    budget = BudgetSection(prices={"m": PriceSection(input=0.15, output=0.6)})
    assert price_of("m", here, budget) == Price(150_000, 600_000)
    assert price_of("m", own, budget) == Price(0, 0)
    assert price_of("m", here, budget, factor=0.5) == Price(75_000, 300_000)
    assert price_of("gpt-4o-mini", openai, BudgetSection()) == Price.of(PRICES["gpt-4o-mini"]) == Price(150_000, 600_000)
    assert not price_of("gpt-4o-mini", here, BudgetSection()).known  # the same name at another host is another offer
    assert not price_of("gpt-4o-mini", openai, BudgetSection(currency="EUR")).known
    assert dearest([Price(1, 9), Price(5, 2)]) == Price(5, 9)
    assert dearest([Price(1, 9), Price(0, 0, known=False)]) == Price(1, 9, known=False)


def test_a_cap_on_money_needs_prices() -> None:
    refuse_unknown_prices("m", [endpoint()], BudgetSection(max_tokens=5))
    refuse_unknown_prices("m", [endpoint(price=PriceSection(input=0, output=0))], BudgetSection(max_money=5))
    with pytest.raises(
        InputError, match=r"budget\.max_money: the price of 'm' at 127\.0\.0\.1:8000 is not known, so the cap could not"
    ):
        refuse_unknown_prices("m", [endpoint()], BudgetSection(max_money=5))
    with pytest.raises(InputError, match="the price of 'm' is not known"):
        Budget(max_money=5).most(request())


# --- usage


@pytest.mark.parametrize(
    ("prompt", "completion", "expected", "estimated"),
    [
        (11, 9, Usage(11, 9), False),
        (None, 9, Usage(10, 9), True),
        (11, None, Usage(11, 50), True),
        (0, 9, Usage(10, 9), True),
        (11, 1, Usage(11, 50), True),  # one token for 200 characters
        (10**9, 9, Usage(88, 9), True),  # beyond what the prompt can be: the most it can be
        (11, 10**9, Usage(11, 100), True),
    ],
)
def test_wrong_counts_are_replaced_and_flagged(
    prompt: int | None, completion: int | None, expected: Usage, estimated: bool
) -> None:
    reply = Reply(
        text="x" * 200, finish_reason="stop", prompt_tokens=prompt, completion_tokens=completion, model="m", headers={}
    )
    assert usage_of(reply, request("q" * 40), 100) == (expected, estimated)


# --- recipe sections


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{model: m, endpoints: [{base_url: 'ftp://x/v1'}]}", r"endpoints\[0\]\.base_url: must start with http"),
        ("{model: m, endpoints: [{base_url: 'http://u:p@x/v1'}]}", r"base_url: must not hold credentials"),
        ("{model: m, endpoints: [{base_url: 'http://x/v1?key=k'}]}", r"base_url: must not hold credentials"),
        (
            "{model: m, endpoints: [{base_url: 'http://x/v1', key_variable: 'sk-secret'}]}",
            r"must be the name of an environment variable",
        ),
        ("{model: m, endpoints: []}", r"endpoints: needs at least one endpoint"),
        ("{model: m, endpoints: [{base_url: 'http://x/v1'}, {base_url: 'http://x/v1'}]}", r"two endpoints are called 'x'"),
        (
            "{model: m, endpoints: [{base_url: 'http://x/v1'}, {base_url: 'http://y/v1'}], batch: {enabled: true}}",
            r"a batch runs on one endpoint",
        ),
    ],
)
def test_sections_refuse_what_cannot_work(tmp_path: Any, text: str, says: str) -> None:
    path = tmp_path / "teacher.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says) as caught:
        build(TeacherSection, read_yaml(path))
    assert "sk-secret" not in str(caught.value)


def test_sampling_reaches_the_requests() -> None:
    assert SamplingSection(max_tokens=5, stop=["a"]).to_sampling() == Sampling(5, stop=("a",))
    assert BatchSection().discount == 0.5
