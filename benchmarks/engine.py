"""Tokens per second and memory of ``sft train`` on a random model of the shape of LLaMA-7B, by variant. Prints a table; one GPU.

``python benchmarks/engine.py --data alpaca.json [--variants full_master full_stochastic ...] [--steps 14] [--set KEY=VALUE]``. Every variant
is a process of its own that takes the real command's way (recipe, rows, trainer, clipping, a record at every step), without saving. The
weights are random, which speed does not depend on. Utilisation is of the card's own matmul rate, measured in the same process; the time to
the first step is of the whole command, imports and data included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alpaca_7b import SEVEN_B

BFLOAT16 = ["model.dtype=bfloat16", "model.compute_dtype=bfloat16"]
LORA = "lora={rank: 16, alpha: 32, targets: all_linear, dropout: 0.0}"
VARIANTS: dict[str, list[str]] = {
    "as_written": [],
    "full_master": ["model.dtype=float32", "model.compute_dtype=bfloat16"],
    "full_master_compiled": ["train.compile=on"],
    "full_stochastic": [*BFLOAT16, "train.optimizer=adamw_stochastic"],
    "full_stochastic_compiled": [*BFLOAT16, "train.optimizer=adamw_stochastic", "train.compile=on"],
    "full_8bit_checkpointing": [
        *BFLOAT16,
        "train.optimizer=adamw_8bit_stochastic",
        "train.compile=on",
        "train.gradient_checkpointing=true",
    ],
    "full_float8": [*BFLOAT16, "train.optimizer=adamw_stochastic", "train.float8=true"],
    "lora": [*BFLOAT16, LORA],
    "lora_compiled": [*BFLOAT16, LORA, "train.compile=on"],
    "lora_float8": [*BFLOAT16, LORA, "train.compile=on", "model.quantization=float8"],
    "qlora": [*BFLOAT16, LORA, "train.compile=on", "model.quantization=nf4"],
}


def child(recipe: str, sets: list[str]) -> None:
    from counters import Watch

    from sft.engine.trainer import PlannedTrainer
    from sft.recipe import load_recipe
    from sft.train import run

    watch = Watch()
    watch.install(PlannedTrainer)
    chosen = run(load_recipe(recipe, sets)[0], probe=True)["memory"]
    said = watch.line()
    if chosen is not None and "tried" in chosen:  # nothing is measured without a GPU
        tried = ", ".join(f"{one['setting']}: {one['measured_gib']}" for one in chosen["tried"])
        said += f"; {chosen['setting']}, {chosen['measured_gib']:.2f} of {chosen['budget_gib']:.2f} GiB (tried {tried})"
    print(f"COUNTED {said}", flush=True)


def _scratch() -> list[str]:
    return ["model.name_or_path=null", f"model.scratch={json.dumps({'config': SEVEN_B, 'vocab_size': 32000})}"]


def settings_of(name: str, options: argparse.Namespace, folder: str) -> list[str]:
    """Edits of the recipe that make it a variant on the rows and the model of the options, in a folder of its own."""
    return [
        "model.revision=null",
        *(_scratch() if options.base is None else [f"model.name_or_path={options.base}"]),
        f"data.sources=[{{path: {json.dumps(options.data)}, format: auto}}]",
        f"data.cache_dir={options.cache}",
        "data.max_drop_share=0.05",
        f"train.max_steps={options.steps}",
        "train.sharding=none",
        f"output.dir={folder}/run",
        f"output.log_every={options.log_every}",
        "output.save_every=null",
        "output.eval_every=null",
        *VARIANTS[name],
        *options.set,
    ]


def measure(name: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-") as folder:
        begun = time.time()
        command = [sys.executable, __file__, "--data", options.data, "--recipe", options.recipe, "--child"]
        for item in settings_of(name, options, folder):
            command += ["--set", item]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        file = Path(folder) / "run" / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        steps = [line for line in lines if "loss" in line]
        if done.returncode or len(steps) < 6:
            print(f"| {name} | failed: {' '.join((done.stderr or done.stdout).split())[-600:]} |", flush=True)
            return
        first = file.stat().st_mtime - begun - sum(line["seconds"] for line in steps[1:])
        steady = steps[-max(4, len(steps) // 2) :]
        middle = {
            key: statistics.median(line[key] for line in steady) for key in ("tokens_per_second", "utilisation", "data_wait")
        }
        counted = [line.removeprefix("COUNTED ") for line in done.stdout.splitlines() if line.startswith("COUNTED ")]
        print(
            f"| {name} | {middle['tokens_per_second']:,.0f} | {middle['utilisation']:.3f} | {max(s['memory_gib'] for s in steps):.1f} | "
            f"{middle['data_wait']:.2%} | {first:.0f} | {steps[0]['loss']:.3f} -> {steps[-1]['loss']:.3f} | "
            f"{counted[0]} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of any format")
    parser.add_argument(
        "--base", help="a model folder (of random_llama.py); adapters need one, other variants make their own weights"
    )
    parser.add_argument("--recipe", default="recipes/alpaca.yaml")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--log-every", type=int, default=1, help="steps between records; at least 6 records are needed")
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/vicugna-bench-cache")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.recipe, options.set)
        return
    print(
        "| variant | tokens/s | utilisation | peak GiB | waiting | first step after, s | loss | after warm-up |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name in options.variants:
        measure(name, options)


if __name__ == "__main__":
    main()
