"""``selfinstruct trace ID``: one candidate or row back to the requests, the demonstrations and the money that it came of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from selfinstruct.records import Candidate, Verdict
from selfinstruct.results.display import evidence, shown
from selfinstruct.store import item_of
from selfinstruct.teacher.ledger import Entry, Ledger
from sft.data.jsonl import read_rows
from sft.errors import DataError, InputError


@dataclass(frozen=True, slots=True)
class Trace:
    """One candidate and all that is known about it.

    Attributes:
        candidate, verdict: as candidates.jsonl has them.
        entries: ledger lines of the requests behind it, earliest stage first; fewer where the ledger does not hold them.
        ancestors: rows that it was evolved from, nearest first.
    """

    candidate: Candidate
    verdict: Verdict
    entries: tuple[Entry, ...]
    ancestors: tuple[Candidate, ...]


def trace(run_dir: str | Path, id_: str) -> Trace:
    """Find a candidate by its id.

    Raises:
        DataError: no ``candidates.jsonl``, or a line of it is damaged.
        InputError: no such id (with ids that there are).
    """
    run_dir = Path(run_dir)
    known = {candidate.id: (candidate, verdict) for candidate, verdict in _judged(run_dir)}
    if id_ not in known:
        some = ", ".join(list(known)[:3])
        raise InputError(f"{run_dir}: no candidate {id_!r}; ids are round-request-item{f', such as {some}' if some else ''}")
    candidate, verdict = known[id_]
    ancestors: list[Candidate] = []
    step = candidate
    while step.parent in known and len(ancestors) < len(known):
        step = known[step.parent][0]
        ancestors.append(step)
    return Trace(candidate, verdict, tuple(_entries(run_dir, (*candidate.via, candidate.request_id))), tuple(ancestors))


def _judged(run_dir: Path) -> Iterator[tuple[Candidate, Verdict]]:
    for row in read_rows(run_dir / "candidates.jsonl"):
        try:
            if row.error is not None:
                raise TypeError(row.error)
            item = item_of(row.value)
        except (KeyError, TypeError) as error:
            raise DataError(f"{row.where}: not a line of a run ({error})") from None
        if isinstance(item, tuple):
            yield item


def _entries(run_dir: Path, ids: tuple[str, ...]) -> Iterator[Entry]:
    path = run_dir / "ledger.jsonl"
    if not path.is_file():
        return
    with Ledger.open(path, read_only=True) as ledger:
        for id_ in dict.fromkeys(ids):
            entry = ledger.entry(id_)
            if entry is not None:
                yield entry


def print_trace(console: Console, found: Trace) -> None:
    """Show it, earliest request first. Text from data is shown, never interpreted."""
    c, v = found.candidate, found.verdict
    fate = "kept" if v.accepted else f"refused by {v.filter}: {v.reason}"
    parts: list[RenderableType] = [_field("instruction", c.instruction), _field("input", c.input), _field("output", c.output)]
    console.print(Panel(Group(*[p for p in parts if p]), title=Text(f"{c.id} · {fate}"), title_align="left"))
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(found):
        table.add_row(Text(name, style="dim"), Text(shown(value, 2000)))
    console.print(table)
    for entry in found.entries:
        _print_entry(console, entry, c)


def _field(name: str, text: str) -> Text | str:
    return Text.assemble((f"{name}\n", "bold"), shown(text, 4000)) if text else ""


def _facts(found: Trace) -> list[tuple[str, str]]:
    c, v = found.candidate, found.verdict
    facts = [
        ("round", str(c.round)),
        ("teacher", c.teacher),
        ("prompt", c.prompt_fingerprint),
        ("demonstrations", ", ".join(c.demonstrations)),
        ("cost", f"{c.cost:.6g}"),
        ("scores", evidence(v.scores)),
        ("evidence", evidence(v.evidence)),
        ("operator", c.operator),
        ("evolved from", " <- ".join([c.parent, *(a.parent for a in found.ancestors)]) if c.parent else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _print_entry(console: Console, entry: Entry, candidate: Candidate) -> None:
    request, completion = entry.request, entry.completion
    sampling = f"temperature {request.sampling.temperature:g}, at most {request.sampling.max_tokens} tokens"
    console.print(
        Text(f"\n{request.purpose} request {request.id}", style="bold"), Text(f"{request.model}, {sampling}", style="dim")
    )
    for message in request.messages:
        console.print(Text(f"{message.role}: ", style="dim"), Text(shown(message.content, 1200)), sep="")
    if completion is None:
        console.print(Text("no reply"))
        return
    usage = f"{completion.usage.prompt_tokens} + {completion.usage.completion_tokens} tokens, {completion.finish_reason}"
    console.print(Text(f"reply ({usage}):", style="dim"))
    text, around = completion.text, 200
    at = max(0, text.find(candidate.instruction))
    piece = text[max(0, at - around) : at + len(candidate.instruction) + len(candidate.output) + around]
    console.print(Text(("…" if at > around else "") + shown(piece, 2000)))
