"""``sft train recipes/alpaca.yaml`` on a random LLaMA-7B: tokens per second and memory of the real command.

``python benchmarks/alpaca_7b.py --data alpaca.json [--steps 20] [--set KEY=VALUE ...]``. The weights are random (speed does not depend
on them); recipe, rows, trainer and records are the real ones. One GPU with 139 GiB holds the recipe's float32 weights and states.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SEVEN_B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", required=True, help="Alpaca rows (JSON or JSONL)")
    parser.add_argument("--recipe", default="recipes/alpaca.yaml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-") as folder:
        run_dir = Path(folder) / "run"
        scratch = {"config": SEVEN_B, "vocab_size": 32000}
        sets = [
            "model.name_or_path=null",
            "model.revision=null",
            f"model.scratch={json.dumps(scratch)}",
            f"data.sources=[{{path: {json.dumps(options.data)}, format: alpaca}}]",
            f"data.cache_dir={folder}/cache",
            f"train.max_steps={options.steps}",
            "train.sharding=none",
            f"output.dir={run_dir}",
            "output.save_every=null",
            "output.eval_every=null",
            "output.merge=false",
            "output.drill=off",
            "output.log_every=1",
            *options.set,
        ]
        command = [sys.executable, "-m", "sft", "train", options.recipe]
        for item in sets:
            command += ["--set", item]
        subprocess.run(command, check=True)
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        about = json.loads((run_dir / "run.json").read_text())
    steps = [line for line in lines if "loss" in line]
    steady = steps[3:]
    print(f"{about['plan']['equation']}; fill {about['plan']['fill']:.3f}; isolation {about['isolation']}")
    print(f"loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f} in {len(steps)} steps")
    for key in ("tokens_per_second", "trained_tokens_per_second", "utilisation", "data_wait", "memory_gib"):
        values = [line[key] for line in steady]
        print(f"{key}: median {statistics.median(values):.4g} (min {min(values):.4g}, max {max(values):.4g})")


if __name__ == "__main__":
    main()
