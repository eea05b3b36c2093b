"""The table on the screen and ``report.html``, both drawn from the record. No network, no scripts, everything from data escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft.data.questions import Question
from sft.run.screen import printable
from sft.text.display import shown

_PAGE = Path(__file__).parent / "report.html.jinja"
_MOST_SHOWN = 300  # answers on the page; the files hold all of them
_MOST_CHARACTERS = 6_000
_LENGTHS = ("mean_tokens", "median_tokens", "longest_tokens")
Record = Mapping[str, Any]


def number(value: float | None, name: str, *, signed: bool = False) -> str:
    """A figure as it is shown: lengths with one digit, all others with four."""
    if value is None:
        return "-"
    digits = ".1f" if name in _LENGTHS else ".4f"
    return f"{value:{'+' if signed else ''}{digits}}"


def between(figure: Record | None, name: str, *, signed: bool = False) -> str:
    """Its interval."""
    if figure is None or figure["low"] is None:
        return "-"
    return f"{number(figure['low'], name, signed=signed)} to {number(figure['high'], name, signed=signed)}"


def lines(record: Record) -> list[tuple[str, ...]]:
    """Figure, value, interval, and what it is counted by; with a base also its value, the change and its interval."""
    out = []
    for name, figure in record["figures"].items():
        cells = [
            name,
            number(figure["value"], name),
            between(figure, name),
            "-" if figure["counted"] is None else f"{figure['counted']:,}",
        ]
        if record["base"] is not None:
            base, change = record["base_figures"].get(name), record["changes"].get(name)
            cells.append(number(base["value"], name) if base else "-")
            cells += [number(change["value"], name, signed=True) if change else "-", between(change, name, signed=True)]
        out.append(tuple(cells))
    return out


def heads(record: Record) -> tuple[str, ...]:
    """Heads of :func:`lines`."""
    own = ("figure", "value", "95 %", "over")
    return own if record["base"] is None else (*own, "base", "change", "95 % of it")


def print_record(console: Console, record: Record) -> None:
    """The table, what was left out of sets, and the conditions."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    shown_heads = [head for head in heads(record) if head != "over" or record["base"] is None]  # 80 columns hold no more
    for i, head in enumerate(shown_heads):
        table.add_column(head, justify="left" if i == 0 else "right", overflow="fold")
    for cells in lines(record):
        named = dict(zip(heads(record), cells, strict=True))
        table.add_row(*(Text(printable(named[head])) for head in shown_heads))
    console.print(table)
    for one in record["sets"]:
        if left := {**one["counts"], **one["changed"]}:
            told = ", ".join(f"{reason} {count:,}" for reason, count in left.items())
            console.print(Text(printable(f"{one['name']}: left out or changed: {told}")), soft_wrap=True)
    for one in record["conditions"]:
        value = "nothing" if one["value"] is None else f"{one['value']:.6g}"
        word = "met" if one["holds"] else "NOT MET"
        console.print(Text(printable(f"{one['condition']}: {word}, measured {value}")), soft_wrap=True)


def write_page(record: Record, questions: Sequence[Question], out: Path) -> None:
    """Write the page.

    Args:
        record: of the evaluation.
        questions: that were answered.
        out: the file.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    tuned, base = record.get("tuned", {}), record.get("untuned", {})
    told = _answers(tuned.get("answers", []), base.get("answers"), questions)
    page = environment.from_string(_PAGE.read_text(encoding="utf-8")).render(
        name=shown(record["model"]),
        base=None if record["base"] is None else shown(record["base"]),
        heads=heads(record),
        lines=[tuple(shown(cell) for cell in cells) for cells in lines(record)],
        conditions=record["conditions"],
        sets=record["sets"],
        questions=record["questions"],
        tasks=record["tasks"],
        answers=told[:_MOST_SHOWN],
        left=len(told) - len(told[:_MOST_SHOWN]),
        weights=[(shown(one["name"]), one["weights"]) for one in (tuned, base) if one],
        versions=record["versions"],
    )
    out.write_text(page, encoding="utf-8")


def _answers(own: Sequence[Record], base: Sequence[Record] | None, questions: Sequence[Question]) -> list[dict[str, Any]]:
    asked = {question.id: question for question in questions}
    out = []
    for i, one in enumerate(own):
        both = [("answer", one)] if base is None else [("tuned", one), ("base", base[i])]
        sides = [(head, shown(side["text"], _MOST_CHARACTERS), _marks(side)) for head, side in both]
        prompt = shown(asked[one["question"]].turns[one["turn"]], _MOST_CHARACTERS)
        out.append({"id": shown(str(one["question"])), "turn": one["turn"] + 1, "prompt": prompt, "sides": sides})
    return out


def _marks(one: Record) -> list[tuple[str, bool]]:
    """What was found in an answer, and whether it is something to look at."""
    marks = [(f"{one['tokens']:,} tokens", False), ("stopped" if one["stopped"] else "cut at the limit", not one["stopped"])]
    marks.append((f"repetition {one['repetition']:.2f}", one["repetition"] > 0.5))
    if one["loops"]:
        marks.append((f"loops over {one['loops']} tokens", True))
    if one["refuses"]:
        marks.append((f"refuses: {shown(one['refuses'], 80)}", True))
    if one["empty"]:
        marks.append(("empty", True))
    return marks
