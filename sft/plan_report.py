"""A plan on the screen: tables in which every derived number stands beside its equation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sft.plan import DataPlan, Plan
from sft.plan_languages import LanguageTokens
from sft.plan_memory import short

if TYPE_CHECKING:
    from rich.console import Console


def _data_lines(d: DataPlan) -> list[tuple[str, str]]:
    dropped = " - ".join(f"{count:,} {reason}" for reason, count in d.dropped.items()) or "0 dropped"
    micro = d.steps * d.accumulation * d.gpus
    return [
        ("rows kept", f"{d.rows_kept:,} = {d.rows_in:,} in - {dropped}"),
        ("rows changed", f"{d.truncated:,} truncated, {d.split:,} split: {d.split_gain:+,} rows"),
        ("rows to train on", f"{d.rows_train:,}, and {d.rows_holdout:,} held out"),
        ("trained tokens", f"{d.trained_share:.1%} = {d.trained_tokens:,} / {d.tokens:,} tokens"),
        (
            "step",
            f"{d.batch} (least {d.rows_per_step.least:,}, mean {d.rows_per_step.mean:,.1f}, most {d.rows_per_step.most:,})",
        ),
        (
            "tokens per step",
            f"{d.tokens_per_step.mean:,.0f} = {d.run_tokens:,} / {d.steps:,} steps "
            f"(least {d.tokens_per_step.least:,}, most {d.tokens_per_step.most:,})",
        ),
        ("steps", f"{d.steps:,} steps = {d.epochs:.4g} epochs x {d.steps_per_epoch:,.1f}"),
        ("fill", f"{d.fill:.1%} = {d.run_tokens:,} tokens / ({micro:,} micro-batches x {d.capacity:,})"),
        ("padding instead", f"{d.padding_waste:.1%} of every batch if each were padded to its longest row"),
    ]


def _time_lines(plan: Plan) -> list[tuple[str, str]]:
    t, p, tokens = plan.time, plan.inputs, plan.data.run_tokens
    lines = [
        ("FLOP per token", f"{t.flop_per_token / 1e9:,.4g} GFLOP = {t.flop_equation}"),
        ("FLOP", f"{t.flop_per_token * tokens:.3g} = {tokens:,} tokens x {t.flop_per_token:.4g}"),
    ]
    if t.tokens_per_second is None or t.hours is None or t.gpu_hours is None or t.kwh is None or t.co2_kg is None:
        return [*lines, ("hours", "unknown: set plan.tokens_per_second, or time steps with --probe")]
    lines.append(
        ("hours", f"{t.hours:,.3g} h = {tokens:,} tokens / {t.tokens_per_second:,.0f} per second ({t.rate_from}) / 3600")
    )
    lines.append(("GPU-hours", f"{t.gpu_hours:,.4g} = {t.hours:,.3g} h x {p.gpus} GPUs"))
    if t.money is not None:
        lines.append(("money", f"{t.money:,.2f} = {t.gpu_hours:,.4g} GPU-hours x {p.price_per_gpu_hour:g}"))
    lines.append(("energy", f"{t.kwh:,.4g} kWh = {t.gpu_hours:,.4g} GPU-hours x {p.watts_per_gpu:g} W x {p.pue:g} PUE / 1000"))
    return [*lines, ("CO2", f"{t.co2_kg:,.4g} kg = {t.kwh:,.4g} kWh x {p.grid_kg_per_kwh:g} kg")]


def language_rows(languages: Sequence[LanguageTokens]) -> list[tuple[str, str, str]]:
    """Language, tokens per character, and what they are of."""
    return [
        (
            one.language,
            f"{one.tokens_per_character:.3f}",
            f"{one.tokens:,} tokens / {one.characters:,} characters of {one.turns:,} turns",
        )
        for one in languages
    ]


def print_plan(console: Console, plan: Plan) -> None:
    """Show a plan as tables, every derived number with its equation."""

    def table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
        grid = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            grid.add_row(*(Text(cell) for cell in row))
        console.print(grid)

    m, memory = plan.model, plan.memory
    table("Data", _data_lines(plan.data))
    if plan.languages:
        table("Tokens per character by language (a sample)", language_rows(plan.languages))
    head = "tied head" if m.head == 0 else f"{short(m.head)} head"
    kinds = f"{short(m.embeddings)} embeddings + {head} + {short(m.linear)} linear + {short(m.norms)} norms"
    share = f"{plan.trainable / m.total:.3%} = {plan.trainable:,} / {m.total:,}"
    table("Parameters", [("all", f"{m.total:,} = {kinds}"), ("trainable", share)])
    if plan.choice is not None:
        table("Chosen for auto (estimated; a run measures before its first step)", [("setting", plan.choice)])
    parts = [(part.name, f"{part.gib:,.1f} GiB", part.equation) for part in memory.parts]
    verdict = f"{'fits' if memory.fits else 'does NOT fit'} in {memory.capacity_gib:g} GiB; fullest {memory.moment}"
    table("Memory of one GPU (estimated)", [*parts, ("total", f"{memory.total_gib:,.1f} GiB", verdict)])
    if not memory.fits:
        rows = [
            (" ".join(s.settings), f"{s.total_gib:,.1f} GiB", f"{'fits' if s.fits else 'not yet'}; {s.why}")
            for s in plan.suggestions
        ]
        if not plan.suggestions or not plan.suggestions[-1].fits:
            rows.append(
                ("still too large", "", "more GPUs, GPUs with more memory, a shorter data.max_length, or a smaller model")
            )
        table("To make it fit, one on top of the other (estimated)", rows)
    table("Time", _time_lines(plan))
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}"))
