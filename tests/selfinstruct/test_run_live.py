"""Whole runs through the real client against the local server that misbehaves: same bytes, paid once, within the cap, no key anywhere."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfinstruct.recipe import Recipe, load_recipe
from selfinstruct.run import replay, run
from sft.errors import InputError, TeacherError
from tests.selfinstruct.fault_server import Body, FaultServer
from tests.selfinstruct.teachers import numbered, write_recipe

KEY = "sk-a-key-that-must-not-be-found-5150"
QUIET = Console(quiet=True)


def text_of(body: Body, digest: str) -> str:
    import random

    return numbered(random.Random(json.dumps(body["messages"])))[0]


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start servers on a loop of their own: a run has one itself."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started: list[FaultServer] = []

    def start(**knobs: Any) -> tuple[FaultServer, str]:
        server = FaultServer(text=text_of, **knobs)
        url = asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        started.append(server)
        return server, url

    yield start
    for server in started:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def live(tmp_path: Path, url: str, *overrides: str, **budget: Any) -> Recipe:
    teacher = {
        "model": "synthetic",
        "endpoints": [{"base_url": url, "key_variable": "TEST_TEACHER_KEY", "price": {"input": 1.0, "output": 10.0}}],
        "sampling": {"max_tokens": 2000},
        "retries": {"first_wait": 0.001, "longest_wait": 0.01, "timeout": 5.0, "attempts": 20},
    }
    return load_recipe(write_recipe(tmp_path, teacher=teacher, budget=budget), overrides)[0]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TEACHER_KEY", KEY)


def everything(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*") if path.is_file())


def test_faults_change_no_byte_and_nothing_is_paid_twice(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    calm, url = serve()
    run(live(tmp_path / "a", url), QUIET, report=False)
    faults = {"429": 0.2, "500": 0.2, "disconnect": 0.2, "cut_json": 0.2}
    wild, url = serve(faults=faults, echo_key=True)
    done = run(live(tmp_path / "b", url), QUIET, report=False)
    for name in ("dataset.jsonl", "candidates.jsonl"):
        assert (tmp_path / "a/run" / name).read_bytes() == (tmp_path / "b/run" / name).read_bytes()
    assert wild.stats.faults.total() > 5
    assert wild.stats.to_json()["paid_again"] == calm.stats.to_json()["paid_again"] == 0
    assert done.facts["errors"]
    assert done.facts["teacher"] == {"models": ["synthetic"], "endpoints": [url.split("//")[1].removesuffix("/v1")]}
    assert KEY not in everything(tmp_path)


def test_a_cap_on_money_stops_and_a_higher_one_goes_on(tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server, url = serve()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(TeacherError, match=r"the budget is reached: budget\.max_money is 0\.09"):
        run(live(tmp_path / "a", url, max_money=0.09), QUIET, report=False)
    about = json.loads((tmp_path / "a/run/run.json").read_text())
    assert about["status"] == "stopped"
    assert 0 < about["cost"]["money"] <= 0.09
    assert 0 < about["rows"] == len((tmp_path / "a/run/dataset.jsonl").read_text().splitlines()) < 150
    done = run(live(tmp_path / "a", url, max_money=9.0), QUIET, report=False)
    assert (len(done.run.rows), done.facts["sessions"], done.facts["interrupted"]) == (150, 2, 0)
    assert server.stats.to_json()["paid_again"] == 0
    run(live(tmp_path / "b", url), QUIET, report=False)
    assert (tmp_path / "a/run/dataset.jsonl").read_bytes() == (tmp_path / "b/run/dataset.jsonl").read_bytes()


def test_money_in_the_rows_is_the_money_spent_on_them(tmp_path: Path, serve: Any) -> None:
    _, url = serve()
    done = run(live(tmp_path, url), QUIET, report=False)
    judged = [json.loads(line) for line in (tmp_path / "run/candidates.jsonl").read_text(encoding="utf-8").splitlines()]
    requests = {line["candidate"]["request_id"] for line in judged if "candidate" in line}
    assert len(requests) == done.facts["usage"]["requests"]
    shares = sum(line["candidate"]["cost"] for line in judged if "candidate" in line)
    assert shares == pytest.approx(done.facts["cost"]["money"], rel=1e-9)


def test_authentication_errors_stop_at_once(tmp_path: Path, serve: Any) -> None:
    server, url = serve(always="401", echo_key=True)
    with pytest.raises(TeacherError, match="the endpoint refuses: unauthorized") as caught:
        run(live(tmp_path, url), QUIET, report=False)
    assert KEY not in str(caught.value)
    assert KEY not in everything(tmp_path)
    assert server.stats.requests <= 16
    assert json.loads((tmp_path / "run/run.json").read_text())["stopped_by"].startswith("the endpoint refuses: unauthorized")


def test_a_missing_key_is_refused_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_TEACHER_KEY")
    with pytest.raises(InputError, match="set the environment variable TEST_TEACHER_KEY"):
        run(live(tmp_path, "http://127.0.0.1:1/v1"), QUIET, report=False)


def test_the_batch_api_gives_the_same_rows(tmp_path: Path, serve: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    _, url = serve()
    run(live(tmp_path / "a", url), QUIET, report=False)
    batched, url = serve()
    done = run(live(tmp_path / "b", url, "teacher.batch={enabled: true, poll: 0.01}"), QUIET, report=False)
    assert batched.batches
    whole, half = (json.loads((tmp_path / name / "run/run.json").read_text())["cost"]["money"] for name in ("a", "b"))
    assert half == pytest.approx(whole / 2)
    assert done.facts["usage"]["requests"] == batched.stats.to_json()["paid"]
    rows = []
    for name in ("a", "b"):
        lines = (tmp_path / name / "run/dataset.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([(row["id"], row["instruction"], row["output"]) for row in map(json.loads, lines)])
    assert rows[0] == rows[1]


def test_a_run_of_a_live_teacher_replays_without_it(tmp_path: Path, serve: Any) -> None:
    server, url = serve()
    recipe = live(tmp_path, url)
    run(recipe, QUIET, report=False)
    asked = server.stats.requests
    replay(recipe, tmp_path / "again", tmp_path / "run", QUIET, report=False)
    assert server.stats.requests == asked
    for name in ("dataset.jsonl", "candidates.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
