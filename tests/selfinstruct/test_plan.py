"""A plan is arithmetic on what was measured; the screen is arithmetic on what is known."""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Any

import pytest
from rich.console import Console

from selfinstruct.desk import Meter
from selfinstruct.plan import Pace, make_plan, print_plan
from selfinstruct.records import Candidate, Completion, Message, Request, Sampling, Usage, Verdict
from selfinstruct.screen import Screen, duration, yields
from selfinstruct.store import Run, Tally
from selfinstruct.teacher.counts import Progress
from sft.errors import InputError


def candidate(call: int, item: int) -> Candidate:
    return Candidate(id=f"0-{call}-{item}", request_id="r", instruction="x", input="", output="y", round=0, item=item)


def played(per_call: list[int], **tally: Any) -> tuple[Run, Meter]:
    """A run that kept so many rows of each call; each call took 100 + 300 tokens and 0.5 of the currency."""
    rows = [candidate(call, item) for call, count in enumerate(per_call) for item in range(count)]
    run = Run(round=1, tally=Tally(**{"asked": len(per_call), "candidates": len(rows), **tally}))
    run.rows = [(c, Verdict(candidate_id=c.id, accepted=True)) for c in rows]
    run.candidates = rows
    meter = Meter()
    for draw in range(len(per_call)):
        request = Request(model="m", messages=(Message("user", "x"),), sampling=Sampling(9), draw=draw)
        meter.add(request, Completion(request_id=request.id, text="", finish_reason="stop", usage=Usage(100, 300), cost=0.5))
        meter.add(request, Completion(request_id=request.id, text="", finish_reason="stop", usage=Usage(100, 300), cost=0.5))
    return run, meter


def plan_of(per_call: list[int], target: int, tally: dict[str, Any] | None = None, **options: Any) -> Any:
    run, meter = played(per_call, **(tally or {}))
    return make_plan(run, meter, target, first="tasks", source="pilot", order=["length", "novelty", "target"], **options)


def test_a_steady_yield_is_a_proportion() -> None:
    plan = plan_of([10] * 8, 800)
    assert (plan.exponent, plan.least) == (1.0, plan.fallen)
    assert (plan.least.calls, plan.least.prompt_tokens, plan.least.completion_tokens) == (80, 8000, 24000)
    assert plan.least.money == pytest.approx(40.0)
    assert plan.least.hours is None


def test_a_falling_yield_is_extrapolated_by_its_exponent() -> None:
    plan = plan_of([10] * 4 + [6] * 4, 640)
    exponent = math.log2(64 / 40)
    assert plan.exponent == pytest.approx(exponent)
    assert plan.least.calls == 80
    assert plan.fallen.calls == math.ceil(8 * 10 ** (1 / exponent))


def test_few_calls_say_nothing_of_a_fall() -> None:
    plan = plan_of([10] * 4 + [6] * 3, 640)
    assert (plan.exponent, plan.fallen) == (None, None)


def test_a_price_of_the_recipe_beats_what_a_replay_cost() -> None:
    assert plan_of([10] * 8, 800, price=(0.001, 0.002)).least.money == pytest.approx(8 * 100 * 0.01 + 24 * 1000 * 0.002)


@pytest.mark.parametrize(
    ("pace", "hours"),
    [
        (Pace(30.0, 256, 4), 20 * 30 / 3600),  # 80 calls in 20 rounds
        (Pace(30.0, 2, 4), 40 * 30 / 3600),  # two at a time
        (Pace(30.0, 256, 4, requests_per_minute=4.0), 20 / 60),
        (Pace(30.0, 256, 4, tokens_per_minute=400.0), 80 / 60),
    ],
)
def test_the_hours_are_those_of_the_tightest_bound(pace: Pace, hours: float) -> None:
    assert plan_of([10] * 8, 800, pace=pace).least.hours == pytest.approx(hours)


def test_refusals_stand_in_the_order_of_the_filters_and_surplus_is_none() -> None:
    refused = Counter(
        {("novelty", "near_duplicate"): 30, ("length", "too_short"): 5, ("length", "too_long"): 5, ("target", "surplus"): 7}
    )
    plan = plan_of([10] * 8, 800, {"candidates": 127, "refused": refused})
    assert plan.refused == {"length": 10, "novelty": 30}
    assert plan.candidates == 120
    out = io.StringIO()
    print_plan(Console(file=out, width=120), plan)
    assert "8.3%" in out.getvalue()  # 10 of 120
    assert "27.3%" in out.getvalue()  # 30 of the 110 that were left


def test_a_cap_that_may_not_do_is_named() -> None:
    out = io.StringIO()
    print_plan(Console(file=out, width=160), plan_of([10] * 8, 800, cap=39.0, currency="USD"))
    assert "budget.max_money = 39.00 USD may not be enough" in out.getvalue()


def test_nothing_accepted_is_nothing_to_plan_with() -> None:
    refused = Counter({("length", "too_short"): 9})
    with pytest.raises(
        InputError, match=r"2 calls gave 9 candidates and 0 rows: .*; most often refused by length: too_short \(9\)"
    ):
        plan_of([0, 0], 10, {"candidates": 9, "refused": refused})


# --- the screen ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"), [(45, "45 s"), (100, "2 min"), (3 * 3600 + 1200, "3 h 20 min"), (52 * 3600, "2 d 4 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_screen_says_it_all() -> None:
    now = [0.0]
    out = io.StringIO()
    screen = Screen(Console(file=out, width=200), 400, "USD", now=lambda: now[0])
    run, _ = played([10] * 8, candidates=120, refused=Counter({("novelty", "x"): 40}), unparsed=Counter({"truncated": 3}))
    with screen:
        screen.stage(Run(), 5, "evolve:deepen", 8)
        now[0] = 20.0
        screen.round(run)
        screen.stage(run, 6, "tasks", 8)
        screen.teacher(
            Progress(
                done=3,
                total=8,
                in_flight=41,
                waiting=3,
                backing_off=2,
                tokens=1_204_331,
                money=1.234,
                cap=5.0,
                rate_waits=14,
                rate_seconds=32.0,
                retries=4,
                limit=64,
            )
        )
        assert screen.lines() == [
            "rows   80 of 400 (20%)   round 6, tasks: 3 of 8 replies   about 80 s left",
            "yield  66.7% of 120 candidates; refused: novelty 40; not parsed 3",
            "teacher 41 in flight of 64, 3 wait for a rate, 2 to be asked again; 14 rate waits (32 s); 1,204,331 tokens; 1.23 of 5.00 USD",
        ]
    assert len(out.getvalue().splitlines()) == 1, "one line in ten seconds where there is no terminal"


def test_the_screen_redraws_on_a_terminal() -> None:
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=True, width=100), 400, "USD") as screen:
        screen.round(Run())
    assert "rows   0 of 400 (0%)" in out.getvalue()


def test_yields_leaves_surplus_out() -> None:
    tally = Tally(candidates=100, refused=Counter({("target", "surplus"): 20, ("length", "too_short"): 30}))
    assert yields(tally, 50) == "62.5% of 80 candidates; refused: length 30"
    assert yields(Tally(), 0) == "no candidates yet"
