"""Every shipped recipe trains two steps on the CPU, on a tiny random model of its family and a few rows of its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sft.engine.metrics import read_metrics
from sft.model.families.convert import convert
from sft.model.native import AutoModelForCausalLM
from sft.recipe import load_recipe
from sft.train import run
from tests.builders import LLAMA, OPT, byte_level, save_tiny, sentencepiece_like
from tests.model.families.folders import whole_checkpoint

RECIPES = sorted(
    path for path in Path(__file__).parents[1].glob("recipes/**/*.yaml") if "\ntrain:" in path.read_text(encoding="utf-8")
)


def alpaca_row(i: int) -> dict[str, Any]:
    return {
        "instruction": f"Count to {i}.",
        "input": "" if i % 2 else f"start at {i}",
        "output": " ".join(map(str, range(i + 1))),
    }


def chat_row(i: int) -> dict[str, Any]:
    turns = [("human", f"Say {i}"), ("gpt", f"{i}."), ("human", "Again?"), ("gpt", " ".join([str(i)] * (i + 1)))]
    return {"id": f"c{i}", "conversations": [{"from": who, "value": text} for who, text in turns]}


def lists_row(i: int) -> dict[str, Any]:
    return {"input": [f"说{i}", "再说一次"], "output": [f"{i}。", f"{i}，{i}。"]}


def seed_row(i: int) -> dict[str, Any]:
    row = alpaca_row(i)
    return {"id": f"s{i}", "instruction": row["instruction"], "instances": [{"input": row["input"], "output": row["output"]}]}


def history_row(i: int) -> dict[str, Any]:
    return {
        "prompt": f"再说 {i}",
        "response": " ".join([str(i)] * (i + 1)),
        "history": [[f"说 {i}", f"{i}。"]] if i % 2 else [],
    }


def moss_row(i: int) -> dict[str, Any]:
    turns = {f"turn_{n}": {"Human": f"<|Human|>: Say {i}<eoh>\n", "MOSS": f"<|MOSS|>: {i}, {n}.<eom>\n"} for n in (1, 2)}
    return {"conversation_id": str(i), "meta_instruction": "You are MOSS.\n", "chat": turns}


def chinese_row(i: int) -> dict[str, Any]:
    return {"instruction": f"从{i}数起。", "input": "" if i % 2 else "慢慢地数", "output": "一二三四五六七" * (1 + i % 3)}


ROWS = {
    "alpaca": alpaca_row,
    "sharegpt": chat_row,
    "parallel_lists": lists_row,
    "seed_tasks": seed_row,
    "history": history_row,
    "moss": moss_row,
}
LEGACY = ("moss", "chatglm2", "baichuan", "baichuan2")  # templates of recipes whose base `sft convert` wrote


def local_copy(path: Path, tmp_path: Path) -> list[str]:
    """What must differ from the shipped recipe where there is no network and no GPU; everything else stays."""
    recipe, _ = load_recipe(path)
    edits = [f"output.dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}", "train.max_steps=2"]
    edits += ["train.sharding=none", "train.cpu_offload=false"]  # sharding on CPU is refused, see laws/test_ranks.py
    for i, source in enumerate(recipe.data.sources):
        file = tmp_path / f"rows{i}.jsonl"
        make = chinese_row if recipe.tokenizer.extend else ROWS[source.format]
        file.write_text("".join(json.dumps(make(k), ensure_ascii=False) + "\n" for k in range(24)), encoding="utf-8")
        edits.append(f"data.sources[{i}].path={file}")
    if recipe.data.holdout:
        edits.append("data.holdout=4")
    if recipe.template.name in LEGACY:
        convert(whole_checkpoint(tmp_path / "legacy", recipe.template.name), tmp_path / "base", family=recipe.template.name)
        edits += [f"model.name_or_path={tmp_path / 'base'}", "model.revision=null"]
    elif recipe.model.name_or_path is not None:
        opt, chatml = "opt" in recipe.model.name_or_path, recipe.template.name == "chatml"
        tokenizer = byte_level() if opt or chatml else sentencepiece_like()
        config = OPT if opt else LLAMA | {"max_position_embeddings": 4096}
        save_tiny(tmp_path / "base", tokenizer, config | {"max_position_embeddings": 4096})
        edits += [f"model.name_or_path={tmp_path / 'base'}", "model.revision=null"]
    else:
        edits.append("model.scratch.vocab_size=400")
    if "float16" in (recipe.model.compute_dtype, recipe.model.dtype):
        # float16 products do not exist on CPUs (no gradient scaler either)
        edits += ["model.compute_dtype=bfloat16", *(["model.dtype=bfloat16"] if recipe.model.dtype == "float16" else [])]
    return edits


# bitsandbytes says so once on a machine without a GPU; the recipe's paged states are for one
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_two_steps(path: Path, tmp_path: Path) -> None:
    recipe, _ = load_recipe(path, local_copy(path, tmp_path))
    about = run(recipe)
    steps = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps][-1] == about["plan"]["steps"] == 2
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in steps)
    assert (tmp_path / "run" / ("model" if recipe.lora is None else "adapter") / "vicugna.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    if recipe.output.merge:
        config = json.loads((tmp_path / "run" / "merged" / "config.json").read_text())
        if recipe.model.rope_scaling is not None:
            assert config["rope_parameters"]["rope_type"] == "linear"
            assert config["rope_parameters"]["factor"] == recipe.model.rope_scaling.factor
            assert config["max_position_embeddings"] == 4096 * recipe.model.rope_scaling.factor
    if recipe.template.name in LEGACY:
        answers(tmp_path / "run" / "merged")
    if recipe.tokenizer.extend is not None:
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "merged")
        assert len(tokenizer("一二三四五六七一二三四五六七", add_special_tokens=False)["input_ids"]) < 8


def answers(folder: Path) -> None:
    """The merged model, loaded by transformers alone, goes on from its own template's prompt to its own stop ids."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "你好"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]
    stops = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (stops if isinstance(stops, list) else [stops])
