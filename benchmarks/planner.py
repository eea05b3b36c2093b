"""Lay out a run of a million rows, by examples and by tokens: how long it takes and how full the micro-batches are. Prints a table.

``python benchmarks/planner.py [--rows 1000000] [FILES]``: lengths are drawn from those of the rows of the files (or ``VICUGNA_DATA=FOLDER``
and its ``instructions/*.json``), taken as 4 characters a token and 45 tokens of template around them; without files from a log-normal
distribution like Alpaca's (mean 180). The peer is trl's best-fit-decreasing over the same lengths, where trl is installed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenisers import conversations_of

from sft.data.packing import StepPlan, plan_steps


def lengths_of(files: list[Path], rows: int, longest: int) -> npt.NDArray[np.int64]:
    dice = np.random.Generator(np.random.PCG64(0))
    if not files:
        found = dice.lognormal(4.95, 0.68, rows)
    else:
        known = [45 + sum(len(turn.content) for turn in row.turns) // 4 for row in conversations_of(files)]
        found = dice.choice(np.asarray(known), rows)
    return np.clip(found, 8, longest).astype(np.int64)


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """The last result and the least seconds, the first call (which compiles) apart."""
    work()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        out = work()
        seconds.append(time.perf_counter() - begun)
    return out, min(seconds)


def fill_of_steps(plan: StepPlan, tokens: int) -> float:
    """Tokens of all steps but the last, which takes what is left, over what was asked for."""
    full = range(len(plan.steps) - 1)
    return sum(plan.total_tokens(step) for step in full) / (tokens * len(full))


def trl_bins(lengths: npt.NDArray[np.int64], capacity: int) -> int | None:
    """Bins of trl's packing of the whole set."""
    try:
        import pyarrow as pa
        from trl.data_utils import _pack_bfd
    except ImportError:
        return None
    values = pa.array(np.zeros(int(lengths.sum()), np.int8))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    table = pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, values)})
    return len(_pack_bfd(table, capacity, "truncate"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--max-length", type=int, default=2048)
    options = parser.parse_args()
    root = os.environ.get("VICUGNA_DATA")
    files = options.files or (sorted(Path(root).glob("instructions/*.json")) if root else [])
    lengths = lengths_of(files, options.rows, options.max_length)
    tokens, longest = int(lengths.sum()), options.max_length
    print(f"{len(lengths):,} rows, {tokens:,} tokens, mean {lengths.mean():.1f}, longest {lengths.max():,}")
    same: dict[str, Any] = {
        "lengths": lengths,
        "trained": lengths // 2,
        "source_of": np.zeros(len(lengths), np.int32),
        "weights": [1.0],
        "seed": 0,
        "epochs": 1.0,
        "max_steps": None,
        "max_length": longest,
    }
    print("| run | seconds | steps | micro-batches per step | micro-batches full | steps full |\n|---|---|---|---|---|---|")
    for name, wanted, world in (
        ("128 examples, 1 GPU, 8,192 tokens a micro-batch", {"examples_per_step": 128, "tokens_per_device": 4 * longest}, 1),
        ("65,536 tokens, 1 GPU, 8,192", {"tokens_per_step": 32 * longest, "tokens_per_device": 4 * longest}, 1),
        ("65,536 tokens, 8 GPUs, 2,048", {"tokens_per_step": 32 * longest, "tokens_per_device": longest}, 8),
    ):
        arguments = {"examples_per_step": None, "tokens_per_step": None, **same, **wanted, "world": world}
        plan, seconds = timed(lambda arguments=arguments: plan_steps(**arguments))
        step = wanted.get("tokens_per_step")
        steps = f"{fill_of_steps(plan, step):.3%}" if step else "-"
        print(
            f"| {name} | {seconds:.3f} | {len(plan.steps):,} | {plan.accumulation} | {plan.fill():.3%} | {steps} |", flush=True
        )
    begun = time.perf_counter()
    bins = trl_bins(lengths, longest)
    if bins is not None:
        print(f"\ntrl's best-fit decreasing: {bins:,} bins of {longest:,}, {tokens / (bins * longest):.3%} full, ", end="")
        print(f"{time.perf_counter() - begun:.2f} s (its table of tokens included)")


if __name__ == "__main__":
    main()
