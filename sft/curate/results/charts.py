"""The charts of a curation's report, as SVG; this is the door to matplotlib. Their text stays text, and their words are ours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sft.curate.statistics import lower_end, ordered

_BAR: Final = ("#4c78a8", "#f58518", "#54a24b")
_MOST_BARS = 14


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its caption."""

    title: str
    note: str
    svg: str


def ranges(
    title: str,
    unit: str,
    what: str,
    series: Sequence[tuple[str, Mapping[str, int]]],
    *,
    note: str = "",
    mark: int | None = None,
) -> Chart:
    """Histograms over ranges that grow, one behind the other.

    Args:
        title: caption.
        unit: of the lower axis.
        what: is counted.
        series: name and :func:`sft.curate.statistics.bucket` -> count; at least one entry in all.
        note: what to know.
        mark: a bound to draw.
    """
    ends = sorted({upper for _, buckets in series for upper, _ in ordered(buckets)})
    uppers = [end for end in _between(ends[0], ends[-1]) if end >= ends[0]]

    def paint(axes: Any) -> None:
        width = 0.86 / len(series)
        for number, (name, buckets) in enumerate(series):
            places = [at - 0.43 + (number + 0.5) * width for at in range(len(uppers))]
            heights = [buckets.get(str(end), 0) for end in uppers]
            axes.bar(places, heights, width, label=name, color=_BAR[number], linewidth=0)
        step = max(1, -(-len(uppers) // _MOST_BARS))
        axes.set_xticks(range(0, len(uppers), step), [_short(end) for end in uppers[::step]])
        if mark is not None:
            below = sum(end <= mark for end in uppers) - 0.5
            axes.axvline(below, color="#333333", linewidth=1, linestyle="--", label=f"{mark:,} {unit}")
        axes.set_xlabel(f"{unit}, up to")
        axes.set_ylabel(what)
        axes.margins(x=0.01)
        if len(series) > 1 or mark is not None:
            axes.legend(frameon=False)

    return Chart(title, note, _svg(title, paint))


def columns(title: str, xlabel: str, what: str, counts: Mapping[str, int], *, note: str = "", step: int = 1) -> Chart:
    """Counts of whole numbers, ``step`` apart, as columns; the last column holds whatever is beyond 24 of them."""
    entries = ordered(counts)
    first, last = entries[0][0], min(entries[-1][0], entries[0][0] + 24 * step)
    numbers = list(range(first, last + 1, step))
    heights = [sum(count for number, count in entries if number == at) for at in numbers]
    beyond = sum(count for number, count in entries if number > last)
    heights[-1] += beyond
    names = [f"{at:,}" for at in numbers]
    if beyond:
        names[-1] += "+"

    def paint(axes: Any) -> None:
        axes.bar(range(len(numbers)), heights, 0.86, color=_BAR[0], linewidth=0)
        gap = max(1, -(-len(numbers) // _MOST_BARS))
        ticks = sorted({*range(0, len(numbers), gap), *([len(numbers) - 1] if beyond else [])})
        axes.set_xticks(ticks, [names[at] for at in ticks])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(what)
        axes.set_xlim(-0.6, max(len(numbers), 6) - 0.4)  # a lone column would fill the chart

    return Chart(title, note, _svg(title, paint))


def bars(title: str, what: str, values: Sequence[tuple[str, float]], *, note: str = "", form: str = "{:,.0f}") -> Chart:
    """Named values as bars to the right, in their order, each with its figure."""
    most = max((value for _, value in values), default=0.0)

    def paint(axes: Any) -> None:
        axes.barh(range(len(values)), [value for _, value in values], 0.7, color=_BAR[0], linewidth=0)
        axes.set_yticks(range(len(values)), [name for name, _ in values])
        axes.set_ylim(max(len(values), 3) - 0.5, -0.5)  # from the top, and a lone bar is no thicker than others
        axes.set_xlim(0, most * 1.15 or 1)
        for at, (_, value) in enumerate(values):
            axes.text(value + most * 0.01, at, form.format(value), va="center", fontsize=9)
        axes.set_xlabel(what)

    height = max(2.0, 0.75 + 0.27 * len(values))
    return Chart(title, note, _svg(title, paint, height=height, grid="x", whole=".0f" in form))


def _between(first: int, last: int) -> list[int]:
    """All upper ends of ranges from one to another."""
    found = [last]
    while found[-1] > first:
        found.append(max(lower_end(found[-1]) - 1, 0))
    return found[::-1]


def _short(number: int) -> str:
    """``96``, ``1.5K``, ``24K``, ``2M``, of 1,024."""
    for power, letter in ((30, "G"), (20, "M"), (10, "K")):
        if number >= 1 << power:
            return f"{number / (1 << power):.3g}{letter}"
    return str(number)


def _svg(name: str, paint: Any, height: float = 2.9, grid: Literal["x", "y"] = "y", whole: bool = True) -> str:
    """The ``<svg>`` element; equal data give equal text, and its ids are those of no other chart of the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": ["DejaVu Sans"]}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(6.0, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        paint(axes)
        axes.grid(alpha=0.25, axis=grid)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        counted = axes.yaxis if grid == "y" else axes.xaxis
        counted.set_major_locator(MaxNLocator(5, integer=whole))
        if whole:
            counted.set_major_formatter(EngFormatter(sep=""))
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
