"""Judges asked again, people's votes, equal length, and charts: laws, and computations beside ours."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.optimize import minimize
from typer.testing import CliRunner

from selfinstruct.cli import app
from selfinstruct.judge.agreement import agreements, consistencies
from selfinstruct.judge.charts import by_category, charts
from selfinstruct.judge.length import fit, length_controlled
from selfinstruct.judge.outcomes import Game, Rated, read_judgments
from selfinstruct.judge.standings import standings
from selfinstruct.judge.statistics import compare
from selfinstruct.judge.verdicts import pair_verdict, rating
from sft.errors import DataError, InputError
from tests.selfinstruct.test_judge import games_of, pair_row, write

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_verdicts_is_what_the_reader_does() -> None:
    page = (ROOT / "docs" / "judge.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+)` \| (A|B|tie|none) \| ([\d.]+|none) \|$", page, re.M)
    assert len(rows) == page.split("### What a verdict is")[1].split("\n## ")[0].count("\n| `") == 27
    names = {"first": "A", "second": "B", "tie": "tie", None: "none"}
    for text, pair, number in rows:
        assert names[pair_verdict(text)] == pair, text
        assert rating(text) == (None if number == "none" else float(number)), text


# -- repeats --------------------------------------------------------------------------------------------------------


def asked_again(outcomes: list[tuple[str, str, str]]) -> list[Game]:
    """Games of three repeats for each question, both orders alike: w, t, l."""
    told = {"w": "first", "l": "second", "t": "tie"}
    return [
        Game(str(q), 1, "a", "b", (told[o],) * 2, judge="j", repeat=r)
        for q, some in enumerate(outcomes)
        for r, o in enumerate(some, 1)
    ]


def test_a_judge_with_itself() -> None:
    games = asked_again([("w", "w", "w"), ("w", "w", "l"), ("t", "w", "l"), ("l", "l", "l")])
    verdict, game = consistencies(games, [])
    assert (verdict.what, game.what) == ("verdict", "game")
    assert game.same.value == verdict.same.value == (3 + 1 + 0 + 3) / 12
    assert (game.same.pairs, verdict.same.pairs, game.same.questions) == (12, 24, 4)
    assert game.same.interval[0] < 7 / 12 < game.same.interval[1]
    rated = [Rated("1", 1, "a", value, "j", repeat) for repeat, value in enumerate((8.0, 8.0, 6.0), 1)]
    (found,) = consistencies([], [*rated, Rated("2", 1, "a", None, "j", 1)])
    assert (found.what, found.same.value) == ("rating", 1 / 3)
    assert found.difference == pytest.approx(4 / 3)
    assert consistencies(games_of("wl"), []) == []


def test_repeats_are_averaged_within_turns_within_questions() -> None:
    games = asked_again([("w", "w", "l"), ("l", "l", "l")])
    found = compare(games, "a", "b")
    assert found.adjusted == pytest.approx((2 / 3 + 0) / 2)
    assert (found.questions, found.wins) == (2, 2)
    # a second turn that was judged once weighs as much as the first with its three repeats
    games.append(Game("0", 2, "a", "b", ("second",) * 2, judge="j"))
    assert compare(games, "a", "b").adjusted == pytest.approx(1 / 6)


# -- votes ----------------------------------------------------------------------------------------------------------


def said(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def vote(winner: str, **more: Any) -> dict[str, Any]:
    return {"model_a": "a", "model_b": "b", "winner": winner, "turn": 1, **more}


def test_votes_are_read(tmp_path: Path) -> None:
    named = [vote("model_a", question_id=81, judge="expert_17"), vote("tie (bothbad)", question_id=81, judge="author_2")]
    machine = [vote("tie (inconsistent)", question_id=81, judge="gpt4_pair")]
    own = [vote("model_b", conversation_a=said("Hi?", "Hello"), conversation_b=said("Hi?", "Yo"), tstamp=n) for n in (1, 2)]
    other = [vote("tie", conversation_a=said("Why?", ""), conversation_b=said("Why?", "Because"))]
    games, _ = read_judgments([write(tmp_path / "v.jsonl", [*named, *machine, *own, *other])])
    assert [game.outcome for game in games] == ["first", "tie", "tie", "second", "second", "tie"]
    assert [game.human for game in games] == [True, True, False, True, True, True]
    assert [game.lengths for game in games[3:]] == [(5, 2), (5, 2), (0, 7)]
    assert games[3].question == games[4].question != games[5].question


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (vote("A", question_id=1), "winner must be one of model_a, model_b, tie, .*not 'A'"),
        (vote("tie", question_id=1, model_b="a"), "model_a and model_b must be two names"),
        (vote("tie"), "a vote has question_id, or conversation_a to know the question by"),
        (vote("tie", conversation_a="Hi"), "conversation_a must be a list of messages with role and content"),
        (vote("tie", question_id=1, conversation_b=[{"role": "user"}]), "conversation_b must be a list of messages"),
        (vote("tie", question_id=1, turn=0), "turn must be a number from 1, not 0"),
        (pair_row(1, "tie", "tie", repeat="x"), "repeat must be a number from 1, not 'x'"),
        (vote("tie", question_id=0), r"this was judged at .*x\.jsonl:1 already"),
    ],
)
def test_votes_that_are_none_are_refused(tmp_path: Path, row: Any, wrong: str) -> None:
    with pytest.raises(DataError, match=rf"x\.jsonl:2: {wrong}"):
        read_judgments([write(tmp_path / "x.jsonl", [vote("tie", question_id=0), row])])


def test_agreement_with_people_counts_pairs_of_votes() -> None:
    judged = [Game(str(q), t, "a", "b", (v,), judge="j") for q, t, v in ((1, 1, "first"), (1, 2, "tie"), (2, 1, "second"))]
    told = [(1, 1, "x", "first"), (1, 1, "y", "second"), (1, 2, "x", "first")]
    told += [(2, 1, "x", "second"), (2, 1, "y", "tie"), (2, 1, "", "second")]
    people = [Game(str(q), t, "a", "b", (v,), judge=who, human=True) for q, t, who, v in told]
    found = {(one.sides, one.turn): one for one in agreements([*judged, *people])}
    with_people = found[("j", "people"), None]
    assert (with_people.every.value, with_people.every.pairs) == (3 / 6, 6)
    assert with_people.firm is not None
    assert (with_people.firm.value, with_people.firm.pairs) == (3 / 4, 4)
    assert found[("j", "people"), 1].every.value == 3 / 5
    assert found[("j", "people"), 2].firm is None
    among = found[("people", "people"), None].every
    assert (among.value, among.pairs) == (0.0, 2)  # x and y on two questions; nobody knows whose the last vote is


def test_people_and_judges_are_told_apart(tmp_path: Path) -> None:
    judged = write(tmp_path / "j.jsonl", [pair_row(i, "model_1", "model_1") for i in range(9)])
    rows = [vote("model_b" if i % 3 else "model_a", question_id=i, judge=f"expert_{n}") for i in range(9) for n in (1, 2)]
    votes = write(tmp_path / "v.jsonl", rows)
    screen = io.StringIO()
    found = standings([judged, votes], None, Console(file=screen, width=200))
    assert found["pairs"][0]["wins"] == 9
    assert found["people"]["pairs"][0]["wins"] == 6
    assert "j and people agree: 33.3%" in screen.getvalue()
    assert "people agree among themselves: 100.0% (66.4% to 100.0%) of 9 pairs of votes" in screen.getvalue()
    alone = standings([votes], "a", Console(file=screen, width=200))
    assert alone["pairs"][0]["adjusted"] == pytest.approx(1 / 3)
    assert "people" not in alone


def test_a_pair_that_nobody_could_read_is_told(tmp_path: Path) -> None:
    lost = [pair_row(i, "error", "tie", "a", "c") for i in range(3)]
    file = write(tmp_path / "j.jsonl", [*lost, *(pair_row(i, "model_1", "model_1") for i in range(3))])
    screen = io.StringIO()
    found = standings([file], None, Console(file=screen, width=200))
    assert [(one["ours"], one["theirs"]) for one in found["pairs"]] == [("a", "b")]
    assert "no readable judgment compares a with c; they are left out" in screen.getvalue()
    with pytest.raises(DataError, match="no readable judgment compares a with c"):
        standings([write(tmp_path / "lost.jsonl", lost)], None, Console(file=screen))


# -- equal length ---------------------------------------------------------------------------------------------------


def of_lengths(wins: list[float], longer: list[int]) -> list[Game]:
    told = {1.0: "first", 0.5: "tie", 0.0: "second"}
    return [
        Game(str(i), 1, "a", "b", (told[won],), lengths=(1000 + gap, 1000))
        for i, (won, gap) in enumerate(zip(wins, longer, strict=True))
    ]


def test_without_differences_of_length_it_is_the_win_rate() -> None:
    verdicts = ["first", "tie", "second", "first", "first"] * 5
    games = [Game(str(i % 7), 1 + i % 2, "a", "b", (verdict,), lengths=(9, 9)) for i, verdict in enumerate(verdicts)]
    found = length_controlled(games, "a", "b")
    assert found is not None
    assert found.win_rate == pytest.approx(compare(games, "a", "b").adjusted, abs=1e-9)
    assert not found.extrapolated


def test_a_judge_that_only_counts_characters_finds_nobody_better() -> None:
    longer = [-400, -300, -200, -100, 100, 200, 300, 400, 350, 150, 250, -350, -150, -250] * 3
    found = length_controlled(of_lengths([float(gap > 0) for gap in longer], longer), "a", "b")
    assert found is not None
    assert found.win_rate == pytest.approx(0.5, abs=1e-6)
    assert found.effect > 5
    more = [*longer, *[400] * 20]  # one that is longer more often wins more often, and is no better
    games = of_lengths([float(gap > 0) for gap in more], more)
    assert compare(games, "a", "b").adjusted > 0.65
    again = length_controlled(games, "a", "b")
    assert again is not None
    assert again.interval[0] < 0.5 < again.interval[1]


def test_it_is_the_maximum_of_the_likelihood_and_two_sides_of_one_thing() -> None:
    rng = np.random.default_rng(5)
    longer = rng.normal(150, 300, 400).astype(int)
    x = np.tanh(longer / longer.std(ddof=1))
    won = (rng.random(400) < 1 / (1 + np.exp(-(-0.4 + 1.5 * x)))).astype(float)
    won[::9] = 0.5

    def cost(values: Any) -> float:
        eta = values[0] + values[1] * x
        return float((won * np.logaddexp(0, -eta) + (1 - won) * np.logaddexp(0, eta)).sum() + 0.005 * values[1] ** 2)

    best = minimize(cost, np.zeros(2), method="BFGS", options={"gtol": 1e-8}).x
    theta, phi = fit(x, won, np.ones((1, 400)))
    assert (theta[0], phi[0]) == pytest.approx(tuple(best), abs=1e-5)
    games = of_lengths(list(won), list(longer))
    found, other = length_controlled(games, "a", "b"), length_controlled(games, "b", "a")
    assert found is not None
    assert other is not None
    assert found.win_rate == pytest.approx(1 / (1 + math.exp(-best[0])), abs=1e-6)
    assert found.win_rate + other.win_rate == pytest.approx(1)
    assert found.interval[0] < 1 / (1 + math.exp(0.4)) < found.interval[1]  # what was planted
    assert found.longer == pytest.approx(longer.mean())
    assert compare(games, "a", "b").adjusted > found.win_rate


def test_what_length_cannot_tell() -> None:
    assert length_controlled(games_of("wwl"), "a", "b") is None
    assert length_controlled(of_lengths([1.0, 0.0, 1.0], [50, 50, 50]), "a", "b") is None
    always = length_controlled(of_lengths([1.0, 0.0, 1.0, 1.0], [50, 150, 250, 100]), "a", "b")
    assert always is not None
    assert always.extrapolated
    won = length_controlled(of_lengths([1.0] * 10, list(range(-5, 5))), "a", "b")
    assert won is not None
    assert won.win_rate == 1.0
    assert won.interval == pytest.approx((0.025**0.1, 1.0))


def test_lengths_of_files_that_have_none(tmp_path: Path) -> None:
    rows = [pair_row(i, w, w) for i, w in enumerate(["model_1", "model_2", "model_1", "tie"] * 3)]
    file = write(tmp_path / "pairs.jsonl", rows)
    texts = {"a": [i * "x" for i in range(12)], "b": [(i * 5 % 12) * "x" for i in range(12)]}
    for name, said_ in texts.items():
        write(
            tmp_path / f"answer_{name}.jsonl",
            [{"question_id": i, "model_id": f"{name}:v1", "text": t} for i, t in enumerate(said_)],
        )
    given = [part for name in texts for part in ("--answers", str(tmp_path / f"answer_{name}.jsonl"))]
    shown = CliRunner().invoke(app, ["standings", str(file), *given, "--json", str(tmp_path / "f.json")])
    assert shown.exit_code == 0, shown.output
    assert "at equal length" in shown.output
    found = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))["pairs"][0]["length_controlled"]
    assert (found["games"], found["longer"]) == (12, 0.0)
    other = write(tmp_path / "answer_z.jsonl", [{"question_id": 1, "model_id": "z", "text": "t"}])
    with pytest.raises(
        InputError, match=r"--answers: .*answer_z\.jsonl has answers of z, whom nobody judged here; there are a, b"
    ):
        standings([file], None, Console(file=io.StringIO()), answers=[other])
    questions = write(tmp_path / "q.jsonl", [{"question_id": 99, "text": "?"}])
    with pytest.raises(InputError, match=r"--questions: no question of .* was judged here"):
        standings([file], None, Console(file=io.StringIO()), questions=questions)


# -- charts ---------------------------------------------------------------------------------------------------------

EVIL = '$x_1$ <script>"&'


def test_results_by_category_and_their_charts(tmp_path: Path) -> None:
    kinds = {str(i): ("math", EVIL, "writing")[i % 3] for i in range(12)}
    games = [*games_of("wwlwtlwwlwll", "a", EVIL), *games_of("wlwltwlwlwtw", "a", "c")]
    rows = by_category(games, [], kinds)
    assert [(row["model"], row["category"]) for row in rows] == [
        (m, c) for c in ("math", EVIL, "writing") for m in (EVIL, "a", "c")
    ]
    first = next(row for row in rows if (row["model"], row["category"]) == ("c", "math"))
    assert first["value"] == pytest.approx(1 - (1 + 0 + 0 + 1) / 4)  # games 0, 3, 6, 9: w l l w
    assert first["questions"] == 4
    assert all(0 <= row["interval"][0] <= row["value"] <= row["interval"][1] <= 1 for row in rows)
    found = charts(rows)
    assert [figure.name for figure, _ in found] == ["radar_win_rate", "bars_win_rate"]
    for figure, told in found:
        svg = figure.svg()
        assert "<script" not in svg
        assert "&lt;script&gt;" in svg
        assert "$x_1$" in svg
        assert figure.svg() == svg
        assert "math 50%" in told
        figure.png(tmp_path / f"{figure.name}.png")
        assert (tmp_path / f"{figure.name}.png").read_bytes()[:4] == b"\x89PNG"
    many = [Rated(str(i), 1, f"m{n}", 1.0 + n % 9, "j") for i in range(2) for n in range(10)]
    (bars, told), *rest = charts(by_category([], many, kinds))
    assert (rest, bars.note) == ([], "Without 2 models that follow.")
    assert "m8: math 9.0 (9.0 to 9.0)" in told
    assert charts([]) == []
