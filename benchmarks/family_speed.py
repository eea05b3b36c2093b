"""Tokens per second of ``sft train`` on the native forms of the old families, beside a LLaMA of equal size. Random weights; one GPU.

``python benchmarks/family_speed.py --data ROWS [--models llama vicugna_alibi glm phi] [--recipe ...] [--steps 12] [--set ...]``. Layers are
those of a 7B model (width 4,096; Glm and Phi with the heads, and the inner width, of ChatGLM2 and MOSS), half as many: 3.5 G
parameters. Everything else is as in ``engine.py``: variant ``full_stochastic_compiled``, a process of its own for each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import engine

_COMMON = {"hidden_size": 4096, "num_hidden_layers": 16, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11008, "num_attention_heads": 32},
    "vicugna_alibi": {"intermediate_size": 11008, "num_attention_heads": 32},  # heads of 128 + 8
    "glm": {
        "intermediate_size": 13696,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "pad_token_id": 0,  # its own lies outside of this vocabulary
        "eos_token_id": 0,
    },
    "phi": {"intermediate_size": 16384, "num_attention_heads": 16, "partial_rotary_factor": 0.25},  # heads of 256
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of any format")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--recipe", default="recipes/vicuna.yaml")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--log-every", type=int, default=2)
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/vicugna-bench-cache")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.base, sets = None, options.set
    print(
        "| model | variant | tokens/s | utilisation | peak GiB | waiting | first step after, s | loss | after warm-up |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name in options.models:
        scratch = {"config": {"model_type": name, **_COMMON, **SHAPES[name]}, "vocab_size": 32000}
        options.set = [f"model.scratch={json.dumps(scratch)}", *sets]
        print(f"| {name} ", end="", flush=True)
        engine.measure("full_stochastic_compiled", options)


if __name__ == "__main__":
    main()
