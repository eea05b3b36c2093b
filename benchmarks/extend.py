"""Extend a LLaMA-like vocabulary by what Chinese rows need: seconds to learn, tokens per character of rows that were not learnt from, speed.

``python benchmarks/extend.py --english ROWS --chinese ROWS [--base FILE] [--sizes 2000 8000]``. Without ``--base`` (a tokenizer.json or a
sentencepiece tokenizer.model) the base is a BPE of LLaMA's kind of at most 32,000 pieces, trained on the English rows and the thousand
most frequent characters of the Chinese ones, with bytes for everything else. Every tenth row is held out. The law (new ids stand for
the old ones) is held over those and the English ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from sft.model.extend import Base, learn, origins, tokens_per_character
from sft.model.sentencepiece_bpe import read_model


def texts_of(path: Path) -> list[str]:
    """Instructions, inputs and answers of Alpaca rows."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [text for row in rows for text in (row["instruction"], row.get("input", ""), row["output"]) if text]


def llama_like(english: list[str], characters: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<unk>", "<s>", "</s>", *pieces], initial_alphabet=characters, show_progress=False
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # only while it is trained
    backend.train_from_iterator(english, trainer)
    spec = json.loads(backend.to_str()) | {"pre_tokenizer": None}
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(spec))


def encode(backend: Tokenizer, texts: list[str]) -> tuple[list[list[int]], float]:
    begun = time.perf_counter()
    ids = [one.ids for one in backend.encode_batch(texts, add_special_tokens=False)]
    return ids, sum(map(len, texts)) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--english", type=Path, required=True)
    parser.add_argument("--chinese", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 8_000])
    parser.add_argument("--min-count", type=int, default=5)
    options = parser.parse_args()
    english, chinese = texts_of(options.english), texts_of(options.chinese)
    held, given = chinese[::10], [text for i, text in enumerate(chinese) if i % 10]
    frequent = [c for c, _ in Counter("".join(given)).most_common(1_000)]
    if options.base is None:
        base = Base(llama_like(english, frequent))
    else:
        of_json = options.base.suffix == ".json"
        base = Base(Tokenizer.from_file(str(options.base)) if of_json else read_model(options.base).backend())
    old, speed = encode(base.backend, held)
    old += encode(base.backend, english)[0]
    print(
        f"learnt from {sum(map(len, given)):,} characters, held out {sum(map(len, held)):,}; base of {base.first_new:,} entries"
    )
    print(
        "| new entries | characters, pairs | s to learn | tokens per character, Chinese held out | English | M characters/s |"
    )
    print("|---|---|---|---|---|---|")
    before = tokens_per_character(base.backend, held), tokens_per_character(base.backend, english)
    print(f"| none | | | {before[0]:.3f} | {before[1]:.4f} | {speed / 1e6:.2f} |")
    for size in options.sizes:
        begun = time.perf_counter()
        found = learn(base, given, size, options.min_count)
        seconds = time.perf_counter() - begun
        new = base.with_(found)
        parts = origins(new, base.first_new)
        ids, speed = encode(new, held)
        ids += encode(new, english)[0]
        differ = sum([p for i in row for p in parts.get(i, (i,))] != was for row, was in zip(ids, old, strict=True))
        after = tokens_per_character(new, held), tokens_per_character(new, english)
        print(
            f"| {len(found.pieces):,} | {len(found.characters):,}, {len(found.merges):,} | {seconds:.1f} | {after[0]:.3f} | {after[1]:.4f} | "
            f"{speed / 1e6:.2f} |",
            flush=True,
        )
        if differ:
            raise SystemExit(f"{differ} of {len(old)} texts are not spelt as before")
    print(f"all of {len(old):,} texts are spelt as before")


if __name__ == "__main__":
    main()
