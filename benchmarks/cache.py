"""Prepared data on disk: how fast it is made, in how much memory, how soon it is open again, and what a kill costs.

``python benchmarks/cache.py --rows 1000000`` writes that many short made-up rows in Alpaca's form into a temporary folder (``--folder``
for another place of it), trains a small byte-level BPE on the first of them, and prepares them. Each measurement has a process of its
own. Its times, of the clock and of the CPU, begin behind the imports and the loading of the tokenizer; its memory is the peak of the whole
process, both included, beside what stood before the preparation began. The second start finds the files in the page cache, as a start
right behind another does.

A last preparation, into a folder of its own, is killed (SIGKILL) when half of its shards stand, and goes on; every file is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sft.data import cache, dataset, sources
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.recipe import Recipe

PIECES, TRAINED_ON = 8000, 20_000
ASKED = 1000
OPENINGS = (
    "Explain to a child",
    "Name three reasons",
    "Write a short note about",
    "Compare with its neighbour",
    "List the parts of",
)


def _words(rng: random.Random, count: int) -> list[str]:
    """Made-up words."""
    return ["".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(1, 4))) for _ in range(count)]


def rows(count: int) -> Iterator[dict[str, str]]:
    """Rows in Alpaca's form, always the same."""
    rng = random.Random(1)
    words = _words(rng, 20_000)

    def sentence(least: int, most: int) -> str:
        # Squared: the first words are the frequent ones.
        text = " ".join(words[int(len(words) * rng.random() ** 2)] for _ in range(rng.randint(least, most)))
        return text[0].upper() + text[1:] + "."

    for _ in range(count):
        given = sentence(3, 9) if rng.random() < 0.4 else ""
        answer = " ".join(sentence(4, 12) for _ in range(rng.randint(1, 4)))
        yield {"instruction": f"{rng.choice(OPENINGS)}: {sentence(2, 6)}", "input": given, "output": answer}


def train_tokenizer(path: Path, texts: Iterator[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def inputs(folder: Path, place: str) -> tuple[Recipe, PreTrainedTokenizerFast, RowEncoder]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>")
    recipe = Recipe.model_validate(
        {
            "model": {"name_or_path": "none"},
            "template": {"name": "chatml"},
            "data": {
                "sources": ({"path": str(folder / "rows.jsonl"), "format": "alpaca"},),
                "max_length": 512,
                "holdout": 0.01,
                "cache_dir": str(folder / place),
            },
            "train": {"epochs": 1.0, "examples_per_step": 128, "tokens_per_device": 8192, "learning_rate": 1e-5},
            "output": {"dir": str(folder / "run")},
        }
    )
    return recipe, tokenizer, RowEncoder(tokenizer, load_template("chatml"))


def peak() -> float:
    """Most memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(folder: Path, place: str) -> None:
    """Prepare, or find prepared; prints what it took as JSON."""
    recipe, tokenizer, encoder = inputs(folder, place)
    parts: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return work(*args)
            finally:
                parts[name] = parts.get(name, 0.0) + time.perf_counter() - begin

        return call

    sources.fingerprint = timed("fingerprint", sources.fingerprint)
    cache.CacheFolder.load = timed("verify and map", cache.CacheFolder.load)  # type: ignore[method-assign]  # only to time it
    before, begin, cpu = peak(), time.perf_counter(), time.process_time()
    made = dataset.prepare(recipe, tokenizer, encoder, progress=False)
    whole, cpu = time.perf_counter() - begin, time.process_time() - cpu
    begin = time.perf_counter()
    lengths, trained, source_of = made.train.lengths, made.train.trained, made.train.source_of
    parts["lengths, trained, source_of"] = time.perf_counter() - begin
    assert len(lengths) == len(trained) == len(source_of) == len(made.train)
    chosen = np.random.default_rng(0).integers(0, len(made.train), ASKED).tolist()
    begin = time.perf_counter()
    for row in chosen:
        made.train.row(row)
    asked = time.perf_counter() - begin
    told = {
        "cached": made.cached,
        "seconds": whole,
        "cpu": cpu,
        "parts": parts,
        "asked": asked,
        "before": before,
        "peak": peak(),
    }
    print(json.dumps({**told, "tokens": int(lengths.sum() + made.holdout.lengths.sum()), "encoded": made.report["encoded"]}))


def launch(folder: Path, place: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", str(folder), "--place", place]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a preparation ended with {process.returncode}")
    told: dict[str, Any] = json.loads(out)
    return told


def files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def kill_halfway(folder: Path, shards: int) -> int:
    """Kill a preparation when half of its shards stand; how many stood."""
    process = launch(folder, "killed")
    while len(list((folder / "killed").glob("*/rows-*"))) < shards // 2:
        if process.poll() is not None:
            raise SystemExit("the preparation was over before it could be killed")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return len(list((folder / "killed").glob("*/rows-*")))


def measure(folder: Path, count: int) -> None:
    begin = time.perf_counter()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))
    train_tokenizer(
        folder / "tokenizer.json", (f"{row['instruction']}\n{row['output']}" for row in rows(min(count, TRAINED_ON)))
    )
    size = (folder / "rows.jsonl").stat().st_size
    print(f"{count:,} rows, {size / 2**20:,.0f} MiB of JSON, made in {time.perf_counter() - begin:.0f} s", flush=True)
    first = result(launch(folder, "cache"))
    written = files(folder / "cache")
    shards = sum(name.endswith("shard.json") for name in written)
    on_disk = sum(path.stat().st_size for path in written.values())
    seconds, tokens = first["seconds"], first["tokens"]
    speed = f"{count / seconds:,.0f} rows/s, {tokens / seconds:,.0f} tokens/s ({tokens:,} tokens)"
    print(f"prepared in {seconds:.1f} s ({first['cpu']:.1f} s of CPU): {speed}")
    print(f"  {first['encoded']}")
    print(f"  peak memory {first['peak']:,.0f} MiB, {first['before']:,.0f} of them before it began")
    print(f"  {on_disk / 2**20:,.0f} MiB on disk in {shards} shards, {len(written)} files", flush=True)
    for number in range(3):
        again = result(launch(folder, "cache"))
        assert again["cached"]
        assert again["tokens"] == tokens
        parts = "; ".join(f"{name} {value:.3f}" for name, value in again["parts"].items())
        asked = f"{ASKED} random rows {again['asked'] * 1000:.1f} ms"
        grown = again["peak"] - again["before"]
        print(
            f"start {number + 2}: {again['seconds']:.3f} s, {again['cpu']:.3f} s of CPU ({parts}); {asked}; memory +{grown:,.0f} MiB",
            flush=True,
        )
    stood = kill_halfway(folder, shards)
    gone_on = result(launch(folder, "killed"))
    other = files(folder / "killed")
    same = other.keys() == written.keys() and all(
        path.read_bytes() == other[name].read_bytes() for name, path in written.items()
    )
    rest = f"went on in {gone_on['seconds']:.1f} s ({gone_on['cpu']:.1f} s of CPU), peak memory {gone_on['peak']:,.0f} MiB"
    print(f"killed when {stood} of {shards} shards stood; {rest}; every byte {'the same' if same else 'NOT the same'}")
    assert same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--place", default="cache", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.child, asked.place)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        measure(Path(folder), asked.rows)
    return None


if __name__ == "__main__":
    main()
