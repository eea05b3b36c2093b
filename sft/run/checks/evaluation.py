"""An evaluation from top to bottom: what is asked of the tuned model, then of its base, is put side by side, judged and written down.

::

    OUT/eval.json        every figure with its interval, sets, settings, fingerprints, conditions
       /report.html      the same, with every answer
       /answers/*.jsonl  in FastChat's format; a stopped evaluation goes on with them, a judge can read them
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sft.data.questions import Question, read_questions
from sft.engine.manifest import versions
from sft.errors import InputError
from sft.files import write_json
from sft.recipe import Recipe
from sft.run.answer import Settings, answer_file
from sft.run.checks import answers, conditions
from sft.run.checks.estimates import Measured, changes, flat
from sft.run.checks.harness import Tasks, refuse_tasks, run_tasks
from sft.run.checks.sets import HELD_OUT, NamedSet, Rows, encode_set, measure_held_out
from sft.run.checks.subject import Subject, open_base, open_subject
from sft.run.engines import refuse_turns
from sft.run.evaluate import held_out

RECORD, REPORT, ANSWERS = "eval.json", "report.html", "answers"


@dataclass(frozen=True, slots=True)
class Request:
    """What is measured.

    Attributes:
        model: run directory, folder or Hub name.
        recipe: what it was trained by, if its held-out rows are measured.
        folder: that model for the held-out rows: as of :func:`sft.run.evaluate.held_out`.
        base: what is compared with it.
        questions: file that is answered; None asks nothing.
        temperature, max_tokens: of the answers.
        sets: of rows.
        max_length: longest row of a set, in tokens.
        tasks: of the harness.
        conditions: that must hold.
        out: folder to write.
    """

    model: str
    recipe: Recipe | None
    folder: Path | None
    base: str | None
    questions: Path | None
    temperature: float
    max_tokens: int
    sets: tuple[NamedSet, ...]
    max_length: int
    tasks: Tasks | None
    conditions: tuple[conditions.Condition, ...]
    out: Path

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out rows to measure."""
        return self.recipe is not None and bool(self.recipe.data.holdout or self.recipe.data.holdout_sources)

    def figures(self) -> list[str]:
        """Names of all that will be measured; one that ends with ``.`` stands for all that begin so."""
        found = [f"loss.{HELD_OUT}", f"loss.{HELD_OUT}."] if self.holds_out else []
        found += [f"loss.{named.name}" for named in self.sets]
        found += answers.FIGURES if self.questions is not None else ()
        return found + (["lm."] if self.tasks is not None else [])


def run_evaluation(request: Request) -> dict[str, Any]:
    """Measure, compare, judge, and write the record and the report.

    Returns:
        The record, as in ``eval.json``.

    Raises:
        InputError: before anything is measured: a condition on what will not be, a file, a folder or a task that cannot be used.
    """
    conditions.refuse_unmeasured(request.conditions, request.figures(), request.base is not None)
    questions = read_questions(request.questions) if request.questions is not None else []
    if request.tasks is not None:
        refuse_tasks(request.tasks)
    claim(request.out)
    ours, theirs = list[Measured](), list[Measured]()
    if request.holds_out:
        assert request.recipe is not None
        store, tuned_losses, base_losses = held_out(request.recipe, request.folder, request.base)
        ours.append(measure_held_out(store, tuned_losses))
        theirs += [measure_held_out(store, base_losses)] if base_losses is not None else []
    record: dict[str, Any] = _head(request)
    if questions or request.sets or request.tasks:
        _with_models(request, questions, ours, theirs, record)
    return _finish(request, questions, Measured.joined(ours), Measured.joined(theirs), record)


def _with_models(
    request: Request, questions: Sequence[Question], ours: list[Measured], theirs: list[Measured], record: dict[str, Any]
) -> None:
    """All that is measured on a loaded model: one at a time is in memory."""
    tuned = open_subject(request.model, request.recipe)
    if questions:
        assert request.questions is not None
        refuse_turns(questions, request.questions, multi_turn=tuned.multi_turn)
    length = min(request.max_length, tuned.positions or request.max_length)
    rows = {named: encode_set(named, tuned.tokenizer, tuned.encoder, length) for named in request.sets}
    record["sets"] = [_about(named, made, length) for named, made in rows.items()]
    found, record["tuned"] = _measure(tuned, request, questions, rows)
    ours.append(found)
    if request.base is not None:
        tuned = replace(tuned, model=torch.nn.Module())  # its memory goes to the base
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        found, record["untuned"] = _measure(open_base(request.base, tuned), request, questions, rows)
        theirs.append(found)


def _measure(
    subject: Subject, request: Request, questions: Sequence[Question], rows: dict[NamedSet, Rows]
) -> tuple[Measured, dict[str, Any]]:
    about: dict[str, Any] = {"name": subject.name, "weights": subject.weights}
    parts = [Measured({f"loss.{named.name}": made.quantity(subject.losses(made))}, {}) for named, made in rows.items()]
    if questions:
        subject.refuse_questions(questions)
        file, checked = _answers(subject, request, questions)
        parts.append(answers.measure_answers(checked))
        about |= {"file": str(file), "answers": [one.to_json() for one in checked]}
    if request.tasks is not None:
        found, about["harness"] = run_tasks(subject.model, subject.own_tokenizer, request.tasks)
        parts.append(found)
    return Measured.joined(parts), about


def _answers(subject: Subject, request: Request, questions: Sequence[Question]) -> tuple[Path, list[answers.Checked]]:
    template = subject.talking().template.fingerprint
    settings = Settings(subject.model_id, template, request.max_tokens, request.temperature, subject.weights)
    # Named by all that it depends on: a model that was trained again begins a file of its own.
    mark = hashlib.sha256("".join(settings.answer_id(question) for question in questions).encode()).hexdigest()[:10]
    file = request.out / ANSWERS / f"{subject.model_id}-{mark}.jsonl"
    answer_file(subject, questions, settings, file)
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return file, answers.check_answers(records, questions, subject.tokenizer)


def _about(named: NamedSet, rows: Rows, length: int) -> dict[str, Any]:
    store = rows.store
    return {
        "name": named.name,
        "path": str(named.path),
        "kind": named.kind,
        "rows": len(store),
        "units": len(set(rows.unit.tolist())),
        "tokens": int(store.trained.sum()),
        "max_length": length,
        **{key: value for key, value in rows.drops.to_json().items() if key in ("counts", "changed")},
    }


def _head(request: Request) -> dict[str, Any]:
    sampling = {"temperature": request.temperature, "max_tokens": request.max_tokens}
    asked = {"file": str(request.questions), **sampling} if request.questions is not None else None
    return {
        "model": request.model,
        "base": request.base,
        "questions": asked,
        "tasks": request.tasks.to_json() if request.tasks is not None else None,
        "sets": [],
        "versions": versions("lm_eval"),
    }


def _finish(
    request: Request, questions: Sequence[Question], ours: Measured, theirs: Measured, record: dict[str, Any]
) -> dict[str, Any]:
    from sft.run.checks.report import write_page

    own, base, change = ours.estimates(), theirs.estimates(), changes(ours, theirs)
    for key, figures in (("figures", own), ("base_figures", base), ("changes", change)):
        record[key] = {name: figure.to_json() for name, figure in figures.items()}
    record["conditions"] = []
    try:
        record["conditions"] = conditions.judge(request.conditions, flat(own, base, change))
    finally:  # a condition on a figure that the harness did not give loses none of the others
        write_json(request.out / RECORD, record)
        write_page(record, questions, request.out / REPORT)
    return record


def claim(out: Path) -> None:
    """Make the folder, and refuse one that holds something else.

    Raises:
        InputError: it holds other files, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}; choose another with --out") from None
    if there - {RECORD, REPORT, ANSWERS} or (REPORT in there and RECORD not in there):
        raise InputError(f"{out}: holds something else than an evaluation; choose another with --out")
