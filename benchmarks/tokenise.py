"""From conversations to ids and masks: ours against the tokenizer alone, tiktoken, trl and FastChat's method. Prints a table.

``python benchmarks/tokenise.py FILES`` or ``VICUGNA_DATA=FOLDER python benchmarks/tokenise.py`` (``FOLDER/chat/*.json`` as they are,
``FOLDER/instructions/*.json`` as conversations of one exchange). ``--tokenizer`` takes folders, ``tokenizer.json`` files, sentencepiece
``.model`` files, or a kind of which 32,000 pieces are trained on the files: ``qwen2``, ``llama3``, ``gpt2``, ``sentencepiece``.

Each number of threads has a process of its own. ``raw`` is ``encode_batch`` of the rendered texts: ids, and nothing else. ``cold`` is a
first pass with an empty memory of words, ``warm`` a second one over the same rows. All of ours renders, encodes, masks and verifies.
FastChat's method and trl take every fourth row. Nothing is truncated but by FastChat's method, which pads and cuts to 2,048.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from tokenisers import KINDS, conversations_of, load, texts_of, train_on

from sft.data.conversation import Conversation, Drop
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder, Tokenized, Traced
from sft.model.tokenizer import repair_tokens

T = TypeVar("T")
NEVER = 1 << 60
FASTCHAT_LENGTH = 2048


def timed(work: Callable[[], T], repeats: int = 3) -> tuple[T, float, float]:
    """The last result, with the least wall and CPU seconds."""
    walls, cpus = [], []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        out = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return out, min(walls), min(cpus)


def batched(rows: Sequence[T], size: int = 512) -> Iterable[Sequence[T]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def encode_all(encoder: RowEncoder, rows: Sequence[Conversation]) -> list[Tokenized | Drop]:
    return [row for batch in batched(rows) for row in encoder.encode(batch)]


def same(a: Tokenized | Drop, b: Tokenized | Drop) -> bool:
    if isinstance(a, Drop) or isinstance(b, Drop):
        return a == b
    return bool(np.array_equal(a.ids, b.ids) and np.array_equal(a.mask, b.mask) and a.turns == b.turns)


def fastchat(tokenizer: Any, rows: Sequence[Traced]) -> int:
    """FastChat's way: the whole, padded; then each round and each question again, to count what must be masked.

    The number of rows whose counts did not add up; FastChat masks them as a whole.
    """
    tokenizer.padding_side, failed = "right", 0
    for batch in batched(rows):
        texts = [row.rendered.text for row in batch]
        whole = tokenizer(
            texts,
            padding="max_length",
            max_length=FASTCHAT_LENGTH,
            truncation=True,
            return_tensors="np",
            add_special_tokens=False,
        )["input_ids"]
        labels = whole.copy()
        for row, ids, label, text in zip(batch, whole, labels, texts, strict=True):
            at, begin = 0, 0
            for start, end in row.rendered.spans:
                asked = len(tokenizer(text[begin:start], add_special_tokens=False)["input_ids"])
                label[at : at + asked] = -100
                at += len(tokenizer(text[begin:end], add_special_tokens=False)["input_ids"])
                begin = end
            label[at:] = -100
            if at < FASTCHAT_LENGTH and at != int((ids != tokenizer.pad_token_id).sum()):
                label[:] = -100
                failed += 1
    return failed


def trl_rows(tokenizer: Any, source: str, rows: Sequence[Conversation]) -> Any:
    """trl's own preparation, masks from the generation marks of the same template."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    data = Dataset.from_list([{"messages": [{"role": t.role, "content": t.content} for t in row.turns]} for row in rows])
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True, bf16=False
    )
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer, chat_template=source, completion_only_loss=False)
    return SFTTrainer._prepare_dataset(trainer, data, tokenizer, config, False, None, "train")


def tiktoken_of(tokenizer: Any) -> Any:
    """The same byte-level vocabulary in tiktoken; None where it does not apply or is not installed."""
    import json

    from sft.data.stand_in import stand_in_tokenizer
    from sft.data.vocabulary import NotUnderstood, read

    try:
        import tiktoken

        control = [token.content for token in tokenizer.added_tokens_decoder.values()]
        vocabulary = read(*stand_in_tokenizer(tokenizer, control))
    except (ImportError, NotUnderstood):
        return None
    if not vocabulary.byte_level:
        return None
    spec = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
    rules = spec.get("pretokenizers", [spec])
    pattern = (
        rules[0].get("pattern", {}).get("Regex", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    )
    specials = set(vocabulary.specials.values())
    ranks = {text: i for i, text in enumerate(vocabulary.spelled) if text and i not in specials}
    return tiktoken.Encoding("benchmark", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def measure(path: str, template_name: str, files: Sequence[Path], threads: int) -> None:
    """Print the lines of one tokenizer over one set of files."""
    tokenizer, template = load(path), load_template(template_name)
    repair_tokens(tokenizer, template)
    rows = conversations_of(files)
    plain = RowEncoder(tokenizer, template, interned_from=NEVER)
    traced = [row for batch in batched(rows) for row in plain.trace(batch) if isinstance(row, Traced)]
    texts = [row.rendered.text for row in traced]
    backend = tokenizer.backend_tokenizer
    tokens = sum(len(row.row.ids) for row in traced)
    few, few_rows = traced[::4], rows[::4]
    few_tokens = sum(len(row.row.ids) for row in few)
    print(f"\n{Path(path).stem}, {template_name}, {threads} threads: {len(rows):,} rows, {tokens:,} tokens", flush=True)
    print("| | wall s | CPU s | thousand tokens/s | of raw |\n|---|---|---|---|---|")
    backend.encode_batch(texts[:500], add_special_tokens=False)  # fills its cache of words
    _, raw, cpu = timed(lambda: backend.encode_batch(texts, add_special_tokens=False))

    def line(name: str, wall: float, cpu: float, of: int = tokens) -> None:
        rate = of / wall
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {rate / 1000:,.0f} | {rate / (tokens / raw):.2f} |", flush=True)

    line("raw", raw, cpu)
    line("raw, `encode_batch_fast`", *timed(lambda: backend.encode_batch_fast(texts, add_special_tokens=False))[1:])
    if (fast := tiktoken_of(tokenizer)) is not None:
        made, *seconds = timed(lambda: fast.encode_ordinary_batch(texts, num_threads=threads))
        line("tiktoken, special tokens as text", *seconds, of=sum(map(len, made)))
    failed, *seconds = timed(lambda: fastchat(tokenizer, few), 1)
    line(f"FastChat's method ({failed} of {len(few)} rows miscounted)", *seconds, of=few_tokens)
    line(
        "trl `_prepare_dataset`",
        *timed(lambda: trl_rows(tokenizer, plain.template.full_source(), few_rows), 1)[1:],
        of=few_tokens,
    )
    by_tokenizer, *seconds = timed(lambda: encode_all(plain, rows))
    line("ours, by the tokenizer", *seconds)
    begun = time.perf_counter()
    words = RowEncoder(tokenizer, template, interned_from=0)
    words.encode(rows[:1])
    begun = time.perf_counter() - begun
    assert words.texts.words is not None, words.texts.how()
    memory = words.texts.words

    def cold() -> list[Tokenized | Drop]:
        memory.forget()
        return encode_all(words, rows)

    interned, *seconds = timed(cold)
    line("ours, interned, cold", *seconds)
    line("ours, interned, warm", *timed(lambda: encode_all(words, rows))[1:])
    stand_ins = [words.encode_text(row.rendered)[0] for row in traced]
    line("words alone, cold", *timed(lambda: (memory.forget(), memory.encode(stand_ins)))[1:])
    line("words alone, warm", *timed(lambda: memory.encode(stand_ins))[1:])
    equal = sum(map(same, by_tokenizer, interned))
    print(
        f"\nequal rows {equal:,} of {len(rows):,}; {words.texts.how()}; {memory.words:,} words; start {begun:.2f} s",
        flush=True,
    )


def jobs(options: argparse.Namespace) -> list[tuple[str, list[Path]]]:
    """Template and files of each table."""
    if options.files:
        return [(options.template or "vicuna_v1.1", options.files)]
    if "VICUGNA_DATA" not in os.environ:
        sys.exit("tokenise needs files, or VICUGNA_DATA naming a folder with chat/*.json and instructions/*.json")
    root = Path(os.environ["VICUGNA_DATA"])
    chats, instructions = sorted(root.glob("chat/*.json")), sorted(root.glob("instructions/*.json"))
    return [(options.template or "vicuna_v1.1", chats), (options.template or "alpaca", instructions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokenizer", nargs="+", default=["sentencepiece", "qwen2"])
    parser.add_argument("--template")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for template, files in jobs(options):
            for path in options.tokenizer:
                measure(path, template, files, options.threads[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = list(texts_of(file for _, files in jobs(options) for file in files))
        paths = [train_on(name, texts, Path(folder)) if name in KINDS else name for name in options.tokenizer]
        for threads in options.threads:
            command = [sys.executable, __file__, *map(str, options.files), "--child", "--threads", str(threads)]
            command += ["--template", options.template] if options.template else []
            environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
            subprocess.run([*command, "--tokenizer", *paths], env=environment, check=True)


if __name__ == "__main__":
    main()
