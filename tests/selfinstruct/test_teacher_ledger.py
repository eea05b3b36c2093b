"""The paying teacher and its ledger: equal requests, order, cancelling, a full disk, replays."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.records import Completion
from selfinstruct.teacher.dispatch import Progress, Stopped, complete_all
from selfinstruct.teacher.faults import RequestFailed
from selfinstruct.teacher.journal import Journal
from selfinstruct.teacher.ledger import Ledger, LedgerBroken
from selfinstruct.teacher.replay import ReplayTeacher
from sft.errors import InputError, TeacherError
from tests.selfinstruct.bench import Bench, asked, bench
from tests.selfinstruct.fault_server import FaultServer


def test_equal_requests_are_asked_once_and_results_keep_their_order(tmp_path: Path) -> None:
    requests = [*asked(20), *asked(20)[::-1], *asked(5)]

    async def use(bench: Bench) -> None:
        shown: list[Progress] = []
        results = await complete_all(bench.teacher, requests, progress=shown.append, every=0.001)
        assert [result.request_id for result in results] == [request.id for request in requests]
        assert bench.server.stats.requests == 20
        assert (shown[-1].done, shown[-1].total, shown[-1].in_flight, shown[-1].cap) == (45, 45, 0, None)
        assert shown[-1].money == pytest.approx(sum(one.cost for one in results[:20] if isinstance(one, Completion)))

    bench(tmp_path, FaultServer(delay=0.005), use)


def test_a_cancelled_round_keeps_what_came_and_counts_what_was_open(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        running = asyncio.ensure_future(complete_all(bench.teacher, asked(300)))
        while bench.server.stats.paid.total() < 100:
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    server = FaultServer(delay=0.002)
    bench(tmp_path, server, use, concurrency=16)
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        lost = Journal(tmp_path / "journal.jsonl", ledger.__contains__)
        assert len(ledger) >= 100 - 16
        assert server.stats.paid.total() <= len(ledger) + lost.spent.lost_requests
        lost.close()


def test_a_reply_that_came_is_written_however_the_round_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, real = threading.Event(), Ledger._append

    def slow(self: Ledger, lines: list[bytes]) -> None:
        assert go_on.wait(20)
        real(self, lines)

    async def use(bench: Bench) -> None:
        monkeypatch.setattr(Ledger, "_append", slow)
        running = asyncio.ensure_future(complete_all(bench.teacher, asked(8)))
        while bench.server.stats.paid.total() < 8 or bench.teacher.endpoints.in_flight:  # all came, none is written
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        go_on.set()
        assert (bench.budget.spent.requests, bench.budget.spent.lost_requests, bench.budget.reserved_money) == (8, 0, 0)

    bench(tmp_path, FaultServer(delay=0.02), use)
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        assert all(request.id in ledger for request in asked(8))
        assert Journal(tmp_path / "journal.jsonl", ledger.__contains__).in_flight_at_kill == 0


def test_drain_lets_calls_under_way_end(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        running = asyncio.ensure_future(complete_all(bench.teacher, asked(300)))
        while bench.server.stats.paid.total() < 50:
            await asyncio.sleep(0.001)
        bench.teacher.drain()
        with pytest.raises(Stopped, match="interrupted; everything that was paid for is in the ledger"):
            await running
        assert len(bench.teacher.ledger) == bench.server.stats.paid.total() < 300

    bench(tmp_path, FaultServer(delay=0.002), use, concurrency=16)


def test_a_ledger_that_cannot_grow_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Ledger, lines: list[bytes]) -> None:
        raise LedgerBroken("the ledger cannot grow")

    async def use(bench: Bench) -> None:
        monkeypatch.setattr(Ledger, "_append", full)
        with pytest.raises(LedgerBroken, match="the ledger cannot grow"):
            await complete_all(bench.teacher, asked(100))
        assert bench.server.stats.requests <= 8

    bench(tmp_path, FaultServer(delay=0.005), use, concurrency=4)


def test_replay_answers_from_ledgers_alone(tmp_path: Path) -> None:
    async def use(bench: Bench) -> list[Any]:
        return await complete_all(bench.teacher, asked(30))

    recorded = bench(tmp_path, FaultServer(faults={"content_filter": 0.2}, in_a_row=1), use)

    async def again() -> None:
        teacher = ReplayTeacher([tmp_path])
        assert await complete_all(teacher, asked(30)) == recorded
        assert teacher.hits == 30
        with pytest.raises(
            TeacherError, match=r"the replay does not hold request [0-9a-f]{32} \(round 0, tasks, number 77\)"
        ) as caught:
            await teacher.complete(asked(1, first=77)[0])
        assert not isinstance(caught.value, RequestFailed)
        teacher.close()

    asyncio.run(again())
    with pytest.raises(InputError, match="a replay needs at least one ledger"):
        ReplayTeacher([])
    with pytest.raises(InputError, match="the ledger cannot be read: No such file"):
        ReplayTeacher([tmp_path / "none.jsonl"])
