"""A judgment from recipe to standings: asked through the ledger, written in FastChat's format, the same bytes in every replay.

::

    run directory:  recipe.yaml  run.json  ledger.jsonl  judgments.jsonl  standings.json  report.html  charts/*.png
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from selfinstruct.desk import Desk, open_desk
from selfinstruct.job import file_digest, versions
from selfinstruct.judge.asking import Answers, Ask, asks, read_answers, refuse_missing
from selfinstruct.judge.recipe import JudgeRecipe
from selfinstruct.judge.report import write_report
from selfinstruct.judge.standings import standings
from selfinstruct.judge.verdicts import pair_verdict, rating
from selfinstruct.prompts import load_prompt
from selfinstruct.records import Completion, digest
from selfinstruct.store import read_json, write_json
from sft.data.jsonl import write_jsonl_atomic
from sft.data.questions import Question, read_questions
from sft.errors import InputError, ResumeError

_FREE = ("output", "budget")


def judge(recipe: JudgeRecipe, console: Console) -> dict[str, Any]:
    """Judge, write the judgments, and print what they add up to; gone on with if it was begun.

    Returns:
        What ``standings.json`` holds.

    Raises:
        InputError: questions or answers that cannot be used, or a run directory of another judgment.
        TeacherError: budget reached or teacher failed; what was paid for is kept.
    """
    questions = read_questions(recipe.questions)
    answers = _answers(recipe, questions)
    references = {} if recipe.judge.references is None else read_answers(recipe.judge.references)[1]
    prompts = {"pair": load_prompt(recipe.judge.pair_prompt), "single": load_prompt(recipe.judge.single_prompt)}
    wanted = list(asks(recipe, questions, answers, references, prompts))
    guided = _guided(recipe, questions, wanted, references)
    if guided:
        console.print(f"held to references: {guided}", markup=False)
    folder = Path(recipe.output.dir)
    identity = _identity(recipe, {name: prompt.fingerprint for name, prompt in prompts.items()})
    _begin(recipe, folder, identity)
    verdicts, texts, desk = asyncio.run(_ask_all(recipe, wanted, folder))
    file = folder / "judgments.jsonl"
    lines = _lines(recipe, wanted, verdicts, texts)
    write_jsonl_atomic(file, lines)
    lost = sum(verdict is None for verdict in verdicts)
    money = f", {desk.meter.money:,.4f} {recipe.budget.currency}" if desk.meter.money else ""
    tokens = desk.meter.prompt_tokens + desk.meter.completion_tokens
    console.print(f"{file}: {len(wanted):,} verdicts, {lost:,} unreadable; {tokens:,} tokens{money}", markup=False)
    only = recipe.judge.baseline and _only_other(answers, recipe.judge.baseline)
    found = standings([file], only, console, questions=recipe.questions if lost < len(verdicts) else None)
    facts = {"status": "complete", "identity": identity, "verdicts": len(wanted), "unreadable": lost, "versions": versions()}
    write_json(folder / "run.json", facts | {"tokens": tokens, "money": desk.meter.money})
    write_json(folder / "standings.json", found)
    told = [
        ("judge", recipe.teacher.model),
        ("verdicts", f"{len(wanted):,}, {lost:,} unreadable"),
        ("tokens", f"{tokens:,}{money}"),
        *((("repeats", f"{recipe.judge.repeats}"),) if recipe.judge.repeats > 1 else ()),
        *((("held to references", guided),) if guided else ()),
    ]
    title = f"Judgment: {', '.join(answers)}"
    page = write_report(folder, title, told, lines, found, questions, answers, charts=recipe.output.charts)
    console.print(f"report: {page}", markup=False)
    return found


def _guided(recipe: JudgeRecipe, questions: Sequence[Question], wanted: Sequence[Ask], references: Answers) -> str:
    """How many turns of the reference categories are judged with what is right in sight.

    Raises:
        InputError: a file of references about other questions.
    """
    if references and not references.keys() & {str(question.id) for question in questions}:
        raise InputError(f"judge.references: {recipe.judge.references} has no answer to any of these questions; give their own")
    turns = {(str(question.id), turn) for question in questions if question.category in recipe.judge.reference_categories
             for turn in range(1, len(question.turns) + 1)}  # fmt: skip
    shown = {(str(ask.question.id), ask.turn) for ask in wanted if len(ask.reference) == ask.turn and ask.reference[-1]}
    return f"{len(shown)} of {len(turns)} turns of {', '.join(recipe.judge.reference_categories)}" if turns else ""


def _only_other(answers: Mapping[str, Answers], baseline: str) -> str | None:
    """The one model that is held against the baseline; None if there are several, which are all listed."""
    others = [model for model in answers if model != baseline]
    return others[0] if len(others) == 1 else None


def _answers(recipe: JudgeRecipe, questions: Sequence[Question]) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for path in recipe.answers:
        model, said = read_answers(path)
        if model in found:
            raise InputError(f"answers: two files hold answers of {model!r}; leave one out, or give it another model_id")
        found[model] = said
    if recipe.judge.baseline is not None and recipe.judge.baseline not in found:
        raise InputError(
            f"judge.baseline: nobody called {recipe.judge.baseline!r} has answers here; there are {', '.join(found)}"
        )
    refuse_missing(questions, found)
    return found


def _identity(recipe: JudgeRecipe, prompts: Mapping[str, str]) -> dict[str, Any]:
    """What the judgments depend on."""
    asked = recipe.model_dump(mode="json", exclude=set(_FREE))
    asked["teacher"] = {key: asked["teacher"][key] for key in ("model", "kind", "sampling")}
    files = [recipe.questions, *recipe.answers, *([recipe.judge.references] if recipe.judge.references else [])]
    return {"recipe": asked, "prompts": dict(prompts), "files": {path: file_digest(path) for path in files}}


def _begin(recipe: JudgeRecipe, folder: Path, identity: Mapping[str, Any]) -> None:
    """Open the run directory; one that holds another judgment is refused."""
    before = read_json(folder / "run.json")
    if before is not None and digest(before["identity"]) != digest(identity):
        raise ResumeError(
            f"{folder}: another judgment is here (other questions, answers, prompts or judge); undo the change, or choose another output.dir"
        )
    if before is None and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"output.dir: {folder} is not empty and holds no judgment of ours; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    write_json(folder / "run.json", {"status": "running", "identity": identity})


async def _ask_all(recipe: JudgeRecipe, wanted: Sequence[Ask], folder: Path) -> tuple[list[Any], list[str], Desk]:
    """Every verdict and the text that it was read off; what cannot be read is asked again, up to ``judge.retries`` times."""
    from tqdm import tqdm

    verdicts: list[Any] = [None] * len(wanted)
    texts = [""] * len(wanted)
    async with open_desk(recipe, folder) as desk:
        open_ = list(range(len(wanted)))
        for attempt in range(recipe.judge.retries + 1):
            if not open_:
                break
            requests = [wanted[i].request(recipe, i, attempt) for i in open_]
            with tqdm(total=len(requests), desc=f"judging, attempt {attempt + 1}", unit=" verdicts", leave=False) as bar:
                replies = await desk.ask(requests)
                bar.update(len(requests))
            for i, reply in zip(open_, replies, strict=True):
                if isinstance(reply, Completion):
                    texts[i] = reply.text
                    # what was cut off may hold a verdict of the reasoning, which is not the last
                    verdicts[i] = None if reply.finish_reason == "length" else _read(wanted[i], reply.text)
            open_ = [i for i in open_ if verdicts[i] is None]
    return verdicts, texts, desk


def _read(ask: Ask, text: str) -> Any:
    """A rating, or the model that won, or ``tie``; None if it cannot be read."""
    if ask.kind == "single":
        return rating(text)
    found = pair_verdict(text)
    return found if found in (None, "tie") else ask.models[found == "second"]


def _lines(recipe: JudgeRecipe, wanted: Sequence[Ask], verdicts: Sequence[Any], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Judgments as FastChat writes them: a pair's two orders on one line."""
    lines: list[dict[str, Any]] = []
    step = 1 if recipe.judge.mode == "single" else 2
    for i in range(0, len(wanted), step):
        ask = wanted[i]
        head = {"question_id": ask.question.id, "turn": ask.turn, "category": ask.question.category}
        head |= {"repeat": ask.repeat} if recipe.judge.repeats > 1 else {}
        by = {"judge": [recipe.teacher.model, ask.prompt.name], "prompt_fingerprint": ask.prompt.fingerprint}
        if step == 1:
            score = -1 if verdicts[i] is None else verdicts[i]
            lines.append({**head, "model": ask.models[0], **by, "judgment": texts[i], "score": score})
            continue
        names = {ask.models[0]: "model_1", ask.models[1]: "model_2", "tie": "tie", None: "error"}
        orders = {
            f"g{n + 1}_{key}": value
            for n in (0, 1)
            for key, value in (("winner", names[verdicts[i + n]]), ("judgment", texts[i + n]))
        }
        lengths = {f"length_{n}": len(said[-1]) for n, said in enumerate(ask.answers, 1)}
        lines.append({**head, "model_1": ask.models[0], "model_2": ask.models[1], **by, **orders, **lengths})
    return lines
