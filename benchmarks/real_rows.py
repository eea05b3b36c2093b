"""Mask report over real rows, an independent audit of every training row, and the speed against the bare tokenizer.

``python benchmarks/real_rows.py FILE [FILE ...] [--template NAME ...] [--max-length 2048] [--overflow split]``, or without files what
stands below the folder that ``VICUGNA_DATA`` names: ``chat/*.json`` with ``vicuna_v1.1`` and ``chatml`` (2048, split) and
``instructions/*.json`` with ``alpaca`` (512, truncate). A byte-level BPE of 16,000 is trained on the files, so nothing is downloaded.

The audit goes another way than the encoder: it renders each learnt answer's inference prompt as a server does, encodes it alone, and
decodes the learnt ids with the user's tokenizer. The peer is ``encode_batch`` of ``tokenizers`` on the same rendered texts; set
``RAYON_NUM_THREADS=1`` to hold both to one core. Seconds are CPU seconds / wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sft.config import Document, build
from sft.data.conversation import Conversation, Drop, Drops
from sft.data.dataset import iterate_sources
from sft.data.mask_report import MaskReport, mask_report
from sft.data.overflow import Fitted, fit
from sft.data.tokenize import RowEncoder
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


def recipe_for(files: Sequence[Path], template: str, max_length: int, overflow: str) -> Recipe:
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


def batched(rows: Sequence[Conversation], size: int = 512) -> list[Sequence[Conversation]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    out = work()
    return out, time.process_time() - cpu, time.perf_counter() - wall


def audit(parts: Sequence[Fitted], encoder: RowEncoder, tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """Learnt answers of uncut turns by outcome: ``sound``, ``prompt`` (its ids are not the row's first), ``answer``, ``stop``."""
    found: Counter[str] = Counter()
    stops, strings = encoder.stops()
    for part in parts:
        ids, turns, rendered = part.row.ids.tolist(), part.conversation.turns, part.whole.rendered
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        for (first, stop), whole, (start, end), index in zip(
            part.row.turns, part.whole.row.turns, rendered.spans, answers, strict=False
        ):
            if not part.row.mask[first:stop].any() or (first, stop) != whole:
                continue
            before = Conversation("prompt", turns[:index], "audit")
            said = tokenizer.decode(ids[first:stop], skip_special_tokens=False)
            if ids[:first] != encoder.prompt_ids(before) or not part.row.mask[first:stop].all():
                found["prompt"] += 1
            elif said.strip(" ") != rendered.text[start:end].strip(" "):
                found["answer"] += 1
            elif not (said.endswith(tuple(strings)) if strings else ids[stop - 1] in stops):
                found["stop"] += 1
            else:
                found["sound"] += 1
    return found


def tell(name: str, report: MaskReport, audited: Counter[str]) -> None:
    turns, total = report.turns, report.total
    print(f"{name}: {report.rows_in:,} rows in, {report.kept:,} kept, {report.rows_out:,} training rows")
    print(f"  dropped {json.dumps(dict(report.drops.counts))}, changed {json.dumps(dict(report.drops.changed))}")
    for reason, examples in sorted(report.drops.examples.items()):
        print(f"    {reason}: {Path(examples[0].id).name}: {examples[0].detail}")
    print(f"  {total.tokens:,} tokens, {total.trained:,} learnt ({total.share:.1%})")
    print(f"  learnt turns {turns.trained:,}: with stop {turns.stopped:,}, cut {turns.cut:,}, without stop {turns.unstopped:,}")
    print(f"  audit of the uncut ones: {json.dumps(dict(audited))}")
    places = ", ".join(
        f"{place} {share.tokens:,} ({share.share:.1%})" for place, share in report.places.items() if share.tokens
    )
    print(f"  tokens by place (learnt): {places}")
    for label, share in report.sources.items():
        print(f"    {Path(label).name}: {share.rows:,} training rows, {share.tokens:,} tokens, {share.share:.1%} learnt")


def measure(files: Sequence[Path], template: str, max_length: int, overflow: str) -> None:
    recipe = recipe_for(files, template, max_length, overflow)
    tokenizer, loaded, _ = tokenizer_for(recipe)
    encoder, unread = RowEncoder(tokenizer, loaded), Drops()
    conversations, _, wall = timed(lambda: [c for _, c in iterate_sources(recipe.data.sources, unread, progress=False)])
    texts = []
    for batch in batched(conversations):
        texts += [row.rendered.text for row in encoder.trace(batch) if not isinstance(row, Drop)]
    backend = tokenizer.backend_tokenizer
    backend.encode_batch(texts[:500], add_special_tokens=False)  # fills its cache of words
    encoded, cpu, raw = timed(lambda: backend.encode_batch(texts, add_special_tokens=False))
    tokens = sum(len(one) for one in encoded)
    del encoded
    _, own_cpu, own = timed(lambda: [encoder.encode(batch) for batch in batched(conversations)])
    report, report_cpu, report_wall = timed(
        lambda: mask_report(conversations, encoder, recipe.data, unread=unread, progress=False)
    )
    audited: Counter[str] = Counter()
    for batch in batched(conversations):
        for parts in fit(encoder.trace(batch), batch, encoder, max_length, overflow, Drops()):
            audited += audit(parts, encoder, tokenizer)
    tell(template, report, audited)
    print(
        f"  read in {wall:.1f} s; {tokens:,} tokens: encode_batch {cpu:.1f} / {raw:.1f} s ({tokens / cpu:,.0f} tokens per CPU second)"
    )
    print(
        f"  encoded and verified in {own_cpu:.1f} / {own:.1f} s ({tokens / own_cpu:,.0f}, {cpu / own_cpu:.2f} of encode_batch)"
    )
    rate = report.total.tokens / report_cpu
    print(f"  whole report in {report_cpu:.1f} / {report_wall:.1f} s ({rate:,.0f} training tokens per CPU second)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--template", nargs="+", default=["vicuna_v1.1", "chatml"])
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--overflow", default="split")
    options = parser.parse_args()
    if options.files:
        jobs = [(options.files, name, options.max_length, options.overflow) for name in options.template]
    elif "VICUGNA_DATA" in os.environ:
        root = Path(os.environ["VICUGNA_DATA"])
        chats = sorted(root.glob("chat/*.json"))
        jobs = [(chats, name, options.max_length, options.overflow) for name in options.template]
        jobs.append((sorted(root.glob("instructions/*.json")), "alpaca", 512, "truncate"))
    else:
        sys.exit("real_rows needs files, or VICUGNA_DATA naming a folder with chat/*.json and instructions/*.json")
    for job in jobs:
        measure(*job)


if __name__ == "__main__":
    main()
