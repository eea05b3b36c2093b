"""Figures on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfinstruct.judge.agreement import PEOPLE, Agreed, Consistency, Share
from selfinstruct.judge.length import Controlled
from selfinstruct.judge.statistics import Compared, Strength

if TYPE_CHECKING:
    from rich.console import Console

_PAIRS = (
    *("model", "against", "win", "tie", "loss", "unread", "win rate", "with ties", "95 %"),
    *("at equal length", "relative", "consistent", "first place"),
)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _spanned(value: float, span: Sequence[float]) -> str:
    return f"{value:.1%} ({span[0]:.1%} to {span[1]:.1%})"


def _table(*heads: str) -> Any:
    from rich.table import Table

    return Table(*heads, box=None, padding=(0, 1, 0, 0))


def print_pairs(console: Console, compared: Sequence[Compared], controlled: Sequence[Controlled | None]) -> None:
    """Each two models; columns that are empty throughout are left out."""
    rows = []
    for one, equal in zip(compared, controlled, strict=True):
        span = f"{one.interval[0]:.1%} to {one.interval[1]:.1%}"
        length = (
            ""
            if equal is None
            else _spanned(equal.win_rate, equal.interval) + (" beyond the data" if equal.extrapolated else "")
        )
        rows.append(
            (
                *(one.ours, one.theirs, *(f"{n:,}" for n in (one.wins, one.ties, one.losses, one.unreadable))),
                *(f"{one.win_rate:.1%}", f"{one.adjusted:.1%}", span, length),
                "" if one.relative is None else _spanned(*one.relative),
                *(_share(one.consistent), _share(one.first_place)),
            )
        )
    chosen = [i for i, head in enumerate(_PAIRS) if any(row[i] for row in rows) or head != "at equal length"]
    table = _table(*(_PAIRS[i] for i in chosen))
    for row in rows:
        table.add_row(*(row[i] for i in chosen))
    console.print(table)


def print_strengths(console: Console, found: Sequence[Strength]) -> None:
    table = _table("strength", "points", "95 %", "games")
    for one in found:
        table.add_row(one.model, f"{one.points:,.0f}", f"{one.interval[0]:,.0f} to {one.interval[1]:,.0f}", f"{one.games:,}")
    console.print(table)


def print_ratings(console: Console, rated: Mapping[str, Mapping[str, Any]]) -> None:
    """Means, of each turn too where there are several."""
    turns = sorted({int(turn) for one in rated.values() for turn in one["turns"]})
    table = _table("rating", "mean", "95 %", *(f"turn {turn}" for turn in turns), "unread")
    for name, one in rated.items():
        by_turn = (one["turns"].get(str(turn)) for turn in turns)
        means = (f"{turn['mean']:.2f}" if turn else "" for turn in by_turn)
        span = f"{one['interval'][0]:.2f} to {one['interval'][1]:.2f}"
        table.add_row(name, f"{one['mean']:.2f}", span, *means, f"{one['unreadable']:,}")
    console.print(table)


def print_turns(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    table = _table("model", "against", "turn", "win", "tie", "loss", "with ties", "95 %")
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("wins", "ties", "losses"))
        span = f"{row['interval'][0]:.1%} to {row['interval'][1]:.1%}"
        table.add_row(row["ours"], row["theirs"], str(row["turn"]), *counts, f"{row['adjusted']:.1%}", span)
    console.print(table)


def _counted(share: Share) -> str:
    return f"{_spanned(share.value, share.interval)} of {share.pairs:,}"


def said_agreement(one: Agreed) -> str:
    """A sentence."""
    who = "people agree among themselves" if one.sides == (PEOPLE, PEOPLE) else f"{one.sides[0]} and {one.sides[1]} agree"
    turn = "" if one.turn is None else f", turn {one.turn}"
    firm = "-" if one.firm is None else _counted(one.firm)
    return f"{who}{turn}: {_counted(one.every)} pairs of votes; without ties {firm}"


def said_consistency(one: Consistency) -> str:
    """A sentence."""
    what = {"verdict": "the same prompt", "game": "both orders together", "rating": "the same answer"}[one.what]
    apart = "" if one.difference is None else f", {one.difference:.2f} apart in the mean"
    return f"{one.judge} asked again decides the same on {what}: {_counted(one.same)} pairs of repeats{apart}"
