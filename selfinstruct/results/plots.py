"""The figures of a generation run, as SVG for the page and PNG for papers. matplotlib is imported when one is drawn.

Words in a figure are from data. They are drawn as plain text: matplotlib's ``$...$`` notation is off, and its SVG writer escapes markup.
The SVG keeps text as text, so that a browser brings the Chinese font that this machine may not have.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

RINGS = (20, 4)  # verbs, and nouns for each, as in the figure of the Self-Instruct paper
# matplotlib names a collection of fonts after its first one, which for Noto is the Japanese; it has the Chinese characters too.
_CJK_FONTS = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans CJK JP",
        "Noto Sans SC",
        "Source Han Sans SC",
        "Source Han Sans CN",
        "WenQuanYi Micro Hei",
    ),
    *("WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Heiti SC", "SimHei"),
)
_CJK_FILE = re.compile(r"(?i)^(noto ?sans ?(cjk|sc)-?regular|sourcehansans(sc|cn)-regular|wqy|msyh\.|pingfang|simhei)")
_INK, _BAR = "#333333", "#4c78a8"


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing that is made when it is asked for.

    Attributes:
        name: file name without ending.
        title: caption.
        note: what to know when reading it.
        size: width and height in inches.
        paint: draws on a matplotlib figure.
    """

    name: str
    title: str
    note: str
    size: tuple[float, float]
    paint: Callable[[Any], None]

    def svg(self) -> str:
        """The ``<svg>`` element; equal data give equal text."""
        import matplotlib as mpl

        out = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self._drawn().savefig(out, format="svg", metadata={"Date": None})
        text = out.getvalue()
        return text[text.index("<svg") :]

    def png(self, path: Path) -> None:
        """Write a PNG file of 160 dots per inch."""
        self._drawn().savefig(path, format="png", dpi=160, metadata={"Software": None})

    def _drawn(self) -> Any:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=self.size, layout="constrained")
        FigureCanvasAgg(canvas)
        self.paint(canvas)
        return canvas


def histogram(
    name: str, title: str, values: Sequence[float], xlabel: str, *, note: str = "", unit: float | None = None
) -> Figure:
    """A histogram with the median marked.

    Args:
        values: at least one.
        unit: right end of the axis from 0, cut into 40 bins; None for whole numbers up to their 99th percentile, where larger ones
            are counted in the last bin.
    """
    import numpy as np

    data = np.asarray(values, dtype=float)
    end = unit if unit is not None else max(float(np.percentile(data, 99)), 1.0)
    beyond = int((data > end).sum()) if unit is None else 0
    bins = np.linspace(0, end, 41) if unit is not None or end > 40 else np.arange(0, int(end) + 2) - 0.5
    median = float(np.median(data))

    def paint(canvas: Any) -> None:
        axes = canvas.add_subplot()
        axes.hist(np.minimum(data, end), bins=bins, color=_BAR)
        axes.axvline(median, color=_INK, linewidth=1, linestyle="--", label=f"median {median:.3g}")
        axes.set_xlabel(xlabel, parse_math=False)
        axes.set_ylabel("rows")
        axes.grid(alpha=0.25, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)

    tail = f"{beyond} longer ones in the last bar." if beyond else ""
    return Figure(name, title, " ".join(part for part in (note, tail) if part), (5.6, 3.0), paint)


def funnel(steps: Sequence[tuple[str, int, int]]) -> Figure:
    """Bars from what was proposed to what is kept. ``steps`` holds ``(name, left, refused)``."""

    def paint(canvas: Any) -> None:
        axes = canvas.add_subplot()
        places = range(len(steps))
        left = [step[1] for step in steps]
        axes.barh(places, left, color=_BAR, label="left")
        axes.barh(places, [step[2] for step in steps], left=left, color="#e45756", label="refused")
        axes.set_yticks(list(places), [step[0] for step in steps])
        for label in axes.get_yticklabels():
            label.set_parse_math(False)
        axes.invert_yaxis()
        axes.set_xlabel("candidates")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")

    return Figure("funnel", "Yield", "", (7.2, 1.2 + 0.28 * len(steps)), paint)


def sunburst(pairs: Counter[tuple[str, str]], *, note: str = "", fonts: Sequence[str] = ()) -> Figure:
    """Root verbs (inner ring) and the nouns that each takes most often (outer ring), as in the Self-Instruct paper.

    Args:
        pairs: how often each ``(verb, noun)`` occurs; the most frequent of :data:`RINGS` are shown, without those that have no noun.
            At least one has a noun.
        fonts: font families to try before the default.
    """
    verbs: Counter[str] = Counter()
    for (verb, noun), count in pairs.items():
        verbs[verb] += count if noun else 0
    top = sorted(verbs.items(), key=lambda item: (-item[1], item[0]))[: RINGS[0]]
    top = [(verb, count) for verb, count in top if count]
    nouns = {
        verb: sorted(((n, c) for (v, n), c in pairs.items() if v == verb and n), key=lambda item: (-item[1], item[0]))[
            : RINGS[1]
        ]
        for verb, _ in top
    }

    def paint(canvas: Any) -> None:
        import matplotlib as mpl

        axes = canvas.add_subplot(projection="polar")
        axes.set_axis_off()
        axes.set_ylim(0, 3.7)
        colours = [mpl.colormaps["tab20"](index)[:3] for index in range(20)]
        inside = [(verb, sum(count for _, count in nouns[verb])) for verb, _ in top]
        whole = sum(size for _, size in inside)
        angle = 0.0
        for index, (verb, size) in enumerate(inside):
            colour = colours[index % len(colours)]
            wide = _ring(axes, verb, angle, size / whole, (0.8, 1.2), colour, fonts)
            at = angle
            for noun, count in nouns[verb]:
                at += _ring(axes, noun, at, count / whole, (2.02, 1.55), (*colour, 0.55), fonts)
            angle += wide

    return Figure("roots", "Root verbs and their nouns", note, (7.6, 7.6), paint)


def _ring(
    axes: Any, word: str, start: float, share: float, ring: tuple[float, float], colour: Any, fonts: Sequence[str]
) -> float:
    """One piece of a ring, with its word along the radius where there is room; returns its width in radians."""
    import math

    wide = 2 * math.pi * share
    bottom, height = ring
    axes.bar(start, height, width=wide, bottom=bottom, align="edge", color=colour, edgecolor="white", linewidth=0.8)
    middle = start + wide / 2
    room = 66 * wide * (bottom + height / 2)  # points along the arc, in a figure of 7.6 inches
    if room > 5:
        turn = math.degrees(middle)
        turned = turn if turn <= 90 or turn >= 270 else turn - 180
        style = {"fontfamily": list(fonts)} if fonts else {}
        red, green, blue = colour[:3]
        dark = len(colour) == 3 and 0.299 * red + 0.587 * green + 0.114 * blue < 0.55  # the outer ring is translucent
        size = min(room, 8.0 if len(word) <= 11 else 6.5)
        axes.text(
            middle, bottom + height / 2, word, rotation=turned, ha="center", va="center", rotation_mode="anchor", fontsize=size,
            parse_math=False, color="white" if dark else _INK, **style,
        )  # fmt: skip
    return wide


def cjk_fonts() -> list[str]:
    """Installed font families that have Chinese characters, best first."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    if installed.isdisjoint(_CJK_FONTS):  # matplotlib's list of fonts is a cache from before the font was installed
        for path in font_manager.findSystemFonts():
            if _CJK_FILE.search(Path(path).name):
                font_manager.fontManager.addfont(path)
        installed = set(font_manager.get_font_names())
    return [name for name in _CJK_FONTS if name in installed]


def render(figures: Sequence[Figure], folder: Path) -> list[tuple[Figure, str]]:
    """Every figure as SVG text, and as a PNG file in ``folder``, which is made if needed.

    Characters that no font of this machine has are boxes in the PNG; a log line names the figure.
    """
    folder.mkdir(exist_ok=True)
    pages = []
    for figure in figures:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message="Glyph .* missing from")
            pages.append((figure, figure.svg()))
            figure.png(folder / f"{figure.name}.png")
        if any("missing from" in str(warning.message) for warning in caught):
            _log.warning(
                "%s.png: no font of this machine has all characters; install a CJK font such as Noto Sans CJK", figure.name
            )
    return pages
