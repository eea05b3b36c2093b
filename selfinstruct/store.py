"""The run directory, written: one round at a time, so that a kill at any byte loses at most the round that it hit.

::

    ledger.jsonl       every reply (the teacher writes it)
    candidates.jsonl   appended per round, synced
    state.json         renamed into place after it: how many rounds, and how many bytes of candidates.jsonl, are whole

What stands in candidates.jsonl behind the bytes that ``state.json`` names is of a round that did not finish: it is cut off, and the round
is played again out of the ledger, for nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfinstruct.records import Candidate, Failure, ParseFailure, Verdict
from sft.data.jsonl import read_rows, write_jsonl_atomic
from sft.errors import DataError, InputError, RunError
from sft.files import write_json as write_whole

log = logging.getLogger(__name__)

TARGET = "target"
"""``filter`` of a verdict on a candidate that came after the last row that was wanted."""
Judged = tuple[Candidate, Verdict] | ParseFailure | Failure


@dataclass(slots=True)
class Tally:
    """Counts over a run.

    Attributes:
        asked: first-stage requests of finished rounds.
        candidates: parsed ones, judged.
        refused: (filter, reason) -> candidates.
        unparsed: reason -> pieces of replies.
        failed: code -> requests without a reply.
    """

    asked: int = 0
    candidates: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    unparsed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, item: Judged) -> None:
        if isinstance(item, ParseFailure):
            self.unparsed[item.reason] += 1
        elif isinstance(item, Failure):
            self.failed[item.code] += 1
        else:
            self.candidates += 1
            if not item[1].accepted:
                self.refused[item[1].filter, item[1].reason] += 1


@dataclass(slots=True, repr=False)  # asyncio shows what a task returns, and this is large
class Run:
    """Where a run stands between two rounds.

    Attributes:
        round: the next one.
        rows: accepted candidates with their verdicts, in order.
        candidates: the same without the verdicts.
        stalled: rounds in a row that gave no row.
    """

    round: int = 0
    rows: list[tuple[Candidate, Verdict]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    stalled: int = 0
    tally: Tally = field(default_factory=Tally)

    def add(self, judged: Iterable[Judged], asked: int) -> None:
        """Take in a finished round."""
        before = len(self.rows)
        for item in judged:
            self.tally.add(item)
            if isinstance(item, tuple) and item[1].accepted:
                self.rows.append(item)
                self.candidates.append(item[0])
        self.tally.asked += asked
        self.stalled = 0 if len(self.rows) > before else self.stalled + 1
        self.round += 1


def line_of(item: Judged) -> dict[str, Any]:
    """The line of ``candidates.jsonl``."""
    if isinstance(item, ParseFailure):
        about = {"request_id": item.request_id, "item": item.item, "reason": item.reason, "detail": item.detail}
        return {"failure": about}
    if isinstance(item, Failure):
        return {"failure": {"request_id": item.request_id, "item": -1, "reason": item.code, "detail": item.detail}}
    return {"candidate": item[0].to_json(), "verdict": item[1].to_json()}


def item_of(line: Mapping[str, Any]) -> Judged:
    """The inverse of :func:`line_of`; raises ``KeyError`` or ``TypeError`` on anything else."""
    if "failure" in line:
        found = line["failure"]
        if found["item"] < 0:
            return Failure(found["request_id"], found["reason"], found["detail"])
        return ParseFailure(found["request_id"], found["item"], found["reason"], found["detail"])
    return Candidate.from_json(line["candidate"]), Verdict(**line["verdict"])


def row_of(candidate: Candidate, verdict: Verdict) -> dict[str, Any]:
    """The line of ``dataset.jsonl``: the row, and where it came from."""
    lineage: dict[str, Any] = {
        "request": candidate.request_id,
        "via": list(candidate.via),
        "demonstrations": list(candidate.demonstrations),
        "round": candidate.round,
        "teacher": candidate.teacher,
        "prompt_fingerprint": candidate.prompt_fingerprint,
        "scores": dict(verdict.scores),
        "cost": candidate.cost,
    }
    if candidate.parent:
        lineage |= {"parent": candidate.parent, "operator": candidate.operator}
    if candidate.is_classification is not None:
        lineage["is_classification"] = candidate.is_classification
    texts = {"instruction": candidate.instruction, "input": candidate.input, "output": candidate.output}
    return {"id": candidate.id, **texts, "lineage": lineage}


def _encoded(value: Any) -> bytes:
    """A line; text stays readable unless it holds a lone surrogate, which UTF-8 cannot carry."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


class Store:
    """The files of one run directory but the ledger.

    Attributes:
        run: what :meth:`restore` returned; the loop changes it in place.

    Args:
        dir: made if it is not there.

    Raises:
        InputError: it cannot be made or written.
    """

    def __init__(self, dir: str | Path) -> None:
        self.dir = Path(dir)
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.dir}: the run directory cannot be made: {error.strerror}; choose another output.dir"
            ) from None
        if not os.access(self.dir, os.W_OK | os.X_OK):
            raise InputError(f"{self.dir}: the run directory cannot be written; choose another output.dir")
        self.candidates, self.index = self.dir / "candidates.jsonl", self.dir / "novelty.bin"
        self._state = self.dir / "state.json"
        self._bytes = 0
        self.run = Run()

    def forget(self) -> None:
        """Begin anew: an earlier replay's state is not gone on with."""
        for path in (self._state, self.index):
            path.unlink(missing_ok=True)

    def restore(self, identity: str) -> Run:
        """The run as its last whole round left it; a new one where there is none, or where another recipe left it.

        Raises:
            DataError: ``candidates.jsonl`` is shorter than its state says, or a line of it was edited.
        """
        self.run = run = Run()
        self._bytes = 0
        state = read_json(self._state)
        if state is not None and state.get("identity") == identity:
            judged = list(self._whole(int(state["bytes"])))
            run.add(judged, 0)
            run.round, run.stalled, run.tally.asked = int(state["round"]), int(state["stalled"]), int(state["asked"])
            self._bytes = int(state["bytes"])
        elif state is not None:
            log.info("%s: the recipe changed: the rounds are played again out of the ledger", self.dir)
            self._state.unlink()
        with self.candidates.open("ab") as file:
            file.truncate(self._bytes)
        return run

    def _whole(self, size: int) -> Iterator[Judged]:
        if not self.candidates.is_file() or self.candidates.stat().st_size < size:
            raise DataError(
                f"{self.candidates}: shorter than {self._state.name} says; delete {self._state} and run again: "
                "everything is made again out of the ledger, for nothing"
            )
        with self.candidates.open("ab") as file:
            file.truncate(size)
        for row in read_rows(self.candidates):
            try:
                if row.error is not None:
                    raise TypeError(row.error)
                yield item_of(row.value)
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{row.where}: not a line of a run ({error}); delete {self._state} and run again: "
                    "everything is made again out of the ledger, for nothing"
                ) from None

    def append(self, judged: Iterable[Judged]) -> None:
        """Add a round's candidates, durably."""
        data = b"".join(_encoded(line_of(item)) for item in judged)
        try:
            with self.candidates.open("r+b") as file:
                file.seek(self._bytes)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self.candidates}: cannot grow: {error.strerror}; the ledger is whole: make room and run again to go on"
            ) from None
        self._bytes += len(data)

    def commit(self, run: Run, identity: str) -> None:
        """Call what was appended whole."""
        about = {
            "identity": identity,
            "round": run.round,
            "bytes": self._bytes,
            "asked": run.tally.asked,
            "stalled": run.stalled,
        }
        write_json(self._state, about)

    def dataset(self, run: Run) -> Path:
        """Write ``dataset.jsonl``, all or none."""
        path = self.dir / "dataset.jsonl"
        write_jsonl_atomic(path, (row_of(*row) for row in run.rows))
        return path


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file that we wrote; None if it is not there.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object; delete it and run again: it is made again")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """:func:`sft.files.write_json`, which leaves the old file or the new one.

    Raises:
        RunError: the disk refuses; the message says how to go on.
    """
    try:
        write_whole(path, value)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; the ledger is whole: run again to go on") from None
