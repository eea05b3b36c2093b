"""A server that answers: nothing asked twice, nothing lost, whatever it does; and what stops the run."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sft.cli import app
from sft.data.questions import Question
from sft.errors import InputError, RunError
from sft.run.answer import Settings, answer_file
from sft.run.endpoint import ATTEMPTS, FUTILE, EndpointAnswerer
from sft.run.engines import Server, run_answer
from tests.cli import refused
from tests.selfinstruct.fault_server import Body, FaultServer

KEY = "sk-test-0123456789"


@contextmanager
def serving(server: FaultServer) -> Iterator[str]:
    """The server on a loop of its own; its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


class Time:
    """Sleeping moves it."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def asking(url: str, time: Time | None = None, **options: Any) -> EndpointAnswerer:
    time = time or Time()
    return EndpointAnswerer(url, "big", sleep=time.sleep, clock=lambda: time.now, **options)


def echo(body: Body, digest: str) -> str:
    return "/".join(message["content"] for message in body["messages"])


def questions(count: int) -> list[Question]:
    kinds = ("math", "writing", "stem")
    return [
        Question(i, kinds[i % 3], (f"Question {i}?", f"And {i}?") if i % 4 == 0 else (f"Question {i}?",)) for i in range(count)
    ]


def said(path: Path) -> dict[Any, Any]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({record["answer_id"] for record in found}) == len(found)
    return {record["question_id"]: record["choices"][0] for record in found}


SETTINGS = Settings("big", "http://here/v1", 64, None, "big", "endpoint")


def test_turns_go_with_their_history_each_at_the_temperature_of_its_category(tmp_path: Path) -> None:
    server = FaultServer(text=echo, keep=True)
    asked, out = questions(6), tmp_path / "out.jsonl"
    with serving(server) as url:
        assert answer_file(asking(url), asked, SETTINGS, out) == 6
    found = said(out)
    assert list(found) == [0, 1, 2, 3, 4, 5]
    assert found[0] == {"index": 0, "turns": ["Question 0?", "Question 0?/Question 0?/And 0?"], "finish": ["stop", "stop"]}
    assert found[1]["turns"] == ["Question 1?"]
    last = next(body for body in server.stats.bodies if len(body["messages"]) == 3 and "0" in body["messages"][0]["content"])
    assert last == {
        "model": "big",
        "messages": [
            {"role": "user", "content": "Question 0?"},
            {"role": "assistant", "content": "Question 0?"},
            {"role": "user", "content": "And 0?"},
        ],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 64,
    }
    heat = {body["messages"][0]["content"]: body["temperature"] for body in server.stats.bodies}
    assert heat == {f"Question {i}?": (0.0, 0.7, 0.1)[i % 3] for i in range(6)}
    seeds = [body["seed"] for body in server.stats.bodies if body["temperature"] > 0]
    assert len(set(seeds)) == len(seeds) == sum(body["temperature"] > 0 for body in server.stats.bodies)
    assert not list(tmp_path.glob(".*"))


def test_no_more_are_under_way_than_allowed(tmp_path: Path) -> None:
    server = FaultServer(delay=0.02)
    with serving(server) as url:
        answer_file(asking(url, concurrency=3), questions(12), SETTINGS, tmp_path / "out.jsonl")
    assert server.stats.peak == 3


def test_faults_that_pass_are_asked_again_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    shares = {"429": 0.2, "500": 0.2, "disconnect": 0.1, "cut_json": 0.1, "cut_body": 0.1, "wrong_schema": 0.1}
    server, time = FaultServer(faults=shares, text=echo), Time()
    asked, out = questions(40), tmp_path / "out.jsonl"
    with serving(server) as url:
        assert answer_file(asking(url, time), asked, SETTINGS, out) == 40
    assert {i: choice["turns"][0] for i, choice in said(out).items()} == {i: f"Question {i}?" for i in range(40)}
    assert set(server.stats.faults) == set(shares)
    assert set(server.stats.paid.values()) == {1}
    assert time.slept


def test_retry_after_is_obeyed_by_all(tmp_path: Path) -> None:
    server, time = FaultServer(faults={"429_after": 1.0}, in_a_row=1, text=echo), Time()
    with serving(server) as url:
        answer_file(asking(url, time, concurrency=1), questions(2), SETTINGS, tmp_path / "out.jsonl")
    assert server.stats.faults == {"429_after": 3}
    assert len(time.slept) == 3
    assert all(7.0 < wait < 8.0 for wait in time.slept)


def test_what_fails_for_good_is_counted_and_everything_else_is_kept(tmp_path: Path) -> None:
    def text(body: Body, digest: str) -> str:
        return echo(body, digest)

    class Moody(FaultServer):
        well = False

        def fault_for(self, digest: str) -> str:
            body = self.stats.bodies[-1]
            if self.well:
                return ""
            said = body["messages"][-1]["content"]
            return "bad_request" if said == "Question 3?" else "500" if said == "And 4?" else ""

    server, out = Moody(text=text, keep=True), tmp_path / "out.jsonl"
    asked = questions(8)
    with serving(server) as url:
        with pytest.raises(RunError) as stopped:
            answer_file(asking(url, concurrency=1), asked, SETTINGS, out)
        assert str(stopped.value).splitlines() == [
            "2 of 8 questions got no answer:",
            "  bad_request: 1, such as question 3: temperature is out of range",
            f"  http_500: 1, such as question 4: {ATTEMPTS} attempts, the last one: The server had an error",
            f"The 6 answers that came are in {out}; the same command asks the others again.",
        ]
        assert list(said(out)) == [0, 1, 2, 5, 6, 7]
        before, server.well = server.stats.requests, True
        assert answer_file(asking(url), asked, SETTINGS, out) == 2
        # question 3, and the second turn of question 4: its first was answered and paid for before
        assert server.stats.requests - before == 2
    assert list(said(out)) == list(range(8))
    assert said(out)[4]["turns"] == ["Question 4?", "Question 4?/Question 4?/And 4?"]
    assert set(server.stats.paid.values()) == {1}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("401", InputError, r"refuses: unauthorized: .*name the variable of its key: --key-variable"),
        ("403", InputError, r"refuses: forbidden: Country not supported; name the variable"),
        ("quota", RunError, r"refuses: insufficient_quota: .*; what was answered is kept, and the same command goes on"),
    ],
)
def test_a_fault_that_concerns_all_stops_the_run(tmp_path: Path, fault: str, kind: type[Exception], message: str) -> None:
    server = FaultServer(always=fault)
    with serving(server) as url, pytest.raises(kind, match=message):
        answer_file(asking(url, concurrency=2), questions(30), SETTINGS, tmp_path / "out.jsonl")
    assert server.stats.requests <= 2


def test_a_server_that_answers_nothing_is_given_up(tmp_path: Path) -> None:
    server = FaultServer(always="bad_request")
    with (
        serving(server) as url,
        pytest.raises(RunError, match=f"{FUTILE} questions in a row failed, the last one: bad_request"),
    ):
        answer_file(asking(url, concurrency=1), questions(60), SETTINGS, tmp_path / "out.jsonl")
    assert server.stats.requests == FUTILE


def test_a_dead_address_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"disconnect: 1, such as question 1: 8 attempts, the last one: ConnectError"):
        answer_file(asking("http://127.0.0.1:9/v1"), questions(2)[1:], SETTINGS, tmp_path / "out.jsonl")


def test_what_hangs_is_asked_again_after_the_timeout(tmp_path: Path) -> None:
    server = FaultServer(faults={"hang": 1.0}, in_a_row=1)
    with serving(server) as url:
        answer_file(asking(url, timeout=0.3), questions(2), SETTINGS, tmp_path / "out.jsonl")
    assert server.stats.faults == {"hang": 3}


def test_what_a_server_cannot_do_is_learnt_once(tmp_path: Path) -> None:
    server = FaultServer(always="renamed", text=echo, keep=True)
    with serving(server) as url:
        answer_file(asking(url, concurrency=1), questions(3), SETTINGS, tmp_path / "out.jsonl")
    assert ["max_tokens" in body for body in server.stats.bodies] == [True, False, False, False, False]

    class Seedless(FaultServer):
        def refusal(self, fault: str, body: Body) -> Any:
            error = {"message": "Extra inputs are not permitted: seed"}
            return (422, error, {}) if "seed" in body else None

    seedless = Seedless(keep=True)
    with serving(seedless) as url:
        answer_file(asking(url, concurrency=1), questions(3), SETTINGS, tmp_path / "seedless.jsonl")
    assert sum("seed" in body for body in seedless.stats.bodies) == 1


def test_an_answer_is_as_long_as_the_context_allows_and_says_so(tmp_path: Path) -> None:
    server, out = FaultServer(always="context", context=140, keep=True), tmp_path / "out.jsonl"
    with serving(server) as url:
        answer_file(asking(url), questions(2)[1:], SETTINGS, out)
    assert [body["max_tokens"] for body in server.stats.bodies] == [64, 40]
    full = FaultServer(always="context", context=90)
    with serving(full) as url, pytest.raises(RunError, match="context_too_long: 1, such as question 1: This model's maximum"):
        answer_file(asking(url), questions(2)[1:], SETTINGS, tmp_path / "full.jsonl")


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """Ctrl-C between two answers, and one that fell into the writing of a line and of a turn."""
    server, out, asked = FaultServer(text=echo), tmp_path / "out.jsonl", questions(9)
    with serving(server) as url:
        one = asking(url, concurrency=1)
        ask, count = one._ask, [0]

        async def killed(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == 7:  # the second turn of question 4
                raise KeyboardInterrupt
            return await ask(*arguments, **options)

        one._ask = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            answer_file(one, asked, SETTINGS, out)
        assert list(said(out)) == [0, 1, 2, 3]
        for path in (out, tmp_path / ".out.jsonl.turns"):
            with path.open("a", encoding="utf-8") as file:
                file.write('{"answer_id": "cut o')
        assert answer_file(asking(url), asked, SETTINGS, out) == 5
        with pytest.raises(InputError, match="under other settings"):
            answer_file(asking(url), asked, Settings("big", "http://there/v1", 64, None, "big", "endpoint"), out)
    assert list(said(out)) == list(range(9))
    assert set(server.stats.paid.values()) == {1}


# -- the command ----------------------------------------------------------------------------------------------------


def question_file(folder: Path) -> Path:
    path = folder / "questions.jsonl"
    path.write_text('{"question_id": 1, "turns": ["One?", "Two?"], "category": "math"}\n', encoding="utf-8")
    return path


def test_the_command_and_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FaultServer(always="401", echo_key=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE_KEY", KEY)
    with serving(server) as url:
        command = ["answer", "org/big", str(question_file(tmp_path)), "--engine", "endpoint", "--base-url", url]
        shown = CliRunner().invoke(app, [*command, "--key-variable", "HERE_KEY"])
        assert isinstance(shown.exception, InputError)
        assert "(you sent Bearer [key]); the key in HERE_KEY is not taken" in str(shown.exception)
        assert KEY not in str(shown.exception)
        server.always = ""
        shown = CliRunner().invoke(app, [*command, "--concurrency", "2", "--timeout", "5"])
    assert shown.exit_code == 0, shown.output
    assert "answers/big.jsonl: 1 questions, 1 answered now" in shown.output
    record = json.loads((tmp_path / "answers" / "big.jsonl").read_text(encoding="utf-8"))
    assert record["model_id"] == "big"
    assert record["sampling"] == {
        "temperature": 0.0,
        "max_tokens": 1024,
        "template": url,
        "weights": "org/big",
        "engine": "endpoint",
    }
    assert KEY not in (tmp_path / "answers" / "big.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "tgi"], "--engine: 'tgi' is none of transformers, vllm, endpoint"),
        (["--engine", "endpoint"], "--engine endpoint needs --base-url, such as http://127.0.0.1:8000/v1"),
        (["--base-url", "http://h/v1"], "--base-url: for --engine endpoint only, and this is --engine transformers"),
        (["--engine", "endpoint", "--base-url", "h/v1"], "--base-url must start with http:// or https:// and name a host"),
        (
            ["--engine", "endpoint", "--base-url", "http://u:p@h/v1"],
            "--base-url must not hold credentials, a query or a fragment; name the key's variable in --key-variable",
        ),
        (
            ["--engine", "endpoint", "--base-url", "http://h/v1", "--key-variable", "sk-1"],
            "--key-variable must be the name of an environment variable, never the key itself",
        ),
        (
            ["--engine", "endpoint", "--base-url", "http://h/v1", "--key-variable", "NOT_SET"],
            "the key of http://h/v1 is missing: set the environment variable NOT_SET, or leave --key-variable out for a server that wants none",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["answer", "m", str(question_file(tmp_path)), *options], monkeypatch, capsys) == f"{said}\n"


def test_options_of_a_server_are_named_as_they_are_typed() -> None:
    assert Server("u", "k", 2, 3.0).given() == {"--base-url": "u", "--key-variable": "k", "--concurrency": 2, "--timeout": 3.0}
    assert Server().given() == {}
    with pytest.raises(InputError, match=r"^--concurrency, --timeout: for --engine endpoint only, and this is --engine vllm$"):
        run_answer(
            "m",
            Path("q"),
            out=None,
            name=None,
            max_tokens=1,
            temperature=None,
            engine="vllm",
            server=Server(None, None, 2, 3.0),
        )


@pytest.mark.parametrize("address", ["http://host:port/v1", "http://host:99999/v1", "http://[::1/v1"])
def test_an_address_without_a_sound_port_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="--base-url is no address: "):
        EndpointAnswerer(address, "m")
