"""Write a LLaMA-shaped model with random weights and a byte-level BPE tokenizer trained on given rows, as an ordinary folder.

``python benchmarks/random_llama.py OUT --data ROWS.json [--size 7b] [--dtype bfloat16]``. Speed and memory do not depend on the weights,
so recipes that load a model (adapters, quantised bases) can be measured where no model can be downloaded:
``sft train recipes/alpaca_lora.yaml --set model.name_or_path=OUT --set model.revision=null ...``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sft.data.tokenize import RowEncoder
from sft.model.tokenizer import tokenizer_for
from sft.recipe import load_recipe

SIZES = {
    "tiny": (256, 4, 704, 4),
    "134m": (768, 12, 2048, 12),
    "1b": (2048, 22, 5632, 32),
    "7b": (4096, 32, 11008, 32),
    "13b": (5120, 40, 13824, 40),
}


def main() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="rows that the tokenizer is trained on")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--vocab", type=int, default=32000)
    options = parser.parse_args()
    width, layers, inner, heads = SIZES[options.size]
    shape = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    }
    recipe, _ = load_recipe(
        "recipes/quickstart.yaml",
        [
            f"data.sources=[{{path: {options.data}}}]",
            f"model.scratch={{vocab_size: {options.vocab}, config: {{model_type: llama}}}}",
        ],
    )
    tokenizer, template, _ = tokenizer_for(recipe)
    RowEncoder(tokenizer, template)  # refuses a tokenizer that could not be trained with
    config = AutoConfig.for_model("llama", vocab_size=options.vocab, **shape)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype))
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"{options.out}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} G parameters, {options.dtype}")


if __name__ == "__main__":
    main()
