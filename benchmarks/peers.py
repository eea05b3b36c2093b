"""Tokens per second and memory of other trainers on the rows that ours trains, on a random LLaMA-7B. One GPU, a process each.

``python benchmarks/peers.py --data ROWS [--base MODEL] [--peers transformers trl peft ...] [--steps 6] [--batch 4] [--set KEY=VALUE]``.

======================  ==========================================================================================================
``transformers``        Trainer as in the published Alpaca code: float32 weights and states, bfloat16 autocast, rows padded to the longest
                        of a batch, checkpointing off
``trl``                 SFTTrainer with its defaults on bfloat16 weights: padded batches, checkpointing on
``trl_packing``         the same with ``packing`` (rows cut and chained to --length); documents are kept apart only with flash-attn
``peft``                adapters of rank 16 on all linear layers of a bfloat16 base, Trainer, checkpointing on
``unsloth``             its LoRA of rank 16 on all linear layers, its checkpointing; ``unsloth_4bit``: on its nf4 base
======================  ==========================================================================================================

All get the ids and labels that ``sft train`` makes, so tokens are the same; padding is not counted. A step is --examples rows in micro-batches
of --batch. Adapters need --base (of random_llama.py). The first third of the steps is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from alpaca_7b import SEVEN_B

PEERS = ("transformers", "trl", "trl_packing", "peft", "unsloth", "unsloth_4bit")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows_of(options: argparse.Namespace) -> list[dict[str, list[int]]]:
    """``input_ids`` and ``labels`` of every row, as ``sft train`` prepares them."""
    from sft.data.dataset import prepare
    from sft.data.tokenize import RowEncoder
    from sft.model.tokenizer import tokenizer_for
    from sft.recipe import load_recipe

    scratch = ["model.name_or_path=null", f"model.scratch={json.dumps({'config': SEVEN_B, 'vocab_size': 32000})}"]
    sets = [
        "model.revision=null",
        *(scratch if options.base is None else [f"model.name_or_path={options.base}"]),
        f"data.sources=[{{path: {json.dumps(options.data)}, format: auto}}]",
        f"data.cache_dir={options.cache}",
        "data.max_drop_share=0.05",
        "train.sharding=none",
        *options.set,
    ]
    recipe, _ = load_recipe(options.recipe, sets)
    tokenizer, template, _ = tokenizer_for(recipe)
    store = prepare(recipe, tokenizer, RowEncoder(tokenizer, template, recipe.template.train_on)).train
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for index in order:
        ids, mask = store.row(index)
        labels = [int(i) if learnt else -100 for i, learnt in zip(ids, mask, strict=True)]
        found.append({"input_ids": [int(i) for i in ids], "labels": labels})
    return found


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch padded to its longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids, labels, mask = [], [], []
    for row in rows:
        rest = longest - len(row["input_ids"])
        ids.append(row["input_ids"] + [0] * rest)
        labels.append(row["labels"] + [-100] * rest)
        mask.append([1] * len(row["input_ids"]) + [0] * rest)
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}


class Clock:
    """Tokens and seconds of every step, without holding the GPU up."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.steps: list[tuple[float, Any]] = []

    def install(self, trainer: Any) -> None:
        """Count in a trainer that is about to run."""
        from transformers import TrainerCallback

        clock, compute = self, trainer.compute_loss

        def counted(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            clock.tokens.append(inputs["input_ids"].numel() if mask is None else mask.sum())
            return compute(model, inputs, *args, **kwargs)

        class Ended(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                torch.cuda.synchronize()
                clock.steps.append((time.perf_counter(), sum(int(t) for t in clock.tokens)))
                clock.tokens.clear()

        trainer.compute_loss = counted
        trainer.add_callback(Ended())

    def rate(self) -> float:
        """Tokens per second, median of the last two thirds of the steps."""
        spans = [(after[0] - before[0], after[1]) for before, after in zip(self.steps[:-1], self.steps[1:], strict=True)]
        return statistics.median(tokens / seconds for seconds, tokens in spans[len(spans) // 3 :])


def arguments(options: argparse.Namespace, kind: Any, **more: Any) -> Any:
    """Arguments of a trainer that all peers share."""
    return kind(
        output_dir=options.folder,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.examples // options.batch,
        max_steps=options.steps,
        learning_rate=2e-5,
        bf16=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        **more,
    )


def model_of(options: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The random 7B, from its folder or made on the GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if options.base is not None:
        return AutoModelForCausalLM.from_pretrained(options.base, dtype=dtype, device_map="cuda", attn_implementation="sdpa")
    config = AutoConfig.for_model("llama", vocab_size=32000, **{k: v for k, v in SEVEN_B.items() if k != "model_type"})
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def by_transformers(options: argparse.Namespace, rows: list[dict[str, list[int]]]) -> Any:
    """Trainer of transformers, full or with adapters of peft."""
    from transformers import Trainer, TrainingArguments

    adapters = options.peers[0] == "peft"
    model = model_of(options, torch.bfloat16 if adapters else torch.float32)
    model.config.use_cache = False
    if adapters:
        from peft import LoraConfig, get_peft_model

        model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    names = TrainingArguments.__dataclass_fields__
    knob = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    args = arguments(options, TrainingArguments, tf32=True, optim="adamw_torch", **{knob: adapters})
    return Trainer(model=model, args=args, train_dataset=rows, data_collator=pad)


def by_trl(options: argparse.Namespace, rows: list[dict[str, list[int]]]) -> Any:
    """SFTTrainer of trl on rows that are ids already."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    packing = options.peers[0] == "trl_packing"
    args = arguments(options, SFTConfig, max_length=options.length, packing=packing)
    args.remove_unused_columns = True
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    return SFTTrainer(
        model=model_of(options, torch.bfloat16), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def by_unsloth(options: argparse.Namespace, rows: list[dict[str, list[int]]]) -> Any:
    """unsloth's model under transformers' Trainer, which it patches."""
    from unsloth import FastLanguageModel  # before transformers, as it asks for

    model, _ = FastLanguageModel.from_pretrained(
        options.base, max_seq_length=options.length, dtype=torch.bfloat16, load_in_4bit=options.peers[0] == "unsloth_4bit"
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, use_gradient_checkpointing="unsloth"
    )
    from transformers import Trainer, TrainingArguments

    return Trainer(model=model, args=arguments(options, TrainingArguments), train_dataset=rows, data_collator=pad)


def child(options: argparse.Namespace) -> None:
    """One peer: train, and print its figures as JSON."""
    torch.manual_seed(0)
    makers = {"transformers": by_transformers, "peft": by_transformers, "trl": by_trl, "trl_packing": by_trl}
    make = makers.get(options.peers[0], by_unsloth)
    if make is by_unsloth:
        import unsloth  # noqa: F401  # before transformers
    trainer, clock = make(options, rows_of(options)), Clock()
    clock.install(trainer)
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30
    print("FIGURES " + json.dumps({"rate": clock.rate(), "gib": peak, "loss": trainer.state.log_history[0]["loss"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of any format")
    parser.add_argument("--base", help="a model folder (of random_llama.py); adapters and trl need one")
    parser.add_argument("--recipe", default="recipes/alpaca.yaml", help="says how rows are made")
    parser.add_argument("--peers", nargs="+", default=["transformers", "trl", "peft"], choices=PEERS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--examples", type=int, default=128, help="rows of a step")
    parser.add_argument("--batch", type=int, default=4, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/vicugna-bench-cache")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("peers.py needs a CUDA GPU")
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-") as folder:
        options.folder = folder
        if options.child:
            child(options)
            return
    print(f"{torch.cuda.get_device_name()}\n| peer | tokens/s | peak GiB | first loss |\n|---|---|---|---|")
    mine = [str(Path(__file__)), *sys.argv[1:]]
    at = mine.index("--peers") if "--peers" in mine else None
    rest = mine if at is None else mine[:at] + mine[at + 1 + len(options.peers) :]
    for peer in options.peers:
        command = [sys.executable, *rest, "--child", "--peers", peer]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
        if not lines:
            print(f"| {peer} | failed: {' '.join((done.stderr or done.stdout).split())[-400:]} |", flush=True)
            continue
        found = json.loads(lines[0].removeprefix("FIGURES "))
        print(f"| {peer} | {found['rate']:,.0f} | {found['gib']:.1f} | {found['loss']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
