"""Looking at candidates: what was kept, what was refused, why, and on what evidence, in the terminal or as a page.

A draw is a function of the run and the seed, so that two people who review the same run see the same candidates. Text from the run is
shown, never obeyed: no markup is read from it, and control characters are spelled out.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfinstruct.results.display import evidence, sample, shown
from selfinstruct.results.rundir import Failed, Judged, RunData, read_run
from sft.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PARSING, TEACHER = "parsing", "teacher"
"""The names by which pieces that could not be parsed, and requests without a reply, are found among the filters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which candidates to look at; what is None does not narrow.

    Attributes:
        kept: True for accepted ones only, False for refused ones only.
        filter: refused by this filter; ``parsing`` for pieces that were no candidates, ``teacher`` for requests without a reply.
        reason: refused for this reason.
        count: how many to draw; None for all.
        seed: of the draw.
    """

    kept: bool | None = None
    filter: str | None = None
    reason: str | None = None
    count: int | None = 10
    seed: int = 0


Entry = Judged | Failed


def select(run: RunData, query: Query) -> list[Entry]:
    """The candidates that a query asks for, drawn, in the order of the run.

    Raises:
        InputError: no such filter or reason in this run, or a query that contradicts itself.
    """
    if query.kept and (query.filter or query.reason):
        raise InputError("kept candidates have no filter and no reason; drop one of the two")
    if query.count is not None and query.count < 1:
        raise InputError(f"{query.count} candidates cannot be shown; ask for at least 1")
    entries: list[Entry] = [*run.unanswered, *run.failures, *run.judged]
    _known("filter", query.filter, {_filter(entry) for entry in entries if not _kept(entry)})
    _known("reason", query.reason, {entry.reason for entry in entries if not _kept(entry)})
    found = [
        entry
        for entry in entries
        if (query.kept is None or _kept(entry) == query.kept)
        and (query.filter is None or (not _kept(entry) and _filter(entry) == query.filter))
        and (query.reason is None or (not _kept(entry) and entry.reason == query.reason))
    ]
    return found if query.count is None else sample(found, query.count, query.seed)


def review(run_dir: str | Path, console: Console, query: Query, *, html: Path | None = None) -> int:
    """Print the candidates that a query asks for, and how many there are by filter and reason.

    Args:
        run_dir: a run directory.
        console: where to print.
        query: what to show.
        html: also write the candidates to this page, which must not be there yet.

    Returns:
        How many were shown.

    Raises:
        DataError: the run's files are missing or damaged.
        InputError: the query asks for what is not there, or ``html`` is taken.
    """
    if html is not None and html.exists():
        raise InputError(f"{html}: already there; nothing is overwritten, so name a new page")
    run = read_run(run_dir)
    chosen = select(run, query)
    console.print(_counts(run))
    for entry in chosen:
        console.print(_panel(entry))
    if html is not None:
        _write_page(html, run.name, chosen)
    return len(chosen)


def _kept(entry: Entry) -> bool:
    return isinstance(entry, Judged) and entry.accepted


def _filter(entry: Entry) -> str:
    if isinstance(entry, Judged):
        return entry.filter
    return PARSING if entry.item >= 0 else TEACHER


def _known(what: str, wanted: str | None, there: set[str]) -> None:
    if wanted is not None and wanted not in there:
        names = ", ".join(shown(name, 60) for name in sorted(there)) or "none"
        raise InputError(f"nothing was refused with {what} {shown(wanted, 60)!r} in this run; there are: {names}")


def _counts(run: RunData) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("filter", "reason", box=None)
    table.add_column("candidates", justify="right")
    table.add_row(Text("accepted", style="green"), "", f"{sum(item.accepted for item in run.judged):,}")
    for code, count in Counter(failure.reason for failure in run.unanswered).most_common():
        table.add_row(TEACHER, Text(shown(code, 60)), f"{count:,}")
    for stage in run.funnel():
        for reason, count in Counter(stage.reasons).most_common():
            table.add_row(Text(shown(stage.name, 60)), Text(shown(reason, 60)), f"{count:,}")
    return table


def _panel(entry: Entry) -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    head, why = _told(entry)
    body = Text()
    for label, part in _parts(entry):
        body.append(f"{label}\n", style="dim")
        body.append(f"{shown(part, 1200)}\n")
    if why:
        body.append(why, style="dim italic")
    return Panel(body, title=Text(head), title_align="left", border_style="green" if _kept(entry) else "red")


def _told(entry: Entry) -> tuple[str, str]:
    """A heading, and the evidence or, for a kept candidate, the scores."""
    if isinstance(entry, Failed):
        place = f", item {entry.item}" if entry.item >= 0 else ""
        return f"request {shown(entry.request_id, 40)}{place}: {shown(entry.reason, 60)}", ""
    if entry.accepted:
        return f"{shown(entry.id, 60)}: accepted", evidence(entry.scores)
    return f"{shown(entry.id, 60)}: {shown(entry.filter, 60)}, {shown(entry.reason, 60)}", evidence(entry.evidence)


def _parts(entry: Entry) -> list[tuple[str, str]]:
    if isinstance(entry, Failed):
        return [("piece" if entry.item >= 0 else "error", entry.detail)]
    parts = [("instruction", entry.instruction), ("input", entry.input), ("output", entry.output)]
    return [(label, part) for label, part in parts if part]


def _write_page(path: Path, name: str, entries: Sequence[Entry]) -> None:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    told = [(_kept(entry), *_told(entry), [(label, shown(part, 4000)) for label, part in _parts(entry)]) for entry in entries]
    page = environment.from_string(_PAGE).render(name=shown(name, 120), entries=told)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ name }}: review</title>
<style>
  :root { color-scheme: light dark; --soft: #8881 }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
  h1 { font-size: 1.6rem } h2 { font-size: 1rem; margin: 0 0 .3rem }
  section { border-left: 4px solid #e45756; padding-left: .8rem; margin: 1.4rem 0 } section.kept { border-color: #54a24b }
  pre { white-space: pre-wrap; background: var(--soft); padding: .6rem .8rem; border-radius: 6px; margin: .1rem 0 .4rem } small { opacity: .7 }
</style>
<h1>{{ name }}</h1>
{% for kept, head, why, parts in entries %}<section{% if kept %} class="kept"{% endif %}><h2>{{ head }}</h2>
{% for label, part in parts %}<small>{{ label }}</small><pre>{{ part }}</pre>{% endfor %}
{% if why %}<small>{{ why }}</small>{% endif %}</section>
{% else %}<p>None.</p>{% endfor %}
</html>
"""
