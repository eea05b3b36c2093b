"""Results by category, drawn: a radar to see the shape, bars to read values and intervals. Narrow, so that a phone can show them.

Colours are Okabe and Ito's, which colour-blind readers tell apart; each model has a marker and a hatching of its own besides. Names are from
data and are drawn as plain text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfinstruct.judge.intervals import by_question, estimate, mean_share
from selfinstruct.judge.outcomes import Game, Rated
from selfinstruct.results.display import shown
from selfinstruct.results.plots import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#b8a800")
_MARKS = "osD^vPX*"
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "ooo", "+++")
_MOST = len(_COLOURS)
_RESAMPLES = 1_999
_WIDE = 4.4  # inches; at 9 points a phone's 360 pixels still show 8


def by_category(games: Sequence[Game], ratings: Sequence[Rated], categories: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each model's win rate against all others (ties as halves), and its mean rating, by category, with intervals of 95 %.

    Args:
        games, ratings: of any models.
        categories: question id -> category; other questions are left out.

    Returns:
        ``what`` (``win rate`` or ``rating``), ``model``, ``category``, ``value``, ``interval``, ``questions``; in the order of the categories.
    """
    found: dict[tuple[str, str, str], list[tuple[str, int, float]]] = {}
    for game in games:
        for model in (game.first, game.second):
            points = game.points(model)
            if points is not None and game.question in categories:
                key = ("win rate", model, categories[game.question])
                found.setdefault(key, []).append((game.question, game.turn, points))
    for one in ratings:
        if one.rating is not None and one.question in categories:
            key = ("rating", one.model, categories[one.question])
            found.setdefault(key, []).append((one.question, one.turn, one.rating))
    order = {category: i for i, category in enumerate(dict.fromkeys(categories.values()))}
    rows = []
    for (what, model, category), seen in sorted(found.items(), key=lambda item: (item[0][0], order[item[0][2]], item[0][1])):
        values = by_question(seen)
        if what == "win rate":
            value, interval = mean_share(values, resamples=_RESAMPLES)
        else:
            value, interval = estimate(values, _mean, resamples=_RESAMPLES)
        row = {"what": what, "model": model, "category": category, "value": value, "interval": interval}
        rows.append(row | {"questions": len(values)})
    return rows


def _mean(values: Any, axis: int = -1) -> Any:
    return values.mean(axis=axis)


def charts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Figure, str]]:
    """Figures of :func:`by_category`, each with the text for those who do not see it; the radar needs three categories.

    At most eight models are drawn, the best in the mean over categories; the note says if more are left out.
    """
    found = []
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        categories = list(dict.fromkeys(row["category"] for row in own))
        ranked = sorted({row["model"] for row in own}, key=lambda model: (-_average(own, model), model))
        models, left = ranked[:_MOST], len(ranked) - _MOST
        note = f"Without {left} models that follow." if left > 0 else ""
        key, title = what.replace(" ", "_"), "Win rate by category" if what == "win rate" else "Rating by category"
        values = {(row["model"], row["category"]): row for row in own if row["model"] in models}
        told = _told(title, models, categories, values)
        if len(categories) > 2:
            radar = Figure(f"radar_{key}", title, note, (_WIDE, 4.9), _radar(models, categories, values))
            found.append((radar, f"Radar. {told}"))
        high = 1.3 + len(categories) * (0.2 + 0.19 * len(models)) + 0.2 * len(models)
        bars = Figure(f"bars_{key}", f"{title}, with 95 %", note, (_WIDE, high), _bars(models, categories, values))
        found.append((bars, f"Bars. {told}"))
    return found


def _average(rows: Sequence[Mapping[str, Any]], model: str) -> float:
    values = [row["value"] for row in rows if row["model"] == model]
    return float(sum(values) / len(values))


def _told(title: str, models: Sequence[str], categories: Sequence[str], values: Mapping[Any, Mapping[str, Any]]) -> str:
    parts = []
    for model in models:
        rows = [values[model, category] for category in categories if (model, category) in values]
        parts.append(f"{shown(model, 60)}: " + ", ".join(f"{shown(row['category'], 60)} {_spoken(row)}" for row in rows))
    return f"{title}. {'; '.join(parts)}."


def _spoken(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    if row["what"] == "win rate":
        return f"{row['value']:.0%} ({low:.0%} to {high:.0%})"
    return f"{row['value']:.1f} ({low:.1f} to {high:.1f})"


def _scale(values: Mapping[Any, Mapping[str, Any]]) -> tuple[float, float, float, str]:
    """Factor, least and most of the axis, and its words."""
    if next(iter(values.values()))["what"] == "win rate":
        return 100.0, 0.0, 100.0, "win rate, ties as halves, %"
    return 1.0, 1.0, 10.0, "mean rating, 1 to 10"


def _radar(models: Sequence[str], categories: Sequence[str], values: Mapping[Any, Mapping[str, Any]]) -> Any:
    factor, least, most, words = _scale(values)

    def paint(canvas: Any) -> None:
        axes = canvas.add_subplot(projection="polar")
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        angles = [2 * math.pi * i / len(categories) for i in range(len(categories))]
        for i, model in enumerate(models):
            rows = [values.get((model, category)) for category in categories]
            line = [math.nan if row is None else factor * row["value"] for row in rows]
            turns, style = [*angles, 2 * math.pi], ("-", "--", "-.", ":")[i % 4]
            look = {"color": _COLOURS[i], "marker": _MARKS[i], "markersize": 4, "linewidth": 1.4, "linestyle": style}
            axes.plot(turns, [*line, line[0]], label=shown(model, 28), **look)
            if len(models) <= 3 and None not in rows:  # more bands hide each other
                low, high = ([factor * row["interval"][side] for row in rows if row] for side in (0, 1))
                axes.fill_between(turns, [*low, low[0]], [*high, high[0]], color=_COLOURS[i], alpha=0.14, linewidth=0)
        axes.set_ylim(least, most)
        axes.set_xticks(angles, [shown(category, 18) for category in categories], fontsize=9)
        axes.tick_params(axis="x", pad=10)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_title(words, fontsize=9, parse_math=False)
        _plain([*axes.get_xticklabels(), *_legend(canvas, axes)])

    return paint


def _bars(models: Sequence[str], categories: Sequence[str], values: Mapping[Any, Mapping[str, Any]]) -> Any:
    factor, least, most, words = _scale(values)

    def paint(canvas: Any) -> None:
        axes = canvas.add_subplot()
        thick = 0.84 / len(models)
        for i, model in enumerate(models):
            rows = [(j, values[model, category]) for j, category in enumerate(categories) if (model, category) in values]
            places = [j - 0.42 + thick * (i + 0.5) for j, _ in rows]
            ends = [factor * row["value"] for _, row in rows]
            # a bootstrap's interval may leave its own estimate out by a hair
            low = [max(0.0, end - factor * row["interval"][0]) for end, (_, row) in zip(ends, rows, strict=True)]
            high = [max(0.0, factor * row["interval"][1] - end) for end, (_, row) in zip(ends, rows, strict=True)]
            look = {
                "height": thick * 0.9,
                "left": least,
                "facecolor": _COLOURS[i],
                "alpha": 0.75,
                "hatch": _HATCHES[i],
                "edgecolor": "white",
            }
            axes.barh(places, [end - least for end in ends], label=shown(model, 28), **look)
            axes.errorbar(ends, places, xerr=[low, high], fmt=_MARKS[i], color="#222222", markersize=3, elinewidth=1, capsize=2)
        axes.set_yticks(range(len(categories)), [shown(category, 18) for category in categories], fontsize=9)
        axes.set_ylim(len(categories) - 0.45, -0.55)
        axes.set_xlim(least, most)
        if factor == 100.0:
            axes.axvline(50, color="#222222", linewidth=0.8, linestyle=":")
        axes.set_xlabel(words, fontsize=9, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        _plain([*axes.get_yticklabels(), *_legend(canvas, axes)])

    return paint


def _legend(canvas: Any, axes: Any) -> list[Any]:
    legend = canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return list(legend.get_texts())


def _plain(labels: Sequence[Any]) -> None:
    """Names hold what they hold: no mathematical notation."""
    for label in labels:
        label.set_parse_math(False)
