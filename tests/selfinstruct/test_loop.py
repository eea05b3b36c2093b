"""The laws of a run: replay = run, resume = straight, whatever the concurrency, exactly N rows, paid once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.desk import Desk, recorded_requests
from selfinstruct.job import prepare
from selfinstruct.loop import Exhausted, Job, generate, wanted
from selfinstruct.recipe import load_recipe
from selfinstruct.records import Completion, Request
from selfinstruct.store import Run, Store, Tally, write_json
from selfinstruct.strategies.base import Reply
from selfinstruct.teacher.faults import BudgetReached
from selfinstruct.teacher.ledger import Entry, Ledger
from sft.errors import DataError, RunError
from tests.selfinstruct.teachers import Synthetic, completion, write_recipe

CLASSIC = {
    "strategy": {"kind": "classic", "requests_per_round": 4},
    "filters": [
        {"kind": "length"},
        {"kind": "blacklist"},
        {"kind": "contradiction"},
        {"kind": "exact_duplicate"},
        {"kind": "novelty"},
    ],
}
EVOLVE = {"strategy": {"kind": "evolve", "requests_per_round": 60, "generations": 6}}
CRITIC = {"filters": [{"kind": "length"}, {"kind": "novelty"}, {"kind": "critic", "minimum": 4.0}]}
JSON = {"strategy": {"kind": "alpaca", "requests_per_round": 4, "format": "json", "prompt": "alpaca_json_en"}}
KINDS: dict[str, dict[str, Any]] = {"alpaca": {}, "json": JSON, "classic": CLASSIC, "evolve": EVOLVE, "critic": CRITIC}
each = pytest.mark.parametrize("kind", KINDS)


class Quiet:
    """Nobody looks on."""

    def stage(self, run: Run, number: int, purpose: str, requests: int) -> None: ...

    def round(self, run: Run) -> None: ...


class Paying(Desk):
    """A desk that writes what its teacher answers into the ledger, and asks only for what is not there."""

    def __init__(self, ledger: Ledger, teacher: Synthetic) -> None:
        super().__init__(ledger)
        self.payee = teacher

    async def ask(self, requests: Sequence[Request]) -> list[Reply]:
        from selfinstruct.teacher.dispatch import complete_all

        kept = _Kept(self.payee)
        try:
            await complete_all(kept, [request for request in requests if request.id not in self.ledger])
        finally:
            self.ledger.put_many(kept.entries)  # one sync for all
        return await self.held(requests)


class _Kept:
    """Remembers what was answered, in the order in which it was."""

    def __init__(self, inner: Synthetic) -> None:
        self.inner, self.width = inner, inner.width
        self.entries: list[Entry] = []

    async def complete(self, request: Request) -> Completion:
        found = await self.inner.complete(request)
        self.entries.append(Entry(request, found))
        return found


def job_of(path: Path, *overrides: str) -> Job:
    return prepare(load_recipe(path, overrides)[0]).job


def play(job: Job, folder: Path, teacher: Synthetic) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger.open(folder / "ledger.jsonl") as ledger:
        desk = Paying(ledger, teacher)
        return asyncio.run(generate(job, desk.ask, desk.held, Store(folder), Quiet()))


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("dataset.jsonl", "candidates.jsonl")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- exactly N rows ------------------------------------------------------------------------------------------------------


@each
def test_a_run_ends_with_exactly_the_rows_wanted(kind: str, tmp_path: Path) -> None:
    job = job_of(write_recipe(tmp_path, **KINDS[kind]))
    run = play(job, tmp_path / "a", Synthetic())
    rows, judged = lines(tmp_path / "a" / "dataset.jsonl"), lines(tmp_path / "a" / "candidates.jsonl")
    assert len(rows) == len(run.rows) == 150
    assert len({row["id"] for row in rows}) == 150
    ids = [line["candidate"]["id"] for line in judged if "candidate" in line]
    assert len(set(ids)) == len(ids) == run.tally.candidates
    assert [line["candidate"]["id"] for line in judged if line.get("verdict", {}).get("accepted")] == [
        row["id"] for row in rows
    ]
    refused = Counter(line["verdict"]["filter"] for line in judged if "verdict" in line and not line["verdict"]["accepted"])
    assert refused.total() + len(rows) == len(ids)
    assert refused["target"] == sum(count for (name, _), count in run.tally.refused.items() if name == "target")


@each
def test_every_row_names_what_it_came_of(kind: str, tmp_path: Path) -> None:
    play(job_of(write_recipe(tmp_path, **KINDS[kind])), tmp_path / "a", Synthetic())
    with Ledger.open(tmp_path / "a" / "ledger.jsonl", read_only=True) as ledger:
        held = {entry.request.id: entry for entry in ledger.iterate()}
        spent = sum(e.completion.cost for e in held.values() if e.completion is not None)
    share = 0.0
    for row in lines(tmp_path / "a" / "dataset.jsonl"):
        lineage = row["lineage"]
        first = held[(lineage["via"] or [lineage["request"]])[0]].request
        assert lineage["request"] in held
        assert set(lineage["via"]) <= set(held)
        assert lineage["demonstrations"] == list(first.demonstrations) != []
        assert (lineage["round"], lineage["prompt_fingerprint"]) == (first.round, first.prompt_fingerprint)
        assert lineage["teacher"] == "synthetic"
        if kind == "evolve":
            assert lineage["parent"] == first.demonstrations[0]
            assert f"evolve:{lineage['operator']}" == first.purpose
            assert [held[id_].request.purpose for id_ in (*lineage["via"][1:], lineage["request"])] == ["gain", "answer"]
        share += lineage["cost"]
    assert 0 < share <= spent * (1 + 1e-9)


# --- concurrency, replay, resume -------------------------------------------------------------------------------------------


@each
def test_concurrency_changes_no_byte(kind: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **KINDS[kind])
    play(job_of(path), tmp_path / "one", Synthetic())
    play(job_of(path), tmp_path / "many", Synthetic(scatter=True))
    assert files(tmp_path / "one") == files(tmp_path / "many")


@each
def test_replay_is_the_run(kind: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **KINDS[kind])
    play(job_of(path), tmp_path / "a", Synthetic(scatter=True))
    job = job_of(path)
    with Ledger.open(tmp_path / "a" / "ledger.jsonl", read_only=True) as ledger:
        desk = Desk(ledger)
        job = replace(job, recorded=recorded_requests(ledger, job.strategy.purpose))
        asyncio.run(generate(job, desk.ask, desk.held, Store(tmp_path / "b"), Quiet()))
    assert files(tmp_path / "a") == files(tmp_path / "b")


@each
def test_a_run_cut_anywhere_and_gone_on_with_is_the_straight_run(kind: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **KINDS[kind])
    play(job_of(path), tmp_path / "straight", Synthetic())
    asked: Counter[str] = Counter()
    cuts = 0
    for most in (0, 1, 3, 5, 8, 20, 60, 100, None):
        teacher = Synthetic(most)
        try:
            play(job_of(path), tmp_path / "cut", teacher)
        except BudgetReached:
            cuts += 1
        asked += teacher.asked
    assert cuts >= 3
    assert files(tmp_path / "cut") == files(tmp_path / "straight")
    assert set(asked.values()) == {1}, "a request was paid for twice"


def test_what_a_stopped_round_already_gave_is_in_the_data_set(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(BudgetReached):
        play(job_of(path), tmp_path / "a", Synthetic(most=6))
    rows = lines(tmp_path / "a" / "dataset.jsonl")
    assert {row["lineage"]["round"] for row in rows} == {0, 1}
    assert len({row["lineage"]["request"] for row in rows}) == 6
    assert json.loads((tmp_path / "a" / "state.json").read_text())["round"] == 1


@pytest.mark.parametrize("cut", [0, 1, 100, 5000])
def test_a_kill_between_the_bytes_of_a_round_changes_nothing(tmp_path: Path, cut: int) -> None:
    """After the append and before the state: what stands behind the committed bytes is thrown away."""
    path = write_recipe(tmp_path)
    play(job_of(path), tmp_path / "a", Synthetic())
    whole = files(tmp_path / "a")
    with pytest.raises(BudgetReached):
        play(job_of(path), tmp_path / "b", Synthetic(most=4))
    state = json.loads((tmp_path / "b" / "state.json").read_text())
    data = (tmp_path / "b" / "candidates.jsonl").read_bytes()
    assert len(data) == state["bytes"]
    (tmp_path / "b" / "candidates.jsonl").write_bytes(data + b'{"candidate": {"id": "torn' * 300)
    with (tmp_path / "b" / "candidates.jsonl").open("r+b") as file:
        file.truncate(len(data) + cut)
    play(job_of(path), tmp_path / "b", Synthetic())
    assert files(tmp_path / "b") == whole


def test_a_shortened_candidates_file_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    play(job_of(path), tmp_path / "a", Synthetic())
    file = tmp_path / "a" / "candidates.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"shorter than state.json says; delete .*state.json and run again"):
        play(job_of(path), tmp_path / "a", Synthetic())
    (tmp_path / "a" / "state.json").unlink()
    before = (tmp_path / "a" / "dataset.jsonl").read_bytes()
    teacher = Synthetic()
    play(job_of(path), tmp_path / "a", teacher)
    assert (tmp_path / "a" / "dataset.jsonl").read_bytes() == before
    assert not teacher.asked


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_the_novelty_index_is_made_again_where_it_is_lost(tmp_path: Path, damage: str) -> None:
    path = write_recipe(tmp_path)
    play(job_of(path), tmp_path / "straight", Synthetic())
    with pytest.raises(BudgetReached):
        play(job_of(path), tmp_path / "a", Synthetic(most=4))
    index = tmp_path / "a" / "novelty.bin"
    if damage == "missing":
        index.unlink()
    elif damage == "cut":
        index.write_bytes(index.read_bytes()[:100])
    else:
        index.write_bytes((tmp_path / "straight" / "novelty.bin").read_bytes())
    play(job_of(path), tmp_path / "a", Synthetic())
    assert files(tmp_path / "a") == files(tmp_path / "straight")


# --- more rows, other filters ----------------------------------------------------------------------------------------------


def test_more_rows_ask_only_for_what_is_missing(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    first, second, straight = Synthetic(), Synthetic(), Synthetic()
    play(job_of(path), tmp_path / "a", first)
    play(job_of(path, "output.rows=300"), tmp_path / "a", second)
    play(job_of(path, "output.rows=300"), tmp_path / "b", straight)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert first.asked + second.asked == straight.asked


@each
def test_a_replay_with_other_filters_judges_what_was_asked_then(kind: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **KINDS[kind])
    play(job_of(path), tmp_path / "a", Synthetic())
    stricter = write_recipe(tmp_path, **{**KINDS[kind], "filters": [{"kind": "length", "min_words": 22}, {"kind": "novelty"}]})
    job = job_of(stricter)
    with Ledger.open(tmp_path / "a" / "ledger.jsonl", read_only=True) as ledger:
        desk = Desk(ledger)
        job = replace(job, recorded=recorded_requests(ledger, job.strategy.purpose))
        run = asyncio.run(generate(job, desk.ask, desk.held, Store(tmp_path / "b"), Quiet()))
    assert 0 < len(run.rows) < 150
    before = {
        line["candidate"]["id"]: line["candidate"] for line in lines(tmp_path / "a" / "candidates.jsonl") if "candidate" in line
    }
    for row in lines(tmp_path / "b" / "dataset.jsonl"):
        assert len(row["instruction"].split()) >= 22
        assert row["instruction"] == before[row["id"]]["instruction"]


# --- ends ------------------------------------------------------------------------------------------------------------------


def test_the_last_rounds_ask_for_no_more_than_is_likely_needed() -> None:
    run = Run(tally=Tally(asked=100))
    assert wanted(run, 1000, 64) == 64
    run.rows = [None] * 800  # type: ignore[list-item]
    assert wanted(run, 1000, 64) == 28  # 200 rows / 8 a call * 1.1, rounded up
    assert wanted(run, 801, 64) == 1
    assert wanted(run, 10**6, 64) == 64


def test_a_run_without_yield_stops_and_says_what_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, filters=[{"kind": "length", "min_words": 100}])
    with pytest.raises(Exhausted, match=r"no row in the last 3 rounds \(0 so far\); most often: length: too_short"):
        play(job_of(path, "output.stall_rounds=3"), tmp_path / "a", Synthetic())
    assert (tmp_path / "a" / "dataset.jsonl").read_bytes() == b""


def test_a_set_evolved_to_its_end_says_so(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, strategy={"kind": "evolve", "generations": 1})
    with pytest.raises(Exhausted, match=r"of 5000 rows, and nothing is left to ask; raise strategy.generations"):
        play(job_of(path, "output.rows=5000"), tmp_path / "a", Synthetic())


def test_rounds_may_be_bounded(tmp_path: Path) -> None:
    run = play(job_of(write_recipe(tmp_path), "output.max_rounds=2", "output.rows=9000"), tmp_path / "a", Synthetic())
    assert run.round == 2
    assert run.tally.asked == 8


def test_candidates_survive_text_that_utf8_cannot_carry(tmp_path: Path) -> None:
    from selfinstruct.records import Failure
    from selfinstruct.store import item_of

    store = Store(tmp_path / "a")
    store.restore("x")
    odd = Failure("r", "bad_request", "lone \ud800 surrogate")
    plain = Failure("r", "bad_request", "中文")
    store.append([odd, plain])
    raw = store.candidates.read_text(encoding="utf-8").splitlines()
    assert "中文" in raw[1]
    assert [item_of(json.loads(line)) for line in raw] == [odd, plain]


def test_a_completion_is_the_same_every_time() -> None:
    """The teacher of these tests is a function: else they would prove nothing."""
    from selfinstruct.records import Message, Sampling

    request = Request(model="m", messages=(Message("user", "x"),), sampling=Sampling(10))
    assert completion(request) == completion(request)


def test_a_record_that_the_disk_refuses_says_how_to_go_on(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"a": "é"})
    assert (tmp_path / "state.json").read_text(encoding="utf-8") == '{\n "a": "é"\n}'
    with pytest.raises(RunError, match=r"none/state\.json: cannot be written: No such file or directory; the ledger is whole"):
        write_json(tmp_path / "none" / "state.json", {})
