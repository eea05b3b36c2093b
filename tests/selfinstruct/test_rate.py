"""Rates in virtual time: limits are kept, hints are heeded, and the number in flight finds what the server can take."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct.teacher.budget import Price
from selfinstruct.teacher.endpoints import Endpoint, Endpoints
from selfinstruct.teacher.rate import Bucket, Gate
from selfinstruct.teacher.sections import RateSection
from tests.selfinstruct.timing import loop_clock, virtual


class Server:
    """Takes ``base`` seconds a request up to ``room`` at once; beyond, slows down in proportion, ``worse`` times over."""

    def __init__(self, room: int, base: float = 1.0, worse: float = 0.0, refuse: bool = False) -> None:
        self.room, self.base, self.worse, self.refuse = room, base, worse, refuse
        self.active = self.peak = 0

    async def work(self) -> bool:
        """Whether it answered."""
        if self.refuse and self.active >= self.room:
            await asyncio.sleep(0.01)
            return False
        self.active += 1
        self.peak = max(self.peak, self.active)
        over = max(1.0, self.active / self.room)
        await asyncio.sleep(self.base * over ** (1 + self.worse))
        self.active -= 1
        return True


async def drive(server: Server, gate: Gate, count: int, headers: Mapping[str, str] | None = None) -> list[float]:
    """``count`` requests through one gate; when each left."""
    clock, left = gate.clock, []
    unused: Any = None
    endpoints = Endpoints([Endpoint("one", unused, Price(0, 0), gate)], clock)

    async def one() -> None:
        while True:
            _, departure = await endpoints.enter(10)
            left.append(departure.at)
            answered = await server.work()
            if answered:
                gate.answered(departure, 10, headers or {})
            else:
                gate.failed(departure, overloaded=True, retry_after=None, headers={})
            endpoints.left()
            if answered:
                return
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(count)))
    return left


def test_a_server_with_room_is_kept_full() -> None:
    async def main() -> tuple[Server, float]:
        server, gate = Server(room=10_000), Gate(RateSection(max_concurrency=1024, start_concurrency=16), loop_clock())
        await drive(server, gate, 8_000)
        return server, asyncio.get_running_loop().time()

    server, took = virtual(main())
    assert server.peak == 1024
    assert took < 8_000 / 1024 + 8  # six doublings, then full rounds of one second


def test_a_server_that_refuses_is_asked_about_what_it_takes() -> None:
    async def main() -> tuple[Gate, int, float]:
        gate = Gate(RateSection(max_concurrency=1024, start_concurrency=16), loop_clock())
        left = await drive(Server(room=40, refuse=True), gate, 4000)
        return gate, len(left), asyncio.get_running_loop().time()

    gate, asked, took = virtual(main())
    assert took < 2.0 * 4000 / 40
    assert asked < 1.25 * 4000
    assert gate.limit < 2 * 40


def test_where_more_at_once_is_slower_it_goes_back() -> None:
    async def main() -> tuple[float, float]:
        gate = Gate(RateSection(max_concurrency=4096, start_concurrency=16), loop_clock())
        await drive(Server(room=64, worse=1.0), gate, 5_000)
        return gate.limit, asyncio.get_running_loop().time()

    limit, took = virtual(main())
    assert limit < 1.5 * 64
    assert took < 3.0 * 5_000 / 64


def test_a_flat_server_is_not_starved_by_the_search() -> None:
    async def main() -> float:
        gate = Gate(RateSection(max_concurrency=512, start_concurrency=16), loop_clock())
        await drive(Server(room=128), gate, 6_400)  # beyond 128, more at once is neither better nor worse
        return asyncio.get_running_loop().time()

    assert virtual(main()) < 1.3 * 50


def test_buckets_keep_requests_and_tokens_per_minute() -> None:
    async def main(rate: RateSection) -> list[float]:
        return await drive(Server(room=10_000, base=0.1), Gate(rate, loop_clock()), 600)

    for rate, most in ((RateSection(requests_per_minute=120), 120 + 2 + 1), (RateSection(tokens_per_minute=1200), 120 + 2 + 1)):
        left = virtual(main(rate))
        for start in left:
            assert sum(start <= moment < start + 60 for moment in left) <= most
        assert left[-1] - left[0] < 600 / 120 * 60 + 1


@given(st.floats(1, 1e6), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e5)), max_size=40))
def test_a_bucket_never_gives_more_than_its_rate(per_minute: float, takings: list[tuple[float, float]]) -> None:
    bucket, now, total, last = Bucket(per_minute), 0.0, 0.0, 0.0
    for pause, amount in takings:
        now += pause
        while (delay := bucket.delay(now)) > 0:
            now += delay
        bucket.take(amount)
        total, last = total + amount, amount
        assert total - last <= bucket.burst + per_minute / 60 * now + 1e-3 * per_minute + 1


def test_retry_after_closes_the_gate_for_all() -> None:
    async def main() -> list[float]:
        clock = loop_clock()
        gate = Gate(RateSection(), clock)
        gate.failed(gate.enter(10), overloaded=True, retry_after=30.0, headers={})
        return await drive(Server(room=100), gate, 5)

    assert min(virtual(main())) >= 30.0


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_headers_are_spent_then_the_reset_is_waited_for(kind: str) -> None:
    async def main() -> list[float]:
        clock = loop_clock()
        gate = Gate(RateSection(start_concurrency=16), clock)
        gate.heed({f"x-ratelimit-remaining-{kind}": "3" if kind == "requests" else "30", f"x-ratelimit-reset-{kind}": "1m30s"})
        return sorted(await drive(Server(room=100), gate, 6))

    left = virtual(main())
    assert [moment < 1 for moment in left] == [True] * 3 + [False] * 3
    assert left[3] >= 90


def test_replies_of_one_round_trip_cut_once() -> None:
    async def main() -> tuple[float, int]:
        gate = Gate(RateSection(start_concurrency=64), loop_clock())
        together = [gate.enter(1) for _ in range(64)]
        await asyncio.sleep(1)
        for one in together:
            gate.failed(one, overloaded=True, retry_after=None, headers={})
        return gate.limit, gate.cuts

    assert virtual(main()) == (32.0, 1)


def test_a_slow_reply_cuts() -> None:
    async def main() -> float:
        gate = Gate(RateSection(start_concurrency=8, slow_after=5.0), loop_clock())
        left = gate.enter(1)
        await asyncio.sleep(6)
        gate.answered(left, 10, {})
        return gate.limit

    assert virtual(main()) == 4.0


def test_work_goes_by_weight() -> None:
    async def main() -> list[int]:
        clock, unused = loop_clock(), None
        ends: Any = [
            Endpoint(name, unused, Price(0, 0), Gate(RateSection(max_concurrency=400, start_concurrency=400), clock), weight)  # type: ignore[arg-type]
            for name, weight in (("a", 3.0), ("b", 1.0))
        ]
        endpoints = Endpoints(ends, clock)
        for _ in range(400):
            await endpoints.enter(1)
        return [end.gate.in_flight for end in ends]

    assert virtual(main()) == [300, 100]
