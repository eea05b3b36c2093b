"""``report.html``: one page per run, drawn from metrics.jsonl and run.json. No network, no scripts, everything from data escaped."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sft.engine.metrics import read_metrics

_TEMPLATE = Path(__file__).parent / "report.html.jinja"
_MANY = 60  # steps; with more of them a smoothed curve says more than the raw one

Line = dict[str, Any]
Series = tuple[str, Sequence[float], Sequence[float], dict[str, Any]]


def _curve(series: Sequence[Series], ylabel: str, *, from_zero: bool = False) -> str:
    """One line chart as SVG. ``series`` holds ``(name, x, y, line options)``."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(6.4, 2.9))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.12, 0.163, 0.83, 0.807))  # room below for the step, right and above for half a tick label
    for name, x, y, options in series:
        # a lone point makes no line
        axes.plot(x, y, label=name, **{"linewidth": 1.5, "markersize": 4, "marker": "o" if len(x) == 1 else None, **options})
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    # Only the width of the figures at the left is not known before; a layout engine draws everything once more to find it.
    place, words = axes.get_position(), axes.yaxis.get_tightbbox()
    assert words is not None  # an axis that is drawn has a size
    left = (axes.bbox.x0 - words.x0 + 3) / figure.bbox.width
    axes.set_position((left, place.y0, place.x1 - left, place.height))
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Running mean of at most ``span`` values up to each one."""
    return [sum(values[max(0, i - span + 1) : i + 1]) / min(i + 1, span) for i in range(len(values))]


def _charts(steps: list[Line], evals: list[Line]) -> list[tuple[str, str]]:
    if not steps:
        return []
    x = [line["step"] for line in steps]

    def of(name: str, scale: float = 1.0) -> list[float]:
        return [line[name] * scale for line in steps]

    many = len(steps) > _MANY
    loss: list[Series] = [("training", x, of("loss"), {"color": "C0", "alpha": 0.3 if many else 1.0, "linewidth": 1.0})]
    if many:
        span = max(len(steps) // 30, 2)
        loss.append((f"mean of {span}", x, smooth(of("loss"), span), {"color": "C0"}))
    if evals:
        held = [line["eval"]["loss"] for line in evals]
        loss.append(("held out", [line["step"] for line in evals], held, {"color": "C1", "marker": "o"}))
    throughput: list[Series] = [
        ("all", x, of("tokens_per_second"), {}),
        ("learnt", x, of("trained_tokens_per_second"), {"color": "C2"}),
    ]

    def single(title: str, name: str, unit: str, scale: float = 1.0, **options: Any) -> tuple[str, str]:
        return title, _curve([(unit, x, of(name, scale), {})], unit, **options)

    return [
        ("Loss per learnt token", _curve(loss, "nats")),
        ("Throughput", _curve(throughput, "tokens/s", from_zero=True)),
        single("Gradient norm, before clipping", "grad_norm", "norm", from_zero=True),
        single("Learning rate", "learning_rate", "rate", from_zero=True),
        single("Peak memory", "memory_gib", "GiB", from_zero=True),
        single("Time waiting for data", "data_wait", "% of a step", 100.0, from_zero=True),
    ]


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` beside the files that it is drawn from.

    Args:
        run_dir: holds ``metrics.jsonl`` and ``run.json``.

    Returns:
        The page.
    """
    import jinja2
    from markupsafe import Markup

    lines = read_metrics(run_dir / "metrics.jsonl")
    run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    steps = [line for line in lines if "loss" in line]
    evals = [line for line in lines if "eval" in line]
    drops = run.get("data", {}).get("drops", {"counts": {}, "changed": {}})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=run_dir.resolve().name,
        subtitle=_subtitle(run),
        tiles=_tiles(run, steps, evals),
        # matplotlib wrote these from numbers and our own words
        charts=[(title, Markup(svg)) for title, svg in _charts(steps, evals)],
        facts=_facts(run, steps),
        sources=_sources(evals),
        samples=run.get("samples", []),
        drops=drops,
        examples={reason: ": ".join(map(str, found[0])) for reason, found in drops.get("examples", {}).items() if found},
        repairs=run.get("repairs", []),
        identity=_identity(run.get("identity", {})),
        recipe=run.get("identity", {}).get("recipe", {}),
        versions=run.get("versions", {}),
    )
    out = run_dir / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def _subtitle(run: Line) -> str:
    recipe = run.get("identity", {}).get("recipe", {})
    method = "LoRA" if recipe.get("lora.rank") is not None else "Full tuning"
    base = recipe.get("model.name_or_path") or f"a {recipe.get('model.scratch.config.model_type', '')} model from scratch"
    return f"{method} of {base}, template {run.get('serving', {}).get('template', '-')}"


def _tiles(run: Line, steps: list[Line], evals: list[Line]) -> list[tuple[str, str]]:
    """What is asked first, in large."""
    tiles = []
    if evals:
        first, last = evals[0]["eval"]["loss"], evals[-1]["eval"]["loss"]
        tiles.append((f"{last:.4f}", f"held-out loss, {first:.4f} before" if len(evals) > 1 else "held-out loss"))
    tiles.append((f"{steps[-1]['step'] if steps else 0:,}", f"of {run.get('plan', {}).get('steps', 0):,} steps"))
    if steps:
        seconds = sum(line["seconds"] for line in steps)
        tiles += [
            (f"{median(line['tokens_per_second'] for line in steps):,.0f}", "tokens/s (median)"),
            (f"{median(line['utilisation'] for line in steps):.1%}", "of this device's own matmul rate"),
            (f"{max(line['memory_gib'] for line in steps):.2f} GiB", "memory at most" + _chosen(run.get("memory"))),
            (duration(seconds), "in steps (evaluation and saving apart)"),
        ]
    return tiles


def _chosen(memory: dict[str, Any] | None) -> str:
    """What the memory planner chose, and what it had."""
    if memory is None:
        return ""
    had = f" of {memory['budget_gib']:.1f} GiB" if "budget_gib" in memory else ""
    return f"{had}; chosen: {memory['setting']}"


def duration(seconds: float) -> str:
    """``75 s``, ``12 min 5 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _facts(run: Line, steps: list[Line]) -> list[tuple[str, str]]:
    """The summary table, in the order in which a reader asks."""
    data, plan = run.get("data", {}), run.get("plan", {})
    share = data.get("trained_tokens", 0) / max(data.get("train_tokens", 0), 1)
    facts = [
        (
            "rows",
            f"{data.get('rows_in', 0):,} read, {data.get('train_rows', 0):,} trained on, {data.get('holdout_rows', 0):,} held out",
        ),
        ("tokens", f"{data.get('train_tokens', 0):,}, of which {data.get('trained_tokens', 0):,} ({share:.1%}) are learnt"),
        ("batch", f"{plan.get('equation', '-')}; micro-batches {plan.get('fill', 0):.1%} full"),
    ]
    if steps:
        wait = sum(line["data_wait"] * line["seconds"] for line in steps) / sum(line["seconds"] for line in steps)
        if "loss_scale" in steps[-1]:
            left_out = f"{steps[-1]['steps_skipped']:,} steps left out, whose gradients overflowed"
            facts.append(("loss scale", f"{steps[-1]['loss_scale']:g}; {left_out}"))
        facts += [("waiting for data", f"{wait:.2%} of the time"), ("utilisation", str(run.get("utilisation", "-")))]
    if run.get("isolation"):
        measured = ", ".join(f"{name} {value:.1e}" for name, value in run["isolation"].items())
        facts.append(("documents apart", f"{measured}, of the largest logit"))
    serving = run.get("serving", {})
    if serving:
        strings = "".join(f", {text!r}" for text in serving.get("stop_strings", []))
        facts.append(("an answer ends at", f"ids {', '.join(map(str, serving.get('stop_ids', [])))}{strings}"))
    if "merge" in run:
        facts.append(("export check", str(run["merge"])))
    return facts


def _sources(evals: list[Line]) -> list[tuple[str, ...]]:
    """Source, loss before, loss after, change, learnt tokens; the whole last."""
    if not evals:
        return []
    first, last = evals[0]["eval"], evals[-1]["eval"]
    rows = [(label, first["by_source"].get(label), value) for label, value in last["by_source"].items()]
    if len(rows) > 1:
        rows.append(("all", first, last))
    out: list[tuple[str, ...]] = []
    for label, before, after in rows:
        known = before is not None and len(evals) > 1
        moved = f"{after['loss'] - before['loss']:+.4f}" if known else "-"
        out.append((label, f"{before['loss']:.4f}" if known else "-", f"{after['loss']:.4f}", moved, f"{after['tokens']:,}"))
    return out


def _identity(identity: Line) -> list[tuple[str, str]]:
    """What must be equal for the run to be the same one."""
    rows = [(name, str(identity[name])) for name in ("data", "template", "tokenizer") if name in identity]
    return rows + [(f"file {name}", f"sha256 {digest}") for name, digest in identity.get("files", {}).items()]
