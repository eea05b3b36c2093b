"""Judgment files on the screen: pairs with intervals, strengths, ratings, agreement, and whether a difference is more than noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfinstruct.judge.outcomes import Game, read_judgments
from selfinstruct.judge.statistics import Compared, agreement, compare, mean_ratings, strengths
from sft.errors import DataError, InputError

if TYPE_CHECKING:
    from rich.console import Console


def standings(paths: Sequence[Path], model: str | None, console: Console) -> dict[str, Any]:
    """Read judgments and print what they add up to.

    Args:
        paths: judgment files, of one or of several judges.
        model: compare this one with each other; None compares all pairs.
        console: prints.

    Returns:
        The same as plain data.

    Raises:
        InputError: nothing that could be read, or no such model.
    """
    games, ratings = read_judgments(paths)
    if not games and not ratings:
        raise InputError(f"{', '.join(map(str, paths))}: there is no judgment in these files")
    models = sorted({name for game in games for name in (game.first, game.second)} | {one.model for one in ratings})
    if model is not None and model not in models:
        raise InputError(f"--model: nobody judged {model!r}; there are {', '.join(models)}")
    pairs = _pairs(games, model)
    compared = [compare(games, ours, theirs) for ours, theirs in pairs]
    if compared:
        _print_pairs(console, compared)
    found: dict[str, Any] = {"pairs": [dataclasses.asdict(one) | {"verdict": one.verdict} for one in compared]}
    found["strengths"] = _print_strengths(console, games) if len(pairs) > 1 else []
    rated = mean_ratings(ratings)
    if rated:
        _print_ratings(console, rated)
    found["ratings"] = {
        name: {"mean": mean, "interval": span, "unreadable": lost} for name, (mean, span, lost) in rated.items()
    }
    found["agreement"] = _print_agreement(console, games)
    for one in compared:
        console.print(sentence(one), markup=False)
    return found


def _pairs(games: Sequence[Game], model: str | None) -> list[tuple[str, str]]:
    met = {frozenset((game.first, game.second)) for game in games}
    names = sorted({name for game in games for name in (game.first, game.second)})
    if model is not None:
        return [(model, name) for name in names if frozenset((model, name)) in met]
    return [(a, b) for a, b in combinations(names, 2) if frozenset((a, b)) in met]


def sentence_of(pair: Mapping[str, Any]) -> str:
    """As :func:`sentence`, of a pair in the plain data."""
    return sentence(Compared(**{key: value for key, value in pair.items() if key != "verdict"}))


def sentence(one: Compared) -> str:
    """Whether a difference exceeds noise, in words."""
    low, high = one.interval
    said = f"{one.ours} against {one.theirs}: {one.adjusted:.1%} ({low:.1%} to {high:.1%}) of {one.questions} questions, "
    if one.verdict != "not settled":
        return said + f"{one.verdict}, beyond noise"
    if one.needed is None:
        return said + "even: no number of questions would settle that"
    return said + f"not settled: a difference of this size takes about {one.needed:,} questions"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _print_pairs(console: Console, compared: Sequence[Compared]) -> None:
    from rich.table import Table

    heads = (
        "model",
        "against",
        "win",
        "tie",
        "loss",
        "unread",
        "win rate",
        "with ties",
        "95 %",
        "relative",
        "consistent",
        "first place",
    )
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    for one in compared:
        span = f"{one.interval[0]:.1%} to {one.interval[1]:.1%}"
        relative = (
            "" if one.relative is None else f"{one.relative[0]:.1%} ({one.relative[1][0]:.1%} to {one.relative[1][1]:.1%})"
        )
        table.add_row(
            *(one.ours, one.theirs, *(f"{n:,}" for n in (one.wins, one.ties, one.losses, one.unreadable))),
            *(f"{one.win_rate:.1%}", f"{one.adjusted:.1%}", span, relative, _share(one.consistent), _share(one.first_place)),
        )
    console.print(table)


def _print_strengths(console: Console, games: Sequence[Game]) -> list[dict[str, Any]]:
    from rich.table import Table

    try:
        found = strengths(games)
    except DataError as refusal:
        console.print(f"no strengths: {refusal}", markup=False)
        return []
    table = Table("strength", "points", "95 %", "games", box=None, padding=(0, 1, 0, 0))
    for one in found:
        table.add_row(one.model, f"{one.points:,.0f}", f"{one.interval[0]:,.0f} to {one.interval[1]:,.0f}", f"{one.games:,}")
    console.print(table)
    return [dataclasses.asdict(one) for one in found]


def _print_ratings(console: Console, rated: dict[str, tuple[float, tuple[float, float], int]]) -> None:
    from rich.table import Table

    table = Table("rating", "mean", "95 %", "unread", box=None, padding=(0, 1, 0, 0))
    for name, (mean, (low, high), lost) in rated.items():
        table.add_row(name, f"{mean:.2f}", f"{low:.2f} to {high:.2f}", f"{lost:,}")
    console.print(table)


def _print_agreement(console: Console, games: Sequence[Game]) -> list[dict[str, Any]]:
    """Of each two judges that share games."""
    found = []
    for one, other in combinations(sorted({game.judge for game in games}), 2):
        try:
            sides = [[game for game in games if game.judge == judge] for judge in (one, other)]
            every, firm, count = agreement(*sides)
        except DataError:
            continue  # they judged other games
        console.print(
            f"{one} and {other} agree on {every:.1%} of {count:,} games, without ties {_share(firm) or '-'}", markup=False
        )
        found.append({"judges": [one, other], "agreement": every, "without_ties": firm, "games": count})
    return found
