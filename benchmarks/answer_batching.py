"""Answers in padded batches (ours) against transformers' continuous batching: tokens/s, and how many greedy answers are the same ids.

``python benchmarks/answer_batching.py [--model FOLDER] [--count 80] [--max-tokens 256] [--batch 16 --batch 64]``. Without ``--model`` a
tiny random LLaMA. Random weights do not end answers, so a share of the vocabulary, drawn once, ends them: lengths then differ as those of a
real model do (``--ends 0`` leaves the model's own stops alone). ``--model`` of ``random_llama.py --size 7b`` has the shape that matters.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sft.data.conversation import Conversation, Turn
from sft.data.questions import read_questions
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.model.native import AutoConfig, AutoModelForCausalLM
from sft.run.answer import Asked
from sft.run.generate import answer_batch


def load(folder: Path | None) -> tuple[Any, Any, RowEncoder]:
    """Model, tokenizer and encoder of a folder, or of a tiny model with a tokenizer of the questions."""
    if folder is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    else:
        from sft.model.tokenizer import train_tokenizer

        texts = [turn for question in read_questions("data/questions.jsonl") for turn in question.turns]
        tokenizer = train_tokenizer(iter(texts), 2000)
        shape = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            "llama", vocab_size=len(tokenizer), initializer_range=0.2, max_position_embeddings=2048, **shape
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if torch.cuda.is_available():
        model = model.cuda()
    return model.eval(), tokenizer, RowEncoder(tokenizer, load_template("alpaca_short"), "last")


def ours(
    model: Any, tokenizer: Any, encoder: RowEncoder, asked: Sequence[Asked], batch: int
) -> tuple[dict[int, list[int]], float]:
    """Ids of the answers, stop included, and seconds."""
    made: dict[tuple[int, ...], list[int]] = {}
    stops, generate = set(encoder.stops()[0]), model.generate

    def spied(**options: Any) -> Any:
        out = generate(**options)
        width = options["input_ids"].shape[1]
        for row, mask in zip(out.tolist(), options["attention_mask"].tolist(), strict=True):
            answer = row[width:]
            end = next((i + 1 for i, token in enumerate(answer) if token in stops), len(answer))
            made[tuple(token for token, kept in zip(row, mask, strict=False) if kept)] = answer[:end]
        return out

    model.generate = spied
    begin = time.perf_counter()
    answer_batch(model, tokenizer, encoder, asked, batch)
    synchronise()
    seconds = time.perf_counter() - begin
    del model.generate
    return {i: made[tuple(encoder.prompt_ids(one.conversation))] for i, one in enumerate(asked)}, seconds


def continuous(model: Any, encoder: RowEncoder, asked: Sequence[Asked]) -> tuple[dict[int, list[int]], float]:
    """The same of ``generate_batch``, its setting up included, as a call of ours would pay for it."""
    from transformers import GenerationConfig

    stops = encoder.stops()[0]
    config = GenerationConfig(max_new_tokens=asked[0].max_tokens, do_sample=False, eos_token_id=stops, pad_token_id=stops[0])
    prompts = [encoder.prompt_ids(one.conversation) for one in asked]
    begin = time.perf_counter()
    found = list(model.generate_batch(prompts, generation_config=config).values())
    synchronise()
    seconds = time.perf_counter() - begin
    assert [list(one.prompt_ids) for one in found] == prompts, "answers are missing, or in another order"
    return {i: list(one.generated_tokens) for i, one in enumerate(found)}, seconds


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, help="folder of weights and tokenizer; default: a tiny random model")
    parser.add_argument("--questions", type=Path, default=Path("data/questions.jsonl"))
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, action="append", help="of ours; repeatable; default: 16")
    parser.add_argument("--ends", type=float, default=0.01, help="share of the vocabulary that ends an answer")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each; the fastest counts")
    options = parser.parse_args()
    model, tokenizer, encoder = load(options.model)
    if options.ends:
        drawn = random.Random(0).sample(range(len(tokenizer)), max(1, round(options.ends * len(tokenizer))))
        encoder.known_stops = (sorted(drawn), [])
    texts = [question.turns[0] for question in read_questions(options.questions)]
    texts = [texts[i % len(texts)] for i in range(options.count)]
    texts = [text if i < len(set(texts)) else f"{text} ({i})" for i, text in enumerate(texts)]
    asked = [
        Asked(Conversation(f"q{i}", (Turn("user", text),), "bench"), 0.0, options.max_tokens, i) for i, text in enumerate(texts)
    ]
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(json.dumps({"device": device, "torch": torch.__version__, "questions": len(asked), "max_tokens": options.max_tokens}))
    runs = [
        (f"padded, {size} at once", lambda size=size: ours(model, tokenizer, encoder, asked, size))
        for size in options.batch or [16]
    ]
    runs.append(("continuous", lambda: continuous(model, encoder, asked)))
    first: dict[int, list[int]] | None = None
    for name, run in runs:
        tries = [run() for _ in range(options.repeat)]
        answers, seconds = min(tries, key=lambda found: found[1])
        first = first or answers
        tokens = sum(map(len, answers.values()))
        same = sum(answers[i] == first[i] for i in answers)
        print(
            f"{name:22} {tokens:8,} tokens {seconds:8.2f} s {tokens / seconds:9,.0f} tokens/s   same ids as the first: {same}/{len(answers)}"
        )


if __name__ == "__main__":
    main()
