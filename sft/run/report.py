"""``report.html``: one page per run, drawn from metrics.jsonl and run.json. No network, no scripts, everything from data escaped."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.engine.metrics import read_metrics

_TEMPLATE = Path(__file__).parent / "report.html.jinja"


def _curve(series: Sequence[tuple[str, Sequence[float], Sequence[float], str]], ylabel: str) -> str:
    """One line chart as SVG. ``series`` holds ``(name, x, y, style)``."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for name, x, y, style in series:
        if x:
            axes.plot(x, y, style, label=name, linewidth=1.4, markersize=5)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len([s for s in series if s[1]]) > 1:
        axes.legend(frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


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
    x = [line["step"] for line in steps]
    charts = [
        (
            "Loss per learnt token",
            _curve(
                [
                    ("training", x, [line["loss"] for line in steps], "-"),
                    ("held out", [e["step"] for e in evals], [e["eval"]["loss"] for e in evals], "o-"),
                ],
                "nats",
            ),
        ),
        ("Throughput", _curve([("tokens/s", x, [line["tokens_per_second"] for line in steps], "-")], "tokens/s")),
        ("Gradient norm", _curve([("norm", x, [line["grad_norm"] for line in steps], "-")], "norm")),
        ("Learning rate", _curve([("rate", x, [line["learning_rate"] for line in steps], "-")], "rate")),
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=run_dir.name,
        # matplotlib wrote these from numbers and our own words
        charts=[(title, Markup(svg)) for title, svg in charts],
        facts=_facts(run, steps, evals),
        samples=run.get("samples", []),
        drops=run.get("data", {}).get("drops", {}),
        by_source=evals[-1]["eval"]["by_source"] if evals else {},
        first_by_source=evals[0]["eval"]["by_source"] if evals else {},
        repairs=run.get("repairs", []),
        recipe=run.get("identity", {}).get("recipe", {}),
        versions=run.get("versions", {}),
    )
    out = run_dir / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def _facts(run: dict[str, Any], steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The summary table, in the order in which a reader asks."""
    data, plan = run.get("data", {}), run.get("plan", {})
    facts = [
        ("rows", f"{data.get('rows_in')} read, {data.get('train_rows')} trained on, {data.get('holdout_rows')} held out"),
        ("tokens", f"{data.get('train_tokens'):,} of which {data.get('trained_tokens'):,} are learnt"),
        ("batch", str(plan.get("equation"))),
        ("steps", f"{steps[-1]['step'] if steps else 0} of {plan.get('steps')}"),
    ]
    if len(evals) > 1:
        facts.append(("held-out loss", f"{evals[0]['eval']['loss']:.4f} before, {evals[-1]['eval']['loss']:.4f} after"))
    if steps:
        middle = sorted(line["tokens_per_second"] for line in steps)[len(steps) // 2]
        wait = sum(line["data_wait"] * line["seconds"] for line in steps) / sum(line["seconds"] for line in steps)
        facts += [
            ("speed", f"{middle:,.0f} tokens/s (median), {wait:.1%} of the time waiting for data"),
            (
                "utilisation",
                f"{sorted(line['utilisation'] for line in steps)[len(steps) // 2]:.1%} (median); {run.get('utilisation')}",
            ),
            ("memory", f"{max(line['memory_gib'] for line in steps):.2f} GiB at most"),
        ]
    if "isolation" in run:
        facts.append(("documents apart", ", ".join(f"{k} {v:.1e}" for k, v in run["isolation"].items())))
    if "merge" in run:
        facts.append(("export check", str(run["merge"])))
    return facts
