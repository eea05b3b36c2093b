"""The vLLM engine against a stand-in: our ids, our stops, the parameters by the names of its present release, and the same answers."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sft.cli import app
from sft.data.conversation import Conversation, Turn
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError, RunError, VerificationError
from sft.model.servable import write_servable
from sft.run.answer import Asked, Said
from sft.run.engines import run_answer
from sft.run.generate import answer_batch
from sft.run.vllm_engine import VllmAnswerer
from tests.builders import byte_level, tiny_model

# Of vllm/sampling_params.py, LLM.__init__ and EngineArgs, as of 2026.
PARAMS = {"temperature", "seed", "max_tokens", "stop", "stop_token_ids", "ignore_eos"}
PARAMS |= {"skip_special_tokens", "spaces_between_special_tokens"}
ARGUMENTS = {"model", "tokenizer", "trust_remote_code", "dtype", "max_model_len", "generation_config", "seed"}
DTYPE = "float32"


class Stand:
    """``vllm`` with one model: greedy, token by token, until a stop id or the length, as ``ignore_eos`` has it."""

    def __init__(self, model: Any) -> None:
        self.model, self.tokenizer = model, byte_level()
        self.made: dict[str, Any] = {}
        self.asked: list[tuple[list[int], dict[str, Any]]] = []
        self.reason: str | None = None
        self.shift = 0
        self.module = ModuleType("vllm")
        stand = self

        class LLM:
            def __init__(self, **arguments: Any) -> None:
                assert set(arguments) == ARGUMENTS
                stand.made = arguments

            def generate(self, prompts: Sequence[Any], sampling_params: Sequence[Any], *, use_tqdm: bool = True) -> list[Any]:
                assert not use_tqdm
                assert all(set(prompt) == {"prompt_token_ids"} for prompt in prompts)
                ids = [prompt["prompt_token_ids"] for prompt in prompts]
                stand.asked += [(row, params.told) for row, params in zip(ids, sampling_params, strict=True)]
                return [stand.answer(row, params.told) for row, params in zip(ids, sampling_params, strict=True)]

        class SamplingParams:
            def __init__(self, **told: Any) -> None:
                assert set(told) == PARAMS
                self.told = told

        self.module.LLM, self.module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]

    @torch.no_grad()
    def answer(self, ids: list[int], told: dict[str, Any]) -> Any:
        made: list[int] = []
        reason = "length"
        while len(made) < told["max_tokens"]:
            logits = self.model(input_ids=torch.tensor([ids + made])).logits[0, -1]
            made.append(int(logits.argmax()))
            text = self.tokenizer.decode(made)
            if made[-1] in told["stop_token_ids"] or any(stop in text for stop in told["stop"]):
                reason = "stop"
                break
        out = SimpleNamespace(token_ids=made, finish_reason=self.reason or reason, text="never read")
        return SimpleNamespace(prompt_token_ids=[i + self.shift for i in ids], outputs=[out])


def stand_in(folder: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Stand, Any, Any, RowEncoder]:
    tokenizer = copy.deepcopy(byte_level())
    model = tiny_model(len(tokenizer), scale=0.3).eval()
    encoder = RowEncoder(tokenizer, load_template(template), "last")
    write_servable(model, tokenizer, encoder, folder, {})
    stand = Stand(model)
    monkeypatch.setitem(sys.modules, "vllm", stand.module)
    return stand, model, tokenizer, encoder


def asked(temperature: float = 0.0, room: int = 12) -> list[Asked]:
    texts = ["Hi", "Name three colours, and then some more of them, please.", "请写一首关于春天的诗。"]
    return [
        Asked(Conversation(f"question {i}", (Turn("user", text),), "test"), temperature, room, 100 + i)
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("template", ["chatml", "vicuna_v0", "alpaca"])
def test_ids_stops_and_answers_are_those_of_the_model_itself(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand, model, tokenizer, encoder = stand_in(tmp_path / "m", template, monkeypatch)
    engine = VllmAnswerer(str(tmp_path / "m"))
    assert stand.made == {
        "model": str(tmp_path / "m"),
        "tokenizer": str(tmp_path / "m"),
        "trust_remote_code": False,
        "dtype": DTYPE,
        "max_model_len": 512,
        "generation_config": "vllm",
        "seed": 0,
    }
    assert engine.answer(asked()) == answer_batch(model, tokenizer, encoder, asked())
    ids, strings = encoder.stops()
    assert bool(strings) == (template == "vicuna_v0")
    for (prompt, told), one in zip(stand.asked, asked(), strict=True):
        assert prompt == encoder.prompt_ids(one.conversation)
        assert told == {
            "temperature": 0.0,
            "seed": None,
            "max_tokens": 12,
            "stop": strings,
            "stop_token_ids": ids,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
    stand.asked.clear()
    engine.answer(asked(0.7))
    assert [(told["temperature"], told["seed"]) for _, told in stand.asked] == [(0.7, 100), (0.7, 101), (0.7, 102)]


def test_an_answer_has_the_room_that_its_prompt_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand, _, _, encoder = stand_in(tmp_path / "m", "chatml", monkeypatch)
    engine = VllmAnswerer(str(tmp_path / "m"))
    long = Asked(Conversation("question 7", (Turn("user", "word " * 80),), "test"), 0.0, 1000, 1)
    prompt = len(encoder.prompt_ids(long.conversation))
    stand.reason = "length"
    monkeypatch.setattr(
        stand,
        "answer",
        lambda ids, told: SimpleNamespace(
            prompt_token_ids=ids, outputs=[SimpleNamespace(token_ids=[300], finish_reason="length")]
        ),
    )
    engine.answer([long])
    assert stand.asked[0][1]["max_tokens"] == 512 - prompt
    over = Asked(Conversation("question 8", (Turn("user", "word " * 600),), "test"), 0.0, 8, 1)
    with pytest.raises(
        InputError, match=r"question 8: its prompt of \d+ tokens fills the 512 positions of the model; shorten it"
    ):
        engine.answer([over])


def test_what_vllm_does_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand, _, _, _ = stand_in(tmp_path / "m", "chatml", monkeypatch)
    engine = VllmAnswerer(str(tmp_path / "m"))
    with pytest.raises(InputError, match=r"--temperature 3: vLLM takes at most 2"):
        engine.answer(asked(3.0))
    stand.reason = "abort"
    with pytest.raises(RunError, match=r"question 0: vLLM ended the answer by 'abort'; what was answered before is kept"):
        engine.answer(asked(room=1))
    stand.reason, stand.shift = None, 1
    with pytest.raises(VerificationError, match=r"question 0: vLLM read other ids than those of the training template"):
        engine.answer(asked(room=1))


def test_the_command_writes_the_answers_of_transformers_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "m", "chatml", monkeypatch)
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["Hi", "And?"], "category": "math"}\n', encoding="utf-8")
    options: dict[str, Any] = {"name": None, "max_tokens": 6, "temperature": None}
    run_answer(str(tmp_path / "m"), questions, out=tmp_path / "plain.jsonl", **options)
    run_answer(str(tmp_path / "m"), questions, out=tmp_path / "vllm.jsonl", engine="vllm", **options)
    plain, fast = (json.loads((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8")) for name in ("plain", "vllm"))
    assert fast["choices"] == plain["choices"]
    assert fast["sampling"] == {**plain["sampling"], "engine": "vllm"}
    assert fast["answer_id"] != plain["answer_id"]  # one file never mixes the draws of two engines
    with pytest.raises(InputError, match="under other settings"):
        run_answer(str(tmp_path / "m"), questions, out=tmp_path / "plain.jsonl", engine="vllm", **options)


def test_without_vllm_and_with_what_it_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question_id": 1, "text": "Hi"}\n', encoding="utf-8")
    shown = CliRunner().invoke(app, ["answer", str(tmp_path / "m"), str(questions), "--engine", "vllm"])
    assert isinstance(shown.exception, InputError)
    assert str(shown.exception).startswith("--engine vllm needs vLLM (")
    assert str(shown.exception).endswith("): pip install 'vicugna[vllm]', or leave --engine out")
    stand = Stand(None)
    monkeypatch.setitem(sys.modules, "vllm", stand.module)
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "run.json").touch()
    with pytest.raises(InputError, match=rf"vLLM takes a whole model, and this adapter is not merged yet: sft merge {run}"):
        VllmAnswerer(str(run))


def test_half_a_character_at_a_cut_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand, _, tokenizer, _ = stand_in(tmp_path / "m", "chatml", monkeypatch)
    engine = VllmAnswerer(str(tmp_path / "m"))
    ids = tokenizer("ab诗", add_special_tokens=False)["input_ids"]
    for cut in range(len(ids) + 1):
        out = SimpleNamespace(token_ids=ids[:cut], finish_reason="length")
        monkeypatch.setattr(stand, "answer", lambda row, told, out=out: SimpleNamespace(prompt_token_ids=row, outputs=[out]))
        assert engine.answer(asked()[:1]) == [Said("ab诗"[: len(tokenizer.decode(ids[:cut]).rstrip("\ufffd"))], "length")]
