"""The files published with Vicuna (and MT-bench judgments) through our statistics, beside plain computations straight from the definitions.

    python benchmarks/judge_original.py [--data DIR] [--mt-bench FILE ...] [--alpaca-eval FILE ...]

``DIR`` holds ``vicuna80/`` with ``question.jsonl``, ``answer/answer_MODEL.jsonl`` and ``review/review_MODEL1_MODEL2.jsonl``. Exit status 1 if
a figure differs by more than 1e-6 (strengths: 0.01 points).

There is one published judge, so agreement is measured with a second one that is made of the answers: it prefers the longer one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from selfinstruct.judge.agreement import agreement
from selfinstruct.judge.asking import read_answers
from selfinstruct.judge.length import length_controlled, with_lengths
from selfinstruct.judge.outcomes import Game, read_judgments
from selfinstruct.judge.statistics import compare, mean_ratings, strengths
from sft.data.questions import read_questions


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Beside:
    """Prints two figures beside each other, and keeps the largest difference."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.bad = False
        self.count = 0

    def show(self, name: str, ours: float, plain: float, bound: float = 1e-6) -> None:
        gap = abs(ours - plain)
        self.count += 1
        self.worst, self.bad = max(self.worst, gap), self.bad or not gap <= bound
        print(f"{name:58} {ours:14.6f} {plain:14.6f} {gap:9.1e}")


def outcomes_of(review: Path) -> list[tuple[int, float | None, float, float]]:
    """Question, points of the second model (None: not read), and both scores, by Vicuna's rule: within 0.1 is a tie."""
    found = []
    for row in rows_of(review):
        first, second = row["score"]
        if first <= 0 or second <= 0:
            found.append((row["question_id"], None, 0.0, 0.0))
        else:
            found.append((row["question_id"], 0.5 if abs(first - second) <= 0.1 else float(second > first), first, second))
    return found


def zermelo(wins: dict[tuple[str, str], float], models: list[str]) -> dict[str, float]:
    """Bradley-Terry by Zermelo's iteration (1929; Hunter's MM 2004): p_i = W_i / sum over j of n_ij / (p_i + p_j)."""
    p = dict.fromkeys(models, 1.0)
    for _ in range(200_000):
        new = {}
        for i in models:
            games = {j: wins.get((i, j), 0) + wins.get((j, i), 0) for j in models if j != i}
            new[i] = sum(wins.get((i, j), 0) for j in models) / sum(n / (p[i] + p[j]) for j, n in games.items())
        scale = math.exp(sum(map(math.log, new.values())) / len(new))
        new = {i: value / scale for i, value in new.items()}
        done = max(abs(math.log(new[i] / p[i])) for i in models) < 1e-13
        p = new
        if done:
            break
    return {i: 1000 + 400 * math.log10(value) for i, value in p.items()}


def equal_length(x: Any, y: Any) -> float:
    """Logistic regression by gradient descent, the length term then set to 0; the small penalty on phi is part of the definition."""
    theta = phi = 0.0
    for _ in range(200_000):
        p = 1 / (1 + np.exp(-(theta + phi * x)))
        g = float((p - y).sum()), float(((p - y) * x).sum()) + 0.01 * phi
        theta, phi = theta - 4 * g[0] / len(x), phi - 4 * g[1] / len(x)
        if max(map(abs, g)) < 1e-10:
            break
    return 1 / (1 + math.exp(-theta))


def reviews(folder: Path, beside: Beside) -> None:
    files = sorted((folder / "review").glob("review_*_*.jsonl"))
    games, _ = read_judgments(files)
    asked = read_questions(folder / "question.jsonl")
    texts = {path.stem.removeprefix("answer_"): path for path in sorted((folder / "answer").glob("answer_*.jsonl"))}
    games = with_lengths(games, {name: read_answers(path)[1] for name, path in texts.items()})
    said = {name: {row["question_id"]: row["text"] for row in rows_of(path)} for name, path in texts.items()}
    print(f"{len(asked)} questions, {len(texts)} models' answers, {len(games)} reviews in {len(files)} files")
    wins: dict[tuple[str, str], float] = defaultdict(float)
    votes = []
    for file in files:
        _, first, second = file.stem.split("_")
        plain = outcomes_of(file)
        known = [(question, points) for question, points, _, _ in plain if points is not None]
        points = [value for _, value in known]
        found = compare(games, second, first)
        name = f"{second} against {first}"
        beside.show(f"{name}: wins", found.wins, points.count(1.0))
        beside.show(f"{name}: ties", found.ties, points.count(0.5))
        beside.show(f"{name}: not read", found.unreadable, len(plain) - len(points))
        beside.show(f"{name}: win rate", found.win_rate, points.count(1.0) / len(points))
        beside.show(f"{name}: with ties as halves", found.adjusted, sum(points) / len(points))
        assert found.relative is not None
        beside.show(f"{name}: relative score", found.relative[0], sum(d for *_, d in plain) / sum(c for *_, c, _ in plain))
        longer = np.array([len(said[second][q]) - len(said[first][q]) for q, _ in known], dtype=float)
        equal = length_controlled(games, second, first)
        assert equal is not None
        plainly = equal_length(np.tanh(longer / longer.std(ddof=1)), np.array(points))
        beside.show(f"{name}: at equal length", equal.win_rate, plainly)
        print(f"    95 %: {equal.interval[0]:.3f} to {equal.interval[1]:.3f}; {equal.longer:+.0f} characters in the mean")
        for value in points:
            wins[second, first] += value
            wins[first, second] += 1 - value
        for question, _, _, _ in plain:
            gap = len(said[second][question]) - len(said[first][question])
            winner = "tie" if gap == 0 else "model_b" if gap > 0 else "model_a"
            votes.append({"question_id": question, "model_a": first, "model_b": second, "winner": winner, "judge": "longer"})
    models = sorted({model for pair in wins for model in pair})
    plain_strengths = zermelo(wins, models)
    for one in strengths(games):
        beside.show(f"strength of {one.model}", one.points, plain_strengths[one.model], bound=0.01)
    agree_with_longer(files, votes, games, beside)


def agree_with_longer(files: list[Path], votes: list[dict[str, Any]], games: list[Any], beside: Beside) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.jsonl"
        path.write_text("".join(json.dumps(vote) + "\n" for vote in votes), encoding="utf-8")
        found = agreement(games, read_judgments([path])[0])
    named = {
        (v["model_a"], v["model_b"], v["question_id"]): {"model_a": 0.0, "model_b": 1.0, "tie": 0.5}[v["winner"]] for v in votes
    }
    pairs = []
    for file in files:
        _, first, second = file.stem.split("_")
        pairs += [(p, named[first, second, q]) for q, p, _, _ in outcomes_of(file) if p is not None]
    firm = [pair for pair in pairs if 0.5 not in pair]
    assert found.firm is not None
    beside.show("agreement with the longer answer", found.every.value, sum(a == b for a, b in pairs) / len(pairs))
    beside.show("agreement with the longer answer, without ties", found.firm.value, sum(a == b for a, b in firm) / len(firm))
    print(f"    95 %: {found.firm.interval[0]:.3f} to {found.firm.interval[1]:.3f} of {found.firm.pairs} votes")


def mt_bench(paths: list[Path], beside: Beside) -> None:
    games, ratings = read_judgments(paths)
    rows = [row for path in paths for row in rows_of(path)]
    for model, (mean, span, lost) in mean_ratings(ratings).items():
        scores = [row["score"] for row in rows if row.get("model") == model]
        beside.show(f"MT-bench, rating of {model}", mean, float(np.mean([score for score in scores if score > 0])))
        print(f"    95 %: {span[0]:.2f} to {span[1]:.2f}, {lost} not read of {len(scores)}")
        for turn in (1, 2):
            own = [one for one in ratings if one.turn == turn and one.model == model]
            scores = [row["score"] for row in rows if row.get("model") == model and row["turn"] == turn and row["score"] > 0]
            beside.show(f"MT-bench, rating of {model}, turn {turn}", mean_ratings(own)[model][0], float(np.mean(scores)))
    for one, two in sorted({(game.first, game.second) for game in games}):
        found = compare(games, one, two)
        own = [row for row in rows if (row.get("model_1"), row.get("model_2")) == (one, two)]
        orders = [(row["g1_winner"], row["g2_winner"]) for row in own if "error" not in (row["g1_winner"], row["g2_winner"])]
        points = [{"model_1": 1.0, "model_2": 0.0}.get(a, 0.5) if a == b else 0.5 for a, b in orders]
        beside.show(f"MT-bench, {one} against {two}", found.adjusted, sum(points) / len(points))
        assert found.consistent is not None
        beside.show("    orders agree", found.consistent, sum(a == b for a, b in orders) / len(orders))
        print(f"    {len(own)} pairs, 95 %: {found.interval[0]:.3f} to {found.interval[1]:.3f}")


def alpaca_eval(paths: list[Path], beside: Beside) -> None:
    """Annotations of AlpacaEval 2 (a judge's preference from 1, the baseline, to 2), rounded to wins as its ``discrete_win_rate`` does."""
    for path in paths:
        rows = json.loads(path.read_text(encoding="utf-8"))
        base, model = rows[0]["generator_1"], rows[0]["generator_2"]
        points = [0.5 if row["preference"] in (0.0, 1.5) else float(row["preference"] > 1.5) for row in rows]
        told = {1.0: "first", 0.0: "second", 0.5: "tie"}
        games = [
            Game(str(i), 1, model, base, (told[won],), lengths=(len(row["output_2"]), len(row["output_1"])))
            for i, (row, won) in enumerate(zip(rows, points, strict=True))
        ]
        found = length_controlled(games, model, base)
        assert found is not None
        longer = np.array([len(row["output_2"]) - len(row["output_1"]) for row in rows], dtype=float)
        beside.show(f"{model}: win rate", compare(games, model, base).adjusted, sum(points) / len(points))
        plainly = equal_length(np.tanh(longer / longer.std(ddof=1)), np.array(points))
        beside.show(f"{model}: at equal length", found.win_rate, plainly)
        print(f"    95 %: {found.interval[0]:.3f} to {found.interval[1]:.3f}; {found.longer:+.0f} characters in the mean")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("VICUGNA_DATA"))
    parser.add_argument("--mt-bench", type=Path, nargs="*", default=[], help="judgments in FastChat's format")
    parser.add_argument("--alpaca-eval", type=Path, nargs="*", default=[], help="annotations.json of AlpacaEval 2")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data, or set VICUGNA_DATA: a folder with vicuna80/")
    beside = Beside()
    print(f"{'':58} {'ours':>14} {'plain':>14} {'apart':>9}")
    reviews(Path(options.data) / "vicuna80", beside)
    if options.mt_bench:
        mt_bench(options.mt_bench, beside)
    alpaca_eval(options.alpaca_eval, beside)
    print(f"largest difference of {beside.count} figures: {beside.worst:.1e}")
    return int(beside.bad)


if __name__ == "__main__":
    sys.exit(main())
