"""Answers to question files: the original shapes are read, batching changes nothing, a stopped run goes on, other settings are refused."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rapidfuzz import fuzz, process
from typer.testing import CliRunner

from selfinstruct.judge.asking import asks
from selfinstruct.judge.recipe import JudgeRecipe
from selfinstruct.prompts import load_prompt
from sft.cli import app
from sft.data.conversation import Conversation, Turn
from sft.data.questions import Question, read_questions
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import DataError, InputError
from sft.model.servable import write_servable
from sft.run.answer import Asked, Said, Settings, answer_file
from sft.run.engines import run_answer
from sft.run.generate import Sampling, _Noise, _said, answer, answer_batch
from tests.builders import byte_level, tiny_model

DATA = Path(__file__).parents[2] / "data"
OWN = ("questions.jsonl", "questions_zh.jsonl", "questions_two_turns.jsonl")
QUESTIONS = [
    {"question_id": 1, "text": "How are you?", "category": "generic"},
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again, shorter."]},
    {"question_id": 101, "category": "math", "turns": ["2+3?", "And 3+4?"], "reference": ["5", ""]},
    {"question_id": "own", "turns": ["Hi there, how is it going today?"]},
]


def question_file(folder: Path, rows: Sequence[Any] = tuple(QUESTIONS)) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# -- questions ------------------------------------------------------------------------------------------------------


def test_both_shapes_are_read(tmp_path: Path) -> None:
    assert read_questions(question_file(tmp_path)) == [
        Question(1, "generic", ("How are you?",)),
        Question(81, "writing", ("Write.", "Again, shorter.")),
        Question(101, "math", ("2+3?", "And 3+4?"), ("5", "")),
        Question("own", "general", ("Hi there, how is it going today?",)),
    ]


@pytest.mark.parametrize("name", ["questions.jsonl", "questions_zh.jsonl"])
def test_our_own_questions_have_the_categories_of_vicunas(name: str) -> None:
    found = read_questions(DATA / name)
    names = ("generic", "knowledge", "roleplay", "common-sense", "fermi", "counterfactual", "writing")
    assert Counter(question.category for question in found) == {**dict.fromkeys(names, 10), "coding": 7, "math": 3}
    assert len({question.turns for question in found}) == 80


def test_our_own_questions_of_two_turns() -> None:
    found = read_questions(DATA / "questions_two_turns.jsonl")
    names = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
    assert [question.category for question in found] == [name for name in names for _ in range(10)]
    assert [question.id for question in found] == list(range(201, 281))  # not ours of one turn, nor MT-bench's 81 to 160
    assert all(len(question.turns) == 2 and all(turn == turn.strip() for turn in question.turns) for question in found)
    held = {"math", "coding", "reasoning", "extraction"}
    assert {question.category for question in found if question.reference} == held
    assert all(len(question.reference) == 2 and all(question.reference) for question in found if question.category in held)
    assert len({turn for question in found for turn in question.turns}) == 160


def test_our_own_questions_are_not_near_each_other() -> None:
    """Less than 70 of 100 by rapidfuzz, with the words of each sorted."""
    turns = [turn.lower() for name in OWN for question in read_questions(DATA / name) for turn in question.turns]
    near = process.cdist(turns, turns, scorer=fuzz.token_sort_ratio, score_cutoff=70)
    assert [(turns[i], turns[j]) for i, j in zip(*near.nonzero(), strict=True) if i < j] == []


@pytest.mark.parametrize("mode", ["pairs", "single"])
def test_a_judge_sees_the_references_of_both_turns(mode: str, tmp_path: Path) -> None:
    found = read_questions(DATA / "questions_two_turns.jsonl")
    said = {model: {str(question.id): ("first", "second") for question in found} for model in ("a", "b")}
    teacher = {"model": "grader", "replay": [str(tmp_path)]}
    recipe = JudgeRecipe.model_validate_json(
        json.dumps(
            {
                "questions": str(DATA / "questions_two_turns.jsonl"),
                "answers": ["a.jsonl", "b.jsonl"],
                "teacher": teacher,
                "judge": {"mode": mode},
                "output": {"dir": str(tmp_path)},
            }
        )
    )
    prompts = {kind: load_prompt(f"judge_{kind}_en") for kind in ("pair", "single")}
    asked = list(asks(recipe, found, said, {}, prompts))
    assert len(asked) == 80 * 2 * 2
    for ask in asked:
        shown = ask.question.reference if ask.question.category in ("math", "coding", "reasoning") else ()
        assert ask.reference == shown[: ask.turn]
        assert ask.text().count("RIGHT ANSWER") == len(ask.reference)
        assert all(text in ask.text() for text in ask.reference)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "a question is an object with question_id, and text or turns"),
        ({"text": "q"}, "question_id must be a number or a name, not None"),
        ({"question_id": True, "text": "q"}, "question_id must be a number or a name, not True"),
        ({"question_id": 2}, "give one of text and turns"),
        ({"question_id": 2, "text": "q", "turns": ["q"]}, "give one of text and turns"),
        ({"question_id": 2, "text": " "}, "text must be text that is not empty"),
        ({"question_id": 2, "turns": "q"}, "turns must be text that is not empty"),
        ({"question_id": 2, "turns": []}, "turns is empty; write what is asked"),
        ({"question_id": 2, "text": "q", "category": 3}, "category must be a word, not 3"),
        ({"question_id": 2, "text": "q", "reference": ["a", "b"]}, "2 references for 1 turns; give one for each"),
        ({"question_id": 2, "text": "q", "reference": [3]}, "reference must be text$"),
        ({"question_id": 1, "text": "q"}, r"question_id 1 stands at .*questions\.jsonl:1 already; give it another"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"questions\.jsonl:2: {said}"):
        read_questions(question_file(tmp_path, [QUESTIONS[0], row]))


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no question in this file"):
        read_questions(question_file(tmp_path, []))


# -- batches --------------------------------------------------------------------------------------------------------


def made(template: str) -> tuple[Any, Any, RowEncoder]:
    tokenizer = copy.deepcopy(byte_level())
    model = tiny_model(len(tokenizer), scale=0.3).eval()
    return model, tokenizer, RowEncoder(tokenizer, load_template(template))


def talks() -> list[Conversation]:
    texts = ["Hi", "Name three colours, and then some more of them, please.", "Say 12345", "x", "请写一首关于春天的诗。"]
    return [Conversation(f"c{i}", (Turn("user", text),), "test") for i, text in enumerate(texts)]


@pytest.mark.parametrize("template", ["chatml", "vicuna_v0", "alpaca"])
def test_a_batch_answers_as_each_would_alone(template: str) -> None:
    model, tokenizer, encoder = made(template)
    alone = [answer(model, tokenizer, encoder, talk, Sampling(max_tokens=24)) for talk in talks()]
    for most in (1, 2, 16):
        together = answer_batch(model, tokenizer, encoder, [Asked(talk, 0.0, 24, 7) for talk in talks()], most)
        assert [said.text for said in together] == alone
    assert len(set(alone)) > 2


def test_sampling_does_not_depend_on_the_batch() -> None:
    model, tokenizer, encoder = made("chatml")
    asked = [Asked(talk, (0.0, 0.7, 1.5)[i % 3], 16, 100 + i) for i, talk in enumerate(talks())]
    wanted = answer_batch(model, tokenizer, encoder, asked, 16)
    assert answer_batch(model, tokenizer, encoder, asked, 2) == wanted
    assert answer_batch(model, tokenizer, encoder, asked[::-1], 3) == wanted[::-1]
    other = [Asked(one.conversation, one.temperature, 16, one.seed + 50) for one in asked]
    again = answer_batch(model, tokenizer, encoder, other, 16)
    assert [a == b for a, b in zip(again, wanted, strict=True)] == [True, False, False, True, False]  # greedy has no seed


def test_noise_samples_the_softmax() -> None:
    logits, count = torch.tensor([2.0, 1.0, 0.0, -1.0]), 20_000
    noise = _Noise([Asked(talks()[0], 0.7, 1, 5)], torch.device("cpu"))
    drawn = torch.stack([noise(torch.zeros(1, 1), logits[None])[0].argmax() for _ in range(count)])
    wanted = (logits / 0.7).softmax(0)
    share = torch.bincount(drawn, minlength=4) / count
    # four standard deviations of a share
    assert ((share - wanted).abs() <= 4 * (wanted * (1 - wanted) / count).sqrt()).all()


def test_what_did_not_end_is_told_from_what_did() -> None:
    tokenizer = byte_level()
    ids = tokenizer("Hello", add_special_tokens=False)["input_ids"]
    stop = tokenizer.eos_token_id
    room = len(ids)
    assert _said(tokenizer, ids, room, [stop], []) == Said("Hello", "length")
    assert _said(tokenizer, [*ids, stop], room + 1, [stop], []) == Said("Hello", "stop")
    assert _said(tokenizer, [*ids, stop, 7, 7], room + 3, [stop], []) == Said("Hello", "stop")
    assert _said(tokenizer, ids, room, [stop], ["lo"]) == Said("Hel", "stop")
    assert _said(tokenizer, ids, room + 1, [stop], []) == Said("Hello", "stop")  # the batch had ended


def test_a_prompt_without_room_is_refused() -> None:
    model, tokenizer, encoder = made("chatml")
    long = Conversation("question 7", (Turn("user", "word " * 600),), "test")
    with pytest.raises(
        InputError, match=r"question 7: its prompt of \d+ tokens fills the 512 positions of the model; shorten it"
    ):
        answer_batch(model, tokenizer, encoder, [Asked(long, 0.0, 8, 1)])


# -- files ----------------------------------------------------------------------------------------------------------


class Echo:
    """Answers with what it was asked; stops the run at the ``stop``-th call."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls: list[list[Asked]] = []
        self.stop = stop

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        if self.stop is not None and len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append(list(asked))
        return [Said("/".join(turn.content for turn in one.conversation.turns), "stop") for one in asked]


def records(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key != "tstamp"} for record in found]


def test_turns_are_asked_with_the_answers_before_them(tmp_path: Path) -> None:
    asked, out, echo = read_questions(question_file(tmp_path)), tmp_path / "a" / "out.jsonl", Echo()
    assert answer_file(echo, asked, Settings("m", "t"), out) == 4
    found = records(out)
    assert [record["question_id"] for record in found] == [1, 81, 101, "own"]
    assert found[1]["choices"] == [
        {"index": 0, "turns": ["Write.", "Write./Write./Again, shorter."], "finish": ["stop", "stop"]}
    ]
    assert [record["sampling"]["temperature"] for record in found] == [0.7, 0.7, 0.0, 0.7]
    assert [len(call) for call in echo.calls] == [4, 2]
    assert len({one.seed for call in echo.calls for one in call}) == 6


@pytest.mark.parametrize("cut", [False, True])
def test_a_stopped_run_goes_on(tmp_path: Path, cut: bool) -> None:
    asked = read_questions(question_file(tmp_path))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    answer_file(Echo(), asked, Settings("m", "t"), whole, batch=1)
    with pytest.raises(KeyboardInterrupt):
        answer_file(Echo(stop=2), asked, Settings("m", "t"), out, batch=1)
    begun = len(out.read_text(encoding="utf-8").splitlines())
    assert 0 < begun < 4
    if cut:
        with out.open("a", encoding="utf-8") as file:
            file.write('{"question_id": 81, "answer_')
    assert answer_file(Echo(), asked, Settings("m", "t"), out, batch=1) == 4 - begun
    assert records(out) == records(whole)
    assert answer_file(Echo(stop=0), asked, Settings("m", "t"), out) == 0


@pytest.mark.parametrize(
    "other",
    [
        Settings("n", "t"),
        Settings("m", "other"),
        Settings("m", "t", 5),
        Settings("m", "t", temperature=0.0),
        Settings("m", "t", weights="other"),
    ],
)
def test_a_file_of_other_settings_is_refused_and_kept(tmp_path: Path, other: Settings) -> None:
    asked, out = read_questions(question_file(tmp_path)), tmp_path / "out.jsonl"
    answer_file(Echo(), asked, Settings("m", "t"), out)
    before = out.read_bytes()
    with pytest.raises(
        InputError, match=r"out\.jsonl:1: question 1 was answered by 'm' under other settings, or is not asked here"
    ):
        answer_file(Echo(), asked, other, out)
    assert out.read_bytes() == before
    out.write_text('{"x": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"out\.jsonl:1: this is no answer of ours; choose another file with --out"):
        answer_file(Echo(), asked, other, out)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, encoder = made("chatml")
    write_servable(model, tokenizer, encoder, tmp_path / "small", {})
    monkeypatch.chdir(tmp_path)
    command = ["answer", "small", str(question_file(tmp_path)), "--max-tokens", "6"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "answers/small.jsonl: 4 questions, 4 answered now" in shown.output
    first = records(tmp_path / "answers" / "small.jsonl")
    assert {record["model_id"] for record in first} == {"small"}
    again = CliRunner().invoke(app, [*command, "--out", "again.jsonl"])
    assert again.exit_code == 0
    assert records(tmp_path / "again.jsonl") == first
    assert "4 questions, 0 answered now" in CliRunner().invoke(app, command).output
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # trained again, under the same name
    write_servable(model, tokenizer, encoder, tmp_path / "small", {})
    refused = CliRunner().invoke(app, command)
    assert "was answered by 'small' under other settings" in str(refused.exception) + refused.output
    assert records(tmp_path / "answers" / "small.jsonl") == first


def test_a_template_of_one_exchange_refuses_questions_of_two_turns(tmp_path: Path) -> None:
    model, tokenizer, encoder = made("alpaca")
    write_servable(model, tokenizer, encoder, tmp_path / "small", {})
    options: dict[str, Any] = {"out": tmp_path / "o", "name": None, "max_tokens": 4, "temperature": None}
    with pytest.raises(InputError, match=r"question 81 has 2 turns, but the template of this model holds one exchange"):
        run_answer(str(tmp_path / "small"), question_file(tmp_path), **options)
