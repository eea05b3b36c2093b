"""Flat rows through torch's varlen kernel: isolated documents, and the numbers of padded SDPA.

``python benchmarks/varlen_agreement.py [--models vicugna_alibi phi ...]`` on a machine with a CUDA GPU. Real-length rows of random tokens
run through random models (width 1024, 8 layers; heads of 64, of 136 with ALiBi's columns, of 256 for Phi, of 128 for Glm) in bfloat16:
flat + varlen, flat + one SDPA per document, padded + SDPA; float32 padded SDPA is the reference. Agreement "to bfloat16 accuracy"
means: varlen is no further from the reference than padded bfloat16 SDPA is, within 20 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch

from sft.data.collate import flat_batch, padded_batch
from sft.engine.evaluate import to_device
from sft.engine.loss import token_losses
from sft.errors import IsolationError
from sft.model.attention import check_isolation, isolation_tolerance, register
from sft.model.native import AutoConfig, AutoModelForCausalLM

LLAMA = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
OPT = {
    "hidden_size": 1024,
    "word_embed_proj_dim": 1024,
    "ffn_dim": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "dropout": 0.0,
}
_HEADS_OF_128 = {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8, "max_position_embeddings": 2048}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "opt": OPT,
    "vicugna_alibi": {**_HEADS_OF_128, "intermediate_size": 2816},
    "phi": {**_HEADS_OF_128, "num_attention_heads": 4, "intermediate_size": 4096, "partial_rotary_factor": 0.25},
    "glm": {
        **_HEADS_OF_128,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 2816,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "attention_dropout": 0.0,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    },
}
VOCABULARY = 32000


def rows_of(seed: int, count: int = 24) -> list[tuple[Any, Any]]:
    """Random rows with log-normal lengths around 300 tokens, half of the tokens learnt."""
    rng = np.random.Generator(np.random.PCG64(seed))
    lengths = np.clip(rng.lognormal(5.5, 0.8, count).astype(int), 8, 2048)
    return [(rng.integers(0, VOCABULARY, n).astype(np.int32), rng.random(n) < 0.5) for n in lengths]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def measure(kind: str, fields: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Losses and gradients of one model by every way, against float32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **fields)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rows = rows_of(1)
    flat, padded = to_device(flat_batch(rows, 1, 32), device), to_device(padded_batch(rows, 1, 0), device)
    ways = {"padded sdpa": ("sdpa", padded), "flat varlen": ("vicugna_varlen", flat), "flat sdpa": ("vicugna_sdpa", flat)}

    def run(batch: dict[str, Any], backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        model.set_attn_implementation(backend)
        model.zero_grad()
        losses = token_losses(model, batch)
        losses.mean().backward()
        gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
        return losses.detach().float(), gradient

    reference = run(padded, "sdpa")
    model.to(torch.bfloat16)
    found: dict[str, Any] = {"model": kind, "rows": len(rows), "tokens": sum(len(r[0]) for r in rows)}
    for name, (backend, batch) in ways.items():
        losses, gradient = run(batch, backend)
        found[name] = {"loss": distance(losses, reference[0]), "gradient": distance(gradient, reference[1])}
    for backend in ("vicugna_varlen", "vicugna_sdpa", "sdpa"):
        model.set_attn_implementation(backend)
        try:
            found[f"isolation {backend}"] = check_isolation(
                model, VOCABULARY, tolerance=isolation_tolerance(torch.bfloat16, "none")
            )
        except IsolationError as error:
            found[f"isolation {backend}"] = f"refused: {error}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("varlen_agreement needs a CUDA GPU")
    register()
    print(torch.cuda.get_device_name(), torch.__version__)
    ok = True
    for kind in options.models:
        found = measure(kind, MODELS[kind], torch.device("cuda"))
        print(json.dumps(found, indent=1))
        for part in ("loss", "gradient"):
            ok &= found["flat varlen"][part] <= 1.2 * found["padded sdpa"][part]
    print("agrees to bfloat16 accuracy" if ok else "DOES NOT AGREE")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
