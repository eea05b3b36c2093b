"""Tokens per second of a recipe on this machine: a few real steps, nothing written that stays."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sft.errors import InputError
from sft.recipe import Recipe

_STEPS = 6


def probe_tokens_per_second(recipe: Recipe) -> float:
    """Train a few steps as the recipe says, in this process, and return tokens over seconds without the first (warm-up) step.

    Args:
        recipe: the whole recipe; only its length and its output are replaced. No weights are written.

    Returns:
        Tokens per second of one GPU (of this machine without one).

    Raises:
        InputError: a recipe that shards over several processes.
    """
    from sft.engine.metrics import read_metrics
    from sft.train import run

    if recipe.train.sharding != "none":
        raise InputError(
            "--probe times one process, and this recipe shards its weights over several; give plan.tokens_per_second instead, "
            "or add --set train.sharding=none if one GPU holds it"
        )
    with tempfile.TemporaryDirectory(prefix="vicugna-probe-") as folder:
        most = min(_STEPS, recipe.train.max_steps or _STEPS)
        changes = {"dir": f"{folder}/run", "log_every": 1, "save_every": None, "eval_every": None, "report_to": ()}
        short = recipe.model_copy(
            update={
                "train": recipe.train.model_copy(update={"max_steps": most}),
                "output": recipe.output.model_copy(update=changes),
            }
        )
        run(short, probe=True)
        lines = [line for line in read_metrics(Path(folder) / "run" / "metrics.jsonl") if "loss" in line]
    timed = lines[1:] or lines
    return sum(line["tokens_per_second"] * line["seconds"] for line in timed) / sum(line["seconds"] for line in timed)
