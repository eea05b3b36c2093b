"""The page of a judgment: what it adds up to, and every question with both answers and what the judge wrote. No network, no script."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from selfinstruct.judge.asking import Answers
from selfinstruct.judge.charts import charts as drawings
from selfinstruct.judge.standings import sentence_of
from selfinstruct.results.display import shown
from selfinstruct.results.plots import render
from sft.data.questions import Question

_FILE = Path(__file__).with_name("report.html.jinja")
OUTCOMES = (
    ("win", "first model better"),
    ("loss", "second model better"),
    ("tie", "tie"),
    ("torn", "orders disagree"),
    ("unread", "unreadable"),
)


def write_report(
    folder: Path,
    title: str,
    facts: Sequence[tuple[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    standings: Mapping[str, Any],
    questions: Sequence[Question],
    answers: Mapping[str, Answers],
    *,
    charts: bool = True,
) -> Path:
    """Write ``report.html``, and the PNG files of its charts into ``charts/``.

    Args:
        folder: of the run.
        title: of the page.
        facts: names and values for its head.
        lines: judgments, as in the file.
        standings: what they add up to, as :func:`selfinstruct.judge.standings.standings` gives it.
        questions, answers: what was judged.
        charts: whether to draw results by category.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    asked = {str(question.id): question for question in questions}
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[str(line["category"])].append(_game(line, asked[str(line["question_id"])], answers))
    page = environment.from_string(_FILE.read_text(encoding="utf-8")).render(
        title=title,
        facts=facts,
        sentences=[sentence_of(pair) for pair in standings["pairs"]],
        pairs=standings["pairs"],
        categories=_categories(lines),
        charts=_charts(folder, standings) if charts else [],
        turns=standings["turns"],
        consistency=standings["consistency"],
        strengths=standings["strengths"],
        ratings=standings["ratings"],
        outcomes=OUTCOMES if standings["pairs"] else OUTCOMES[-1:],
        groups=list(groups.items()),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _charts(folder: Path, standings: Mapping[str, Any]) -> list[dict[str, Any]]:
    from markupsafe import Markup

    found = drawings(standings["categories"])
    if not found:
        return []
    pages = render([figure for figure, _ in found], folder / "charts")
    # matplotlib wrote these, and escapes the words in them
    return [
        {"title": figure.title, "note": figure.note, "svg": Markup(svg), "told": told, "file": f"charts/{figure.name}.png"}
        for (figure, svg), (_, told) in zip(pages, found, strict=True)
    ]


def outcome(line: Mapping[str, Any]) -> str:
    """A key of :data:`OUTCOMES`; ``rated`` for a rating."""
    if "score" in line:
        return "unread" if line["score"] == -1 else "rated"
    orders = (line["g1_winner"], line["g2_winner"])
    if "error" in orders:
        return "unread"
    if orders[0] != orders[1]:
        return "torn"
    return {"model_1": "win", "model_2": "loss", "tie": "tie"}[orders[0]]


def _game(line: Mapping[str, Any], question: Question, answers: Mapping[str, Answers]) -> dict[str, Any]:
    turn, name = int(line["turn"]), str(line["question_id"])
    models = [line["model"]] if "model" in line else [line["model_1"], line["model_2"]]
    if "score" in line:
        said, judged = f"{models[0]}: {line['score']}", [(models[0], line["judgment"])]
    else:
        names = {"model_1": models[0], "model_2": models[1], "tie": "tie", "error": "unreadable"}
        said = f"{names[line['g1_winner']]}; the other way round {names[line['g2_winner']]}"
        judged = [(f"{models[0]} first", line["g1_judgment"]), (f"{models[1]} first", line["g2_judgment"])]
    return {
        "question": name,
        "turn": turn,
        "repeat": line.get("repeat"),
        "outcome": outcome(line),
        "said": said,
        "asked": question.turns[:turn],
        "sides": [(model, answers[model][name][:turn]) for model in models],
        "judged": judged,
    }


def _categories(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Wins, ties (orders that disagree among them) and losses of each pair by category."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for line in lines:
        what = outcome(line)
        if what in ("unread", "rated"):
            continue
        counts = found.setdefault((line["model_1"], line["model_2"], str(line["category"])), [0, 0, 0])
        counts[{"win": 0, "loss": 2}.get(what, 1)] += 1
    return [
        {
            "ours": ours,
            "theirs": theirs,
            "category": category,
            "wins": won,
            "ties": even,
            "losses": lost,
            "games": won + even + lost,
        }
        for (ours, theirs, category), (won, even, lost) in sorted(found.items())
    ]
