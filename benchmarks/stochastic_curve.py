"""Does AdamW on bfloat16 weights with stochastic rounding learn as float32 does? Loss curves of three runs of ``sft train``; one GPU.

``python benchmarks/stochastic_curve.py --data ROWS [--steps 300] [--learning-rate 2e-5]``: a random LLaMA of 1.2 G parameters, the same rows in
the same order: float32 weights and states with bfloat16 products; bfloat16 weights and states, rounded stochastically; the same, rounded
to the nearest. Prints the mean loss of stretches of steps, and the root of the mean square difference to float32 over all steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from engine import BFLOAT16, child

SHAPE = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
}
RUNS = {
    "float32": ["model.dtype=float32", "model.compute_dtype=bfloat16", "train.optimizer=adamw"],
    "float32, other micro-batches": [
        "model.dtype=float32",
        "model.compute_dtype=bfloat16",
        "train.optimizer=adamw",
        "train.tokens_per_device=4096",
    ],
    "bfloat16, stochastic": [*BFLOAT16, "train.optimizer=adamw_stochastic"],
    "bfloat16, nearest": [*BFLOAT16, "train.optimizer=adamw"],
}


def losses(name: str, options: argparse.Namespace) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        sets = [
            "model.name_or_path=null",
            "model.revision=null",
            f"model.scratch={json.dumps({'config': SHAPE, 'vocab_size': 32000})}",
            f"data.sources=[{{path: {json.dumps(options.data)}, format: auto}}]",
            "data.max_drop_share=0.05",
            f"train.max_steps={options.steps}",
            "train.epochs=1000",
            f"train.learning_rate={options.learning_rate}",
            "train.schedule=constant",
            "train.sharding=none",
            "train.tokens_per_device=16384",
            "train.compile=on",
            f"output.dir={folder}/run",
            "output.log_every=1",
            "output.save_every=null",
            "output.eval_every=null",
            *RUNS[name],
        ]
        child("recipes/alpaca.yaml", sets)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    options = parser.parse_args()
    cuts = sorted({1, *(options.steps * k // 6 for k in range(1, 7))})
    print(
        "| run | "
        + " | ".join(f"to step {cut}" for cut in cuts)
        + " | away from float32 |\n|---"
        + "|---" * (len(cuts) + 1)
        + "|"
    )
    reference: list[float] = []
    for name in RUNS:
        found = losses(name, options)
        reference = reference or found
        means = [statistics.fmean(found[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
        away = statistics.fmean((a - b) ** 2 for a, b in zip(found, reference, strict=True)) ** 0.5
        print(f"| {name} | " + " | ".join(f"{mean:.4f}" for mean in means) + f" | {away:.5f} |", flush=True)


if __name__ == "__main__":
    main()
