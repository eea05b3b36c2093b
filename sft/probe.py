"""Tokens per second of a recipe on this machine: a few real steps, nothing written that stays."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sft.recipe import Recipe

_STEPS = 6


def probe_tokens_per_second(recipe: Recipe) -> float:
    """Train a few steps as the recipe says and return the median rate, without the first step (warm-up, compilation).

    Args:
        recipe: the whole recipe; only its length and its output directory are replaced.

    Returns:
        Tokens per second over all GPUs of this run.
    """
    from sft.engine.metrics import read_metrics
    from sft.train import run

    with tempfile.TemporaryDirectory(prefix="vicugna-probe-") as folder:
        short = recipe.model_copy(
            update={
                "train": recipe.train.model_copy(update={"max_steps": _STEPS}),
                "output": recipe.output.model_copy(
                    update={
                        "dir": f"{folder}/run",
                        "log_every": 1,
                        "merge": False,
                        "sample_prompts": (),
                        "drill": "off",
                        "save_every": None,
                        "eval_every": None,
                        "report_to": (),
                    }
                ),
            }
        )
        run(short)
        rates = [line["tokens_per_second"] for line in read_metrics(Path(folder) / "run" / "metrics.jsonl") if "loss" in line]
    rates = sorted(rates[1:] or rates)
    return float(rates[len(rates) // 2])
