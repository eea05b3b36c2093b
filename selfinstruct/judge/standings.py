"""Judgment files on the screen: pairs with intervals, strengths, ratings, agreement, and whether a difference is more than noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfinstruct.judge.agreement import agreements, consistencies
from selfinstruct.judge.asking import read_answers
from selfinstruct.judge.charts import by_category
from selfinstruct.judge.length import length_controlled, with_lengths
from selfinstruct.judge.outcomes import Game, Rated, read_judgments
from selfinstruct.judge.statistics import Compared, compare, mean_ratings, strengths
from selfinstruct.judge.tables import (
    print_pairs,
    print_ratings,
    print_strengths,
    print_turns,
    said_agreement,
    said_consistency,
)
from sft.data.questions import read_questions
from sft.errors import DataError, InputError

if TYPE_CHECKING:
    from rich.console import Console


def standings(
    paths: Sequence[Path],
    model: str | None,
    console: Console,
    *,
    answers: Sequence[Path] = (),
    questions: str | Path | None = None,
) -> dict[str, Any]:
    """Read judgments and print what they add up to. Where judges and people both decided, what people say is told apart.

    Args:
        paths: judgment files, of one or of several judges, and votes.
        model: compare this one with each other; None compares all pairs.
        console: prints.
        answers: answer files, for the lengths where the judgments do not have them.
        questions: a question file, for the categories.

    Returns:
        The same as plain data.

    Raises:
        InputError: nothing that could be read, no such model, or answers or questions of something else.
    """
    games, ratings = read_judgments(paths)
    if not games and not ratings:
        raise InputError(f"{', '.join(map(str, paths))}: there is no judgment in these files")
    models = sorted({name for game in games for name in (game.first, game.second)} | {one.model for one in ratings})
    if model is not None and model not in models:
        raise InputError(f"--model: nobody judged {model!r}; there are {', '.join(models)}")
    games = _lengths(games, answers, models)
    of_people = [game for game in games if game.human]
    of_judges = [game for game in games if not game.human]
    found = _figures(console, of_judges or of_people, model)
    if of_people and of_judges:
        console.print("by the votes of people:", markup=False)
        found["people"] = _figures(console, of_people, model)
    found["ratings"] = _ratings(console, ratings)
    found["categories"] = _categories(questions, of_judges or of_people, ratings)
    agreed, same = agreements(games), consistencies(games, ratings)
    for line in (*map(said_agreement, agreed), *map(said_consistency, same)):
        console.print(line, markup=False)
    found["agreement"] = [dataclasses.asdict(one) for one in agreed]
    found["consistency"] = [dataclasses.asdict(one) for one in same]
    for pair in found["pairs"]:
        console.print(sentence_of(pair), markup=False)
    return found


def _figures(console: Console, games: Sequence[Game], model: str | None) -> dict[str, Any]:
    """Pairs, their turns, and strengths."""
    pairs = _readable(console, games, _pairs(games, model))
    compared = [compare(games, ours, theirs) for ours, theirs in pairs]
    controlled = [length_controlled(games, ours, theirs) for ours, theirs in pairs]
    if compared:
        print_pairs(console, compared, controlled)
    found: dict[str, Any] = {"pairs": []}
    for one, equal in zip(compared, controlled, strict=True):
        length = None if equal is None else dataclasses.asdict(equal)
        found["pairs"].append(dataclasses.asdict(one) | {"verdict": one.verdict, "length_controlled": length})
    found["turns"] = _turns(games, pairs)
    if found["turns"]:
        print_turns(console, found["turns"])
    found["strengths"] = _strengths(console, games) if len(pairs) > 1 else []
    return found


def _pairs(games: Sequence[Game], model: str | None) -> list[tuple[str, str]]:
    met = {frozenset((game.first, game.second)) for game in games}
    names = sorted({name for game in games for name in (game.first, game.second)})
    if model is not None:
        return [(model, name) for name in names if frozenset((model, name)) in met]
    return [(a, b) for a, b in combinations(names, 2) if frozenset((a, b)) in met]


def _readable(console: Console, games: Sequence[Game], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs with a game that could be read; the others are told.

    Raises:
        DataError: there is none.
    """
    met = {frozenset((game.first, game.second)) for game in games if game.outcome is not None}
    found = [pair for pair in pairs if frozenset(pair) in met]
    lost = [pair for pair in pairs if frozenset(pair) not in met]
    for ours, theirs in lost if found else ():
        console.print(f"no readable judgment compares {ours} with {theirs}; they are left out", markup=False)
    if lost and not found:
        raise DataError(f"no readable judgment compares {lost[0][0]} with {lost[0][1]}")
    return found


def _turns(games: Sequence[Game], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Each pair turn by turn, where questions have several."""
    turns = sorted({game.turn for game in games})
    found = []
    for (ours, theirs), turn in ((pair, turn) for pair in pairs for turn in turns if len(turns) > 1):
        try:
            one = compare([game for game in games if game.turn == turn], ours, theirs)
        except DataError:
            continue  # these two have no readable game of this turn
        chosen = ("ours", "theirs", "wins", "ties", "losses", "adjusted", "interval")
        found.append({"turn": turn} | {key: getattr(one, key) for key in chosen})
    return found


def _strengths(console: Console, games: Sequence[Game]) -> list[dict[str, Any]]:
    try:
        found = strengths(games)
    except DataError as refusal:
        console.print(f"no strengths: {refusal}", markup=False)
        return []
    print_strengths(console, found)
    return [dataclasses.asdict(one) for one in found]


def _ratings(console: Console, ratings: Sequence[Rated]) -> dict[str, Any]:
    """Mean ratings, over all and by turn, as MT-bench has them."""
    turns = sorted({one.turn for one in ratings})
    by_turn = {turn: mean_ratings([one for one in ratings if one.turn == turn]) for turn in turns if len(turns) > 1}
    found = {}
    for name, (mean, span, lost) in mean_ratings(ratings).items():
        parts = {turn: means[name] for turn, means in by_turn.items() if name in means}
        own = {str(turn): {"mean": part[0], "interval": part[1]} for turn, part in parts.items()}
        found[name] = {"mean": mean, "interval": span, "unreadable": lost, "turns": own}
    if found:
        print_ratings(console, found)
    return found


def _lengths(games: list[Game], paths: Sequence[Path], models: Sequence[str]) -> list[Game]:
    """Games with the lengths of answers; a file is of the model that it names, or that its own name does (``answer_MODEL.jsonl``)."""
    answers = {}
    for path in paths:
        name, said = read_answers(path)
        known = [one for one in (name, path.stem.removeprefix("answer_")) if one in models]
        if not known:
            raise InputError(f"--answers: {path} has answers of {name}, whom nobody judged here; there are {', '.join(models)}")
        answers[known[0]] = said
    return with_lengths(games, answers) if answers else games


def _categories(path: str | Path | None, games: Sequence[Game], ratings: Sequence[Rated]) -> list[dict[str, Any]]:
    if path is None:
        return []
    categories = {str(question.id): question.category for question in read_questions(path)}
    found = by_category(games, ratings, categories)
    if not found:
        raise InputError(f"--questions: no question of {path} was judged here; give the file that the judgments are about")
    return found


def sentence_of(pair: Mapping[str, Any]) -> str:
    """As :func:`sentence`, of a pair in the plain data."""
    names = {field.name for field in dataclasses.fields(Compared)}
    return sentence(Compared(**{key: value for key, value in pair.items() if key in names}))


def sentence(one: Compared) -> str:
    """Whether a difference exceeds noise, in words."""
    low, high = one.interval
    said = f"{one.ours} against {one.theirs}: {one.adjusted:.1%} ({low:.1%} to {high:.1%}) of {one.questions} questions, "
    if one.verdict != "not settled":
        return said + f"{one.verdict}, beyond noise"
    if one.needed is None:
        return said + "even: no number of questions would settle that"
    return said + f"not settled: a difference of this size takes about {one.needed:,} questions"
