"""Mask report over real conversations: rows in, kept, dropped by reason, and the share of learnt turns whose stop token is learnt.

``python benchmarks/real_rows.py FILE [FILE ...] [--max-length 2048] [--overflow split]``, or every ``chat/*.json`` below the folder that
``VICUGNA_DATA`` names. A byte-level BPE is trained on the files, so nothing is downloaded; each file runs through the templates
``vicuna_v1.1`` and ``chatml``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from sft.config import Document, build
from sft.data.conversation import Drops
from sft.data.dataset import iterate_sources
from sft.data.mask_report import mask_report
from sft.data.tokenize import RowEncoder
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe


def recipe_for(files: list[Path], template: str, max_length: int, overflow: str) -> Recipe:
    """A recipe that is only read for its data."""
    value = {
        "model": {"scratch": {"config": {"model_type": "llama"}, "vocab_size": 16000}},
        "template": {"name": template},
        "data": {
            "sources": [{"path": str(file), "format": "auto"} for file in files],
            "max_length": max_length,
            "overflow": overflow,
        },
        "train": {"epochs": 1, "examples_per_step": 1, "tokens_per_device": max_length, "learning_rate": 1e-5},
        "output": {"dir": "unused"},
    }
    return build(Recipe, Document(value, {}, "real_rows.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--overflow", default="split")
    options = parser.parse_args()
    files = options.files
    if not files and "VICUGNA_DATA" in os.environ:
        files = sorted(Path(os.environ["VICUGNA_DATA"]).glob("chat/*.json"))
    if not files:
        sys.exit("real_rows needs files, or VICUGNA_DATA naming a folder with chat/*.json")
    for template in ("vicuna_v1.1", "chatml"):
        recipe = recipe_for(files, template, options.max_length, options.overflow)
        tokenizer, loaded, _ = tokenizer_for(recipe)
        encoder = RowEncoder(tokenizer, loaded)
        unread = Drops()
        start = time.perf_counter()
        conversations = (conversation for _, conversation in iterate_sources(recipe.data.sources, unread, progress=False))
        report = mask_report(conversations, encoder, recipe.data, unread=unread, progress=False)
        seconds = time.perf_counter() - start
        turns, total = report.turns, report.total
        print(f"{template}: {report.rows_in} rows in, {report.kept} kept, {report.rows_out} rows out in {seconds:.1f} s")
        print(f"  dropped {json.dumps(dict(report.drops.counts))}, changed {json.dumps(dict(report.drops.changed))}")
        print(f"  {total.tokens:,} tokens, {total.trained:,} learnt ({total.share:.1%})")
        print(f"  learnt turns {turns.trained}: with stop {turns.stopped}, cut {turns.cut}, without stop {turns.unstopped}")


if __name__ == "__main__":
    main()
