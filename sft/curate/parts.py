"""Stages in parts: each part is one file of rows and one report beside it, so that a stopped stage goes on where it stood.

::

    RUN/clean/00000.jsonl     the rows that came out of the first batch that went in
    RUN/clean/00000.json      its report, written last: a part without it does not exist
                              {"key", "sha256", "source", "rows_in", "rows_out", "counts", "changed", "dropped": [...], ...}

The key is a hash of what went in and of all that decides what comes out (rules and code). A part whose report has the key that is wanted,
and whose file has the hash that the report names, is taken as it stands; any other is made anew. A part depends on nothing but its
batch, so any number of workers writes the same bytes, whether they are processes of this machine or of others
(:mod:`sft.curate.ray_workers`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol

from sft.curate.slices import Slice, read_slices
from sft.data.conversation import Drop
from sft.data.jsonl import RawRow, write_jsonl_atomic
from sft.files import remove_drafts, write_json
from sft.recipe import Source

EXAMPLES = 4  # rows shown for each reason, in a part's report and in that of a stage
_SHOWN = 4000  # characters of a text that is shown
CUT: Final = "…"
"""Stands where a text that is shown goes on."""
_BEFORE = 200  # of them at most before the first change
_AHEAD = 3  # batches per worker that wait to be worked on: bounds the memory

Hist = dict[str, dict[str, int]]


@dataclass(slots=True)
class PartReport:
    """What became of one batch.

    Attributes:
        key: of what went in; see the module.
        index: number of the part.
        source: label of the source that all its rows come from.
        sha256: of the part's file.
        rows_in, rows_out: rows.
        characters_in, characters_out: of all messages.
        bytes_in: of all messages as UTF-8.
        reused: it was there already; not written.
        counts: reason -> rows left out.
        changed: reason -> rows kept in another form.
        dropped: every row (or exchange) left out, as ``[place, reason, detail]``: nothing is lost silently.
        examples: reason -> ``[place, before, after]`` of some rows changed for it, cut to what is near the change.
        left_out: reason -> ``[place, detail, beginning]`` of some rows left out for it.
        histograms: name -> bucket -> count, for the report.
        sources: of a whole stage, label of each source -> its rows in and out; empty in a part, which has one source.
    """

    key: str
    index: int
    source: str
    sha256: str = ""
    rows_in: int = 0
    rows_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    bytes_in: int = 0
    reused: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    dropped: list[list[str]] = field(default_factory=list)
    examples: dict[str, list[list[str]]] = field(default_factory=dict)
    left_out: dict[str, list[list[str]]] = field(default_factory=dict)
    histograms: Hist = field(default_factory=dict)
    sources: dict[str, list[int]] = field(default_factory=dict)

    def drop(self, drop: Drop, beginning: str = "") -> None:
        """Count and list a row that is left out."""
        self.counts[drop.reason] += 1
        self.dropped.append([drop.id, drop.reason, drop.detail])
        self.left_out[drop.reason] = _sample(self.left_out.get(drop.reason, []), [[drop.id, drop.detail, beginning]])

    def change(self, reason: str, place: str, before: str, after: str) -> None:
        """Count a row that is kept in another form."""
        self.changed[reason] += 1
        self.examples[reason] = _sample(self.examples.get(reason, []), [[place, *near_the_change(before, after)]])

    def count(self, histogram: str, bucket: str, by: int = 1) -> None:
        """Add to a histogram."""
        buckets = self.histograms.setdefault(histogram, {})
        buckets[bucket] = buckets.get(bucket, 0) + by

    def to_json(self) -> dict[str, Any]:
        """Plain data, the same for equal reports."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "reused"}
        return {
            **values,
            "counts": dict(sorted(self.counts.items())),
            "changed": dict(sorted(self.changed.items())),
            "histograms": {name: dict(sorted(buckets.items())) for name, buckets in sorted(self.histograms.items())},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> PartReport:
        """The report that :meth:`to_json` wrote."""
        report = PartReport(**value)
        report.counts, report.changed = Counter(value["counts"]), Counter(value["changed"])
        return report


def _sample(some: list[list[str]], more: list[list[str]]) -> list[list[str]]:
    """Those with the least hashes of their places: the same of all rows together, whatever parts they came in."""
    return sorted([*some, *more], key=lambda row: (hashlib.blake2b(row[0].encode("utf-8", "replace")).digest(), row))[:EXAMPLES]


def near_the_change(before: str, after: str) -> tuple[str, str]:
    """Two texts cut to the same stretch, so that what differs first can be seen."""
    same, end = 0, min(len(before), len(after))  # the first so many characters are the same; the first end + 1 are not
    while same < end:
        middle = (same + end + 1) // 2
        same, end = (middle, end) if before[:middle] == after[:middle] else (same, middle - 1)
    start = max(0, same - _BEFORE) if max(len(before), len(after)) > _SHOWN else 0
    return _stretch(before, start), _stretch(after, start)


def _stretch(text: str, start: int) -> str:
    return (CUT if start else "") + text[start : start + _SHOWN] + (CUT if len(text) > start + _SHOWN else "")


def beginning(messages: Iterable[tuple[str, str]]) -> str:
    """How a conversation of roles and texts begins, for a report."""
    told = [f"{role}: {text if len(text) <= 300 else text[:300] + CUT}" for role, text in islice(messages, 3)]
    return "\n".join(told)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a worker gets: rows, or where they are.

    Attributes:
        index: number of the part that it becomes.
        source: label of the source.
        key: hash of the rows and of all that decides what becomes of them; empty until slices are read.
        rows: as they were read, unreadable ones included; empty if ``path`` or ``slices`` are given.
        slices: stretches of files that the worker reads the rows from; see :meth:`loaded`.
        made: with ``slices``, what ``key`` is a hash of besides the rows.
        path: a part of the stage before.
        leave_out: number of a row in ``path`` -> reason and detail, for a stage that decides over all parts.
        rename: number of a row in ``path`` -> what to put behind its id.
    """

    index: int
    source: str
    key: str
    rows: tuple[RawRow, ...] = ()
    slices: tuple[Slice, ...] = ()
    made: tuple[Any, ...] = ()
    path: Path | None = None
    leave_out: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    rename: Mapping[int, str] = field(default_factory=dict)

    def loaded(self) -> Batch:
        """The same with the rows of its slices and their key.

        Raises:
            DataError: a file cannot be read.
        """
        if not self.slices:
            return self
        rows = tuple(read_slices(self.slices))
        return replace(self, key=rows_key(self.made, rows), rows=rows, slices=(), made=())


Work = Callable[[Batch, PartReport], Iterable[Mapping[str, Any]]]
"""Makes a part: yields the rows that come out and fills the report. Pure, but for what it reads from ``batch.path``."""


def digest(*values: Any) -> str:
    """sha256 over JSON values."""
    out = hashlib.sha256()
    for value in values:
        out.update(json.dumps(value, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return out.hexdigest()


def rows_key(made: tuple[Any, ...], rows: Iterable[RawRow]) -> str:
    """The key of a part that is made from rows: they, with all that decides what becomes of them."""
    return digest(*made, [[raw.where, raw.value, raw.error] for raw in rows])


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_path(folder: Path, index: int) -> Path:
    """The file of a part."""
    return folder / f"{index:05}.jsonl"


def read_part(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def finished(folder: Path, batch: Batch) -> PartReport | None:
    """The report of a part that is there, whole, and made from this batch by the same rules and code; else None."""
    path = part_path(folder, batch.index)
    try:
        report = PartReport.from_json(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        report.reused = True
        return report if report.key == batch.key and report.sha256 == file_digest(path) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def make_part(folder: Path, batch: Batch, work: Work) -> PartReport:
    """Make one part: first its rows, then the report that makes it valid."""
    path = part_path(folder, batch.index)
    path.with_suffix(".json").unlink(missing_ok=True)
    report = PartReport(batch.key, batch.index, batch.source)
    report.rows_out = write_jsonl_atomic(path, work(batch, report))
    report.sha256 = file_digest(path)
    write_json(path.with_suffix(".json"), report.to_json())
    return report


# --- many parts ---------------------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}  # of a worker process: the work that it set up last, and for what


def _one(make_work: Callable[[Any], Work], settings: str, folder: Path, batch: Batch) -> PartReport:
    """In a worker: set the work up on the first part of a stage, then make the part."""
    if _worker.get("of") != (make_work, settings):
        _worker.update(of=(make_work, settings), work=make_work(json.loads(settings)))
    return make_part(folder, batch, _worker["work"])


class Workers(Protocol):
    """Whoever makes the parts of one stage after the other; a context that ends with the last stage."""

    def __enter__(self) -> Workers: ...

    def __exit__(self, *_: object) -> None: ...

    def run(
        self, folder: Path, batches: Iterable[Batch], make_work: Callable[[Any], Work], settings: Any
    ) -> Iterator[PartReport]:
        """The reports of all parts in their order; those that were there already say so."""
        ...

    def batches(self, source: Source, made: tuple[Any, ...], rows: int, first: int) -> Iterator[Batch] | None:
        """A source's batches if the workers read it themselves, each of so many rows, numbered from ``first``; else None."""
        ...


class LocalWorkers:
    """Processes of this machine; 1 works in this process.

    Spawned, not forked: this process may hold threads (progress bar, tokenizers), which a fork would copy half-way. They start with the
    first part that has to be made.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(count, get_context("spawn")) if count > 1 else None

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, source: Source, made: tuple[Any, ...], rows: int, first: int) -> Iterator[Batch] | None:
        """None: this process reads, and hands the rows on."""
        return None

    def run(
        self, folder: Path, batches: Iterable[Batch], make_work: Callable[[Any], Work], settings: Any
    ) -> Iterator[PartReport]:
        """The reports of all parts in their order; some batches ahead of it are being worked on."""
        waiting: deque[Future[PartReport] | PartReport] = deque()
        for batch in batches:
            waiting.append(finished(folder, batch) or self._make(make_work, json.dumps(settings), folder, batch))
            while len(waiting) >= (_AHEAD * self._count if self._pool else 1):
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def _make(
        self, make_work: Callable[[Any], Work], settings: str, folder: Path, batch: Batch
    ) -> Future[PartReport] | PartReport:
        if self._pool is None:
            return _one(make_work, settings, folder, batch)
        return self._pool.submit(_one, make_work, settings, folder, batch)


def _result(value: Future[PartReport] | PartReport) -> PartReport:
    return value if isinstance(value, PartReport) else value.result()


def run_parts(
    folder: Path,
    batches: Iterable[Batch],
    make_work: Callable[[Any], Work],
    settings: Any,
    *,
    workers: Workers,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[list[PartReport], int]:
    """Make every part that is not there yet.

    Args:
        folder: of the stage; made if absent. Parts beyond the last batch are removed.
        batches: in order; read as workers become free.
        make_work: a function of a module, called once in each worker with ``settings``.
        settings: plain data; read when the first part is made, so that it may be filled while the batches are prepared.
        workers: who works.
        progress: told the rows of each part that is done.

    Returns:
        The reports in order, and how many parts were there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_drafts(folder)
    reports: list[PartReport] = []
    for report in workers.run(folder, batches, make_work, settings):
        reports.append(report)
        progress(report.rows_in)
    _remove_surplus(folder, len(reports))
    return reports, sum(report.reused for report in reports)


def _remove_surplus(folder: Path, parts: int) -> None:
    """Parts of an earlier, longer input would be read by whoever reads the folder."""
    for path in folder.glob("[0-9]*.json*"):
        if path.stem.isdigit() and int(path.stem) >= parts:
            path.unlink()


def total(reports: Iterable[PartReport]) -> PartReport:
    """All parts of a stage as one report: but for the order of what is left out, the same for any division into parts."""
    out = PartReport("", -1, "")
    for report in reports:
        out.rows_in += report.rows_in
        out.rows_out += report.rows_out
        rows = out.sources.setdefault(report.source, [0, 0])
        rows[:] = rows[0] + report.rows_in, rows[1] + report.rows_out
        out.characters_in += report.characters_in
        out.characters_out += report.characters_out
        out.bytes_in += report.bytes_in
        out.counts += report.counts
        out.changed += report.changed
        out.dropped += report.dropped
        for reason, shown in report.examples.items():
            out.examples[reason] = _sample(out.examples.get(reason, []), shown)
        for reason, shown in report.left_out.items():
            out.left_out[reason] = _sample(out.left_out.get(reason, []), shown)
        for name, buckets in report.histograms.items():
            for bucket, number in buckets.items():
                out.count(name, bucket, number)
    return out
