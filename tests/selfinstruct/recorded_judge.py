"""A judge of three questions and up to three models, whose replies are recorded."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from selfinstruct.judge.asking import Ask, asks, read_answers
from selfinstruct.judge.recipe import JudgeRecipe, load_judge_recipe
from selfinstruct.judge.run import judge
from selfinstruct.prompts import load_prompt
from selfinstruct.records import Completion, Request, Usage
from selfinstruct.teacher.ledger import Entry, Ledger
from sft.data.questions import read_questions

QUESTIONS = [
    {"question_id": 1, "text": "How are you?", "category": "generic"},
    {"question_id": 2, "turns": ["2+3?", "Times two?"], "category": "math", "reference": ["5", "10"]},
    {"question_id": 3, "text": "Write.", "category": "writing", "reference": "anything"},
]
TURNS = {1: 1, 2: 2, 3: 1}
MODELS = ("good", "bad", "ugly")


def files(folder: Path, models: tuple[str, ...] = MODELS) -> list[str]:
    """Questions and an answer file for each model; every answer names its model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    for model in models:
        lines = []
        for name, count in TURNS.items():
            turns = [f"{model} on {name}.{i}" for i in range(1, count + 1)]
            lines.append({"question_id": name, "model_id": model, "choices": [{"index": 0, "turns": turns}]})
        (folder / f"{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return [str(folder / f"{model}.jsonl") for model in models]


def a_recipe(folder: Path, models: tuple[str, ...] = MODELS, out: str = "run", **section: Any) -> JudgeRecipe:
    value = {
        "questions": str(folder / "questions.jsonl"),
        "answers": files(folder, models),
        "teacher": {"model": "grader", "replay": [str(folder / "ledger.jsonl")]},
        "judge": section,
        "output": {"dir": str(folder / out), "charts": False},
    }
    path = folder / "judge.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return load_judge_recipe(path)[0]


def wanted(recipe: JudgeRecipe) -> list[Ask]:
    answers = dict(read_answers(path) for path in recipe.answers)
    references = {} if recipe.judge.references is None else read_answers(recipe.judge.references)[1]
    prompts = {"pair": load_prompt(recipe.judge.pair_prompt), "single": load_prompt(recipe.judge.single_prompt)}
    return list(asks(recipe, read_questions(recipe.questions), answers, references, prompts))


def record(recipe: JudgeRecipe, says: Callable[[Ask, int], str]) -> list[Request]:
    """A ledger of what a judge says to every request of a recipe, at each attempt."""
    path = Path(recipe.teacher.replay[0])
    path.unlink(missing_ok=True)
    entries = [
        Entry(
            request,
            Completion(request_id=request.id, text=says(ask, n), finish_reason="stop", usage=Usage(100, 10), cost=0.001),
        )
        for i, ask in enumerate(wanted(recipe))
        for n in range(recipe.judge.retries + 1)
        for request in [ask.request(recipe, i, n)]
    ]
    with Ledger.open(path) as ledger:
        ledger.put_many(entries)
    return [entry.request for entry in entries]


def run(recipe: JudgeRecipe) -> tuple[str, list[dict[str, Any]]]:
    screen = io.StringIO()
    judge(recipe, Console(file=screen, width=200))
    lines = (Path(recipe.output.dir) / "judgments.jsonl").read_text(encoding="utf-8").splitlines()
    return screen.getvalue(), [json.loads(line) for line in lines]


def fair(ask: Ask, attempt: int) -> str:
    """Good beats ugly beats bad."""
    rank = ("bad", "ugly", "good")
    left, right = (rank.index(model) for model in ask.models)
    return f"At first [[{'AB'[left > right]}]] ... no. [[{'BA'[left > right]}]]"
