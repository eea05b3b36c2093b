"""A run directory, read back: what the report, the review and the export are functions of.

::

    run.json           counts, cost, versions, seeds        RunData.facts
    candidates.jsonl   {candidate, verdict} | {failure}     RunData.judged, RunData.failures, RunData.unanswered
    dataset.jsonl      {id, instruction, input, output, lineage}   RunData.rows

Nothing here is trusted to be well-formed, and nothing is guessed: a line that is not what it should be is an error with its place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.data.jsonl import read_rows
from sft.errors import DataError

ACCEPTED = "accepted"
SURPLUS = "target"
"""``filter`` of a verdict on a candidate that was sound, but came after the last row that was wanted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``dataset.jsonl``."""

    id: str
    instruction: str
    input: str
    output: str
    lineage: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate and what became of it, as ``candidates.jsonl`` has them.

    Attributes:
        id, instruction, input, output, request_id: of the candidate.
        accepted, filter, reason, evidence, scores: of the verdict.
    """

    id: str
    instruction: str
    input: str
    output: str
    request_id: str
    accepted: bool
    filter: str
    reason: str
    evidence: Mapping[str, Any]
    scores: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """A piece of a completion that was no candidate, or, with an ``item`` of -1, a request that got no completion."""

    request_id: str
    item: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the funnel: ``left`` of what came in passed, ``refused`` did not, for the counted reasons."""

    name: str
    refused: int
    left: int
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything that a finished or stopped run left behind.

    Attributes:
        path: the run directory.
        facts: ``run.json``.
        judged: candidates in the order in which they were judged.
        failures: pieces that could not be parsed, in order.
        unanswered: requests that got no completion, in order.
        rows: the data set.
    """

    path: Path
    facts: Mapping[str, Any]
    judged: tuple[Judged, ...]
    failures: tuple[Failed, ...]
    unanswered: tuple[Failed, ...]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return str(self.facts.get("name") or self.path.resolve().name)

    def section(self, key: str) -> Mapping[str, Any]:
        """An object of ``run.json``; empty where it is missing or something else."""
        value = self.facts.get(key)
        return value if isinstance(value, Mapping) else {}

    def funnel(self) -> list[Stage]:
        """From pieces of completions to rows: parsing, then the filters in the order in which they judged.

        The order is that of ``filters`` in ``run.json``; filters that it does not name follow in order of appearance. The last
        ``left`` is the number of accepted candidates.
        """
        refusals: dict[str, Counter[str]] = {}
        for item in self.judged:
            if not item.accepted:
                refusals.setdefault(item.filter, Counter())[item.reason] += 1
        named = [name for name in _names(self.facts.get("filters")) if name != SURPLUS]
        order = list(
            dict.fromkeys([*named, *(name for name in refusals if name != SURPLUS), *([SURPLUS] * (SURPLUS in refusals))])
        )
        left = len(self.judged)
        stages = [Stage("parsing", len(self.failures), left, Counter(failure.reason for failure in self.failures))]
        for name in order:
            reasons = refusals.get(name, Counter())
            left -= reasons.total()
            stages.append(Stage(name, reasons.total(), left, reasons))
        return stages


def _names(value: Any) -> list[str]:
    """Filter names: texts, or objects with a ``kind`` as a recipe has them."""
    names = [item.get("kind") if isinstance(item, Mapping) else item for item in (value if isinstance(value, list) else [])]
    return [name for name in names if isinstance(name, str)]


def read_run(run_dir: str | Path) -> RunData:
    """Read a run directory.

    Raises:
        DataError: a file is missing, or a line is not what it should be (with ``file:line``).
    """
    path = Path(run_dir)
    try:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no run.json; give the directory of a run of selfinstruct") from None
    except ValueError as error:
        raise DataError(f"{path / 'run.json'}: not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise DataError(f"{path / 'run.json'}: this must be an object")
    judged: list[Judged] = []
    failures: list[Failed] = []
    for where, line in _lines(path / "candidates.jsonl"):
        if "failure" in line:
            failures.append(_failed(line["failure"], where))
        else:
            judged.append(_judged(line, where))
    pieces = tuple(failure for failure in failures if failure.item >= 0)
    unanswered = tuple(failure for failure in failures if failure.item < 0)
    return RunData(path, facts, tuple(judged), pieces, unanswered, tuple(read_dataset(path)))


def read_dataset(run_dir: str | Path) -> Iterator[Row]:
    """The rows of ``dataset.jsonl``, one at a time.

    Raises:
        DataError: no such file, or a line is not a row.
    """
    for where, line in _lines(Path(run_dir) / "dataset.jsonl"):
        yield Row(
            **_texts(line, ("id", "instruction", "input", "output"), where),
            lineage=_object(line.get("lineage", {}), "lineage", where),
        )


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in read_rows(path):
        if row.error:
            raise DataError(f"{row.where}: {row.error}")
        yield row.where, _object(row.value, "the line", row.where)


def _judged(line: Mapping[str, Any], where: str) -> Judged:
    candidate = _object(line.get("candidate"), "candidate", where)
    verdict = _object(line.get("verdict"), "verdict", where)
    accepted = verdict.get("accepted")
    if not isinstance(accepted, bool):
        raise DataError(f"{where}: verdict.accepted must be true or false")
    return Judged(
        **_texts(candidate, ("id", "instruction", "input", "output", "request_id"), where),
        accepted=accepted,
        filter="" if accepted else _text(verdict, "filter", where),
        reason="" if accepted else _text(verdict, "reason", where),
        evidence=_object(verdict.get("evidence", {}), "verdict.evidence", where),
        scores=_object(verdict.get("scores", {}), "verdict.scores", where),
    )


def _failed(value: Any, where: str) -> Failed:
    failure = _object(value, "failure", where)
    item = failure.get("item")
    if not isinstance(item, int) or isinstance(item, bool):
        raise DataError(f"{where}: failure.item must be a whole number")
    return Failed(_text(failure, "request_id", where), item, _text(failure, "reason", where), str(failure.get("detail", "")))


def _object(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {name} must be an object")
    return value


def _texts(value: Mapping[str, Any], keys: Sequence[str], where: str) -> dict[str, Any]:
    return {key: _text(value, key, where) for key in keys}


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise DataError(f"{where}: {key!r} is missing or no text")
    return text
