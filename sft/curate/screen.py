"""What a curation says on the terminal: rows by stage, what was left out and changed and why, where the rows are. From the record only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sft.curate import statistics
from sft.curate.parts import PartReport
from sft.text.display import shown

if TYPE_CHECKING:
    from sft.curate.pipeline import Curation

HIDDEN = frozenset({"signatures"})
"""Stages that no row passes through."""


def lines(done: Curation) -> Iterator[str]:
    """The whole of what a verb ends with."""
    for name, report in done.stages.items():
        if name in HIDDEN:
            continue
        yield f"{name + ':':<7}{report.rows_in:,} rows in, {report.rows_out:,} out{_parts(done, name)}"
        yield from _reasons("left out", report.counts)
        yield from _reasons("changed", report.changed)
        totals = report.histograms.get("totals", {})
        if totals:
            yield f"       {tokens_line(totals)}"
    for label, counts in done.mixed.items():
        yield f"mix:   {shown(label, 60)}: {mix_line(counts)}"
    for path, what in _files(done.folder, bool(done.mixed)):
        yield f"{what}: {path}"


def tokens_line(totals: Mapping[str, int]) -> str:
    """Tokens and what of them is learnt."""
    tokens, learnt = totals.get("tokens", 0), totals.get("learnt tokens", 0)
    return f"{tokens:,} tokens, {learnt:,} of them learnt ({learnt / max(tokens, 1):.1%})"


def mix_line(counts: Mapping[str, int]) -> str:
    """What became of a source's rows in the mix."""
    within = "" if counts["within_limit"] == counts["rows"] else f", {counts['within_limit']:,} within its limit"
    thinned = f", {counts['by_weight']:,} left out by its weight" if counts.get("by_weight") else ""
    return f"{counts['rows']:,} rows{within}, {counts['held_out']:,} held out{thinned}, {counts['written']:,} to train on"


def _parts(done: Curation, name: str) -> str:
    count, reused = done.parts[name]
    taken = f", {reused:,} of {count:,} parts taken as they stood" if reused else ""
    return f"{taken}; {rate(done.fresh[name], done.seconds[name])}"


def rate(size: int, seconds: float) -> str:
    """``12.3 s`` or ``12.3 s, 4.5 MB/s``: the rate of less than a megabyte says nothing about a larger one."""
    return f"{seconds:,.1f} s" + (f", {size / seconds / 1e6:,.1f} MB/s" if size >= 1_000_000 and seconds > 0 else "")


def _reasons(word: str, counts: Mapping[str, int]) -> Iterator[str]:
    if counts:
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        yield f"       {word}: " + ", ".join(f"{reason} {count:,}" for reason, count in ordered)


def _files(folder: Path, whole: bool) -> Iterator[tuple[Path, str]]:
    if whole:
        yield folder / "train.jsonl", "rows"
        if (folder / "holdout.jsonl").is_file():
            yield folder / "holdout.jsonl", "held out"
    if (folder / "dropped.jsonl").stat().st_size:
        yield folder / "dropped.jsonl", "left out"


def stats_lines(path: Path) -> Iterator[str]:
    """What is in a file of conversations, of any row shape.

    Raises:
        DataError: it cannot be read, or no format fits it.
    """
    report = _count(path)
    histograms = report.histograms
    size = f"{report.bytes_in / 1e6:,.1f} MB" if report.bytes_in >= 1_000_000 else f"{report.bytes_in / 1e3:,.1f} kB"
    yield f"{path}: {report.rows_in:,} rows, {size} of text"
    yield from _reasons("unreadable", report.counts)
    if "turns" not in histograms:
        return
    yield _spread("turns", histograms["turns"], about=f"mean {statistics.mean(histograms['turns']):.1f}, ")
    yield _spread("characters of a conversation", histograms["characters after"])
    for role in ("system", "user", "assistant"):
        if role_histogram := histograms.get(f"characters {role}"):
            yield _spread(f"characters of a message, {role}", role_histogram)
    languages = sorted(histograms["languages"].items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{'not told' if code == statistics.UNKNOWN else code} {count:,}" for code, count in languages)
    yield f"       languages of the first question: {told}"


def _spread(what: str, buckets: Mapping[str, int], about: str = "") -> str:
    places = ", ".join(f"{name} {statistics.quantile(buckets, share):,}" for name, share in _QUANTILES)
    return f"       {what}: {about}{places}"


_QUANTILES = (("half up to", 0.5), ("90% up to", 0.9), ("all up to", 1.0))


def _count(path: Path) -> PartReport:
    """One pass over a file, no rule applied."""
    from sft.curate.clean import Cleaner
    from sft.curate.parts import Batch
    from sft.data.sources import raw_rows, with_format
    from sft.recipe import Source

    source = Source(path=str(path))
    name, rows = with_format(source, raw_rows(source))
    cleaner = Cleaner((), {source.label: (name, {})})
    report = PartReport("", 0, source.label)
    for row in rows:
        for _ in cleaner(Batch(0, source.label, "", rows=(row,)), report):
            pass
    return report
