"""Every shipped recipe loads and says what it reproduces; where a value came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sft.recipe import Recipe, load_recipe, resolved
from tests.recipe_text import SMALL

FOLDER = Path(__file__).parent.parent / "recipes"
# A recipe that does not train is the generator's (tests/selfinstruct/test_recipes.py) or a curation (tests/curate/test_recipes.py).
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if "\ntrain:" in path.read_text(encoding="utf-8"))
PUBLISHED = [path for path in RECIPES if path.stem not in ("quickstart", "smollm2_lora")]

each = pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
each_published = pytest.mark.parametrize("path", PUBLISHED, ids=[path.stem for path in PUBLISHED])


def shipped(name: str, *overrides: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml", overrides)[0]


def header(path: Path) -> str:
    """The comment block above the first key."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:first])


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_promised_recipes_are_there() -> None:
    assert len(RECIPES) >= 13
    promised = {"alpaca", "alpaca_13b", "alpaca_opt", "alpaca_lora", "vicuna", "vicuna_13b", "vicuna_lora", "vicuna_16k"}
    promised |= {"chinese_lora", "chinese_qlora", "chinese_chat_lora", "smollm2_lora", "quickstart"}
    assert promised <= {path.stem for path in RECIPES}


@each
def test_a_recipe_loads_and_writes_to_its_own_folder(path: Path) -> None:
    recipe, _ = load_recipe(path)
    assert recipe.output.dir == f"runs/{path.stem}"


@each
def test_a_recipe_is_short_and_flat(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert len(told) <= 40
    assert max(map(len, lines)) <= 128
    assert not any(line != line.rstrip() or "\t" in line for line in lines)


@each
def test_the_header_says_what_where_and_how_it_differs(path: Path) -> None:
    text = header(path)
    for word in ("# Reproduces: ", "# Hardware: ", "# Deviations:"):
        assert text.count(word) == 1, word
    assert "not yet measured here" in text
    for line in re.findall(r"# Time:.*", text):
        assert "published: " in line, "a time without its source is a guess"


@each_published
def test_deviations_are_listed_with_the_library_translations(path: Path) -> None:
    deviations = header(path).split("# Deviations:\n", 1)[1]
    assert deviations.count("#   - ") >= 5
    assert "#   - library: " in deviations
    assert "#   - loss: " in deviations


@each
def test_nothing_that_a_recipe_states_is_left_to_a_default(path: Path) -> None:
    recipe, document = load_recipe(path)
    stated = {
        key.split("[")[0] for key, _, origin in resolved(recipe, document) if origin != "default"
    }  # a list counts as its key
    train = "examples_per_step tokens_per_device learning_rate schedule optimizer weight_decay beta1 beta2 epsilon"
    wanted = {f"train.{key}" for key in f"{train} epochs max_grad_norm seed".split()}
    wanted |= {"model.dtype", "template.name", "template.train_on", "data.max_length", "data.overflow", "data.holdout"}
    if recipe.lora is not None:
        wanted |= {f"lora.{key}" for key in ("rank", "alpha", "dropout", "targets")}
    if recipe.model.name_or_path is not None:
        wanted |= {"model.name_or_path", "model.revision"}
    if recipe.model.quantization != "none":
        wanted |= {"model.compute_dtype"}
    if recipe.model.quantization in ("nf4", "fp4"):
        wanted |= {"model.double_quantization"}
    assert wanted <= stated
    assert ("train.warmup_ratio" in stated) != ("train.warmup_steps" in stated)


@each
def test_a_hub_model_is_pinned_or_says_so(path: Path) -> None:
    recipe, _ = load_recipe(path)
    if recipe.model.name_or_path is not None:
        pinned = re.fullmatch(r"[0-9a-f]{40}", recipe.model.revision or "")
        assert pinned or "pin a commit for a repeatable run" in path.read_text(encoding="utf-8")


@each
def test_the_source_of_the_data_is_told(path: Path) -> None:
    assert re.search(r"^  sources:  # \S", path.read_text(encoding="utf-8"), re.MULTILINE)


@each
def test_full_tuning_keeps_float32_weights(path: Path) -> None:
    recipe, _ = load_recipe(path)
    frozen = recipe.lora is not None and recipe.model.quantization == "none"  # as its products are; adapters are float32 anyway
    assert recipe.model.dtype in ({"float32", recipe.model.compute_dtype} if frozen else {"float32"})


# --- published numbers -----------------------------------------------------------------------------------------------

LLAMA, LLAMA_13B = "huggyllama/llama-7b", "huggyllama/llama-13b"
Q_V = ("q_proj", "v_proj")
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("name", "base", "length", "batch", "rate", "epochs", "schedule", "warmup"),
    [
        ("alpaca", LLAMA, 512, 128, 2e-5, 3, "cosine", 0.03),
        ("alpaca_13b", LLAMA_13B, 512, 128, 1e-5, 5, "cosine", 0.03),
        ("alpaca_opt", "facebook/opt-6.7b", 512, 128, 2e-5, 3, "cosine", 0.03),
        ("alpaca_lora", LLAMA, 512, 128, 3e-4, 10, "linear", 100),
        ("vicuna", LLAMA, 2048, 128, 2e-5, 3, "cosine", 0.03),
        ("vicuna_13b", LLAMA_13B, 2048, 128, 2e-5, 3, "cosine", 0.04),
        ("vicuna_lora", LLAMA, 2048, 8, 2e-5, 3, "cosine", 0.03),
        ("vicuna_16k", "meta-llama/Llama-2-7b-hf", 16384, 128, 2e-5, 3, "cosine", 0.03),
        ("chinese_lora", LLAMA, 256, 128, 3e-4, 3, "linear", 100),
        ("chinese_qlora", LLAMA, 256, 128, 3e-4, 3, "linear", 100),
        ("chinese_chat_lora", LLAMA, 2048, 128, 3e-4, 3, "linear", 0.05),
    ],
)
def test_training_numbers(
    name: str, base: str, length: int, batch: int, rate: float, epochs: int, schedule: str, warmup: float
) -> None:
    recipe = shipped(name)
    train = recipe.train
    found = (recipe.model.name_or_path, recipe.data.max_length, train.examples_per_step, train.learning_rate)
    assert found == (base, length, batch, rate)
    assert (train.epochs, train.schedule) == (epochs, schedule)
    assert (train.warmup_steps if isinstance(warmup, int) else train.warmup_ratio) == warmup
    assert (train.weight_decay, train.beta1, train.beta2, train.epsilon, train.max_grad_norm) == (0.0, 0.9, 0.999, 1e-8, 1.0)
    assert (train.max_steps, train.batching, train.neftune_alpha, train.seed) == (None, "flat", None, 42)


@pytest.mark.parametrize(
    ("name", "rank", "alpha", "dropout", "targets", "quantization"),
    [
        ("alpaca_lora", 16, 16, 0.05, ("q_proj", "k_proj", "v_proj", "o_proj"), "int8"),
        ("vicuna_lora", 8, 16, 0.05, Q_V, "nf4"),
        ("chinese_lora", 8, 16, 0.05, Q_V, "int8"),
        ("chinese_qlora", 8, 16, 0.05, Q_V, "nf4"),
        ("chinese_chat_lora", 8, 16, 0.05, tuple(SEVEN), "int8"),
    ],
)
def test_adapter_numbers(
    name: str, rank: int, alpha: float, dropout: float, targets: tuple[str, ...], quantization: str
) -> None:
    recipe = shipped(name)
    lora = recipe.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout) == (rank, alpha, dropout)
    assert len(lora.targets) == len(targets)
    assert set(lora.targets) == set(targets)
    assert (lora.rslora, lora.dora) == (False, False)
    assert recipe.model.quantization == quantization


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("alpaca", {"template.name": "alpaca", "data.overflow": "truncate", "train.sharding": "fsdp", "train.tf32": True}),
        ("alpaca", {"model.compute_dtype": "bfloat16", "template.train_on": "assistant", "lora": None, "data.holdout": 0}),
        ("alpaca", {"output.save_every": 2000, "output.keep_checkpoints": 1}),
        ("alpaca_13b", {"template.name": "alpaca", "train.sharding": "fsdp", "lora": None}),
        ("alpaca_opt", {"template.name": "alpaca", "train.sharding": "fsdp", "lora": None}),
        ("alpaca_lora", {"template.name": "alpaca_newline", "template.train_on": "assistant", "data.holdout": 2000}),
        ("alpaca_lora", {"output.eval_every": 200, "output.save_every": 200, "output.keep_checkpoints": 3}),
        ("vicuna", {"template.name": "vicuna_v1.1", "data.overflow": "split", "train.gradient_checkpointing": True}),
        ("vicuna", {"train.sharding": "fsdp", "output.save_every": 1200, "output.keep_checkpoints": 10}),
        ("vicuna_13b", {"train.cpu_offload": True, "output.save_every": 1500, "output.keep_checkpoints": 8}),
        ("vicuna_lora", {"template.name": "vicuna_v1.1", "model.double_quantization": True, "train.sharding": "none"}),
        ("vicuna_16k", {"model.rope_scaling.type": "linear", "model.rope_scaling.factor": 4.0, "data.overflow": "split"}),
        ("chinese_lora", {"template.name": "alpaca_newline", "data.holdout": 200, "train.tokens_per_device": 1024}),
        ("chinese_lora", {"train.gradient_checkpointing": True, "model.compute_dtype": "float16", "train.optimizer": "adamw"}),
        ("chinese_qlora", {"train.optimizer": "paged_adamw_8bit", "model.double_quantization": True}),
        ("chinese_chat_lora", {"template.name": "chinese_vicuna_chat", "template.train_on": "last", "data.holdout": 0}),
        (
            "moss_sft",
            {"train.learning_rate": 1.5e-5, "train.epochs": 2, "train.examples_per_step": 128, "data.max_length": 2048},
        ),
        (
            "moss_sft",
            {"train.schedule": "cosine", "train.warmup_ratio": 0.05, "train.weight_decay": 0.1, "train.max_grad_norm": 1.0},
        ),
        ("chatglm2_full", {"train.learning_rate": 1e-4, "train.max_steps": 5000, "train.examples_per_step": 16, "lora": None}),
        ("chatglm2_lora", {"train.max_steps": 3000, "train.examples_per_step": 16, "model.quantization": "nf4"}),
        ("baichuan_lora", {"train.learning_rate": 5e-5, "train.epochs": 2, "train.examples_per_step": 32, "lora.rank": 8}),
        (
            "baichuan_lora",
            {"train.schedule": "cosine", "train.max_grad_norm": 0.5, "lora.targets": ("q_proj", "k_proj", "v_proj")},
        ),
        ("baichuan2_full", {"train.learning_rate": 2e-5, "train.epochs": 4, "train.schedule": "constant", "train.beta2": 0.98}),
        ("baichuan2_full", {"train.weight_decay": 1e-4, "data.max_length": 512, "train.sharding": "fsdp", "lora": None}),
        ("baichuan2_lora", {"lora.rank": 1, "lora.alpha": 32.0, "lora.dropout": 0.1, "train.weight_decay": 1e-4}),
        ("openbuddy_lora", {"template.name": "openbuddy", "template.train_on": "last", "model.quantization": "nf4"}),
        ("smollm2_lora", {"model.name_or_path": "HuggingFaceTB/SmolLM2-135M", "template.name": "chatml"}),
        ("quickstart", {"model.name_or_path": None, "model.scratch.vocab_size": 2048, "template.name": "alpaca_short"}),
        ("quickstart", {"train.epochs": 5, "train.examples_per_step": 4, "train.learning_rate": 3e-3, "data.holdout": 85}),
        ("quickstart", {"output.eval_every": 200, "output.save_every": 400, "output.merge": True, "output.sample_tokens": 48}),
    ],
)
def test_other_published_choices(name: str, wanted: dict[str, Any]) -> None:
    recipe = shipped(name)
    assert {key: value_of(recipe, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("alpaca", "alpaca"),
        ("vicuna", "sharegpt"),
        ("chinese_chat_lora", "parallel_lists"),
        ("smollm2_lora", "seed_tasks"),
        ("quickstart", "seed_tasks seed_tasks alpaca"),
    ],
)
def test_row_formats(name: str, form: str) -> None:
    assert " ".join(source.format for source in shipped(name).data.sources) == form


def test_the_quickstart_asks_new_questions_in_two_languages() -> None:
    recipe = shipped("quickstart")
    assert [source.label for source in recipe.data.sources] == ["en", "zh", "generated"]
    assert [prompt.isascii() for prompt in recipe.output.sample_prompts] == [True, True, False]
    for source in recipe.data.sources:
        path = FOLDER.parent / str(source.path)
        if path.exists():
            assert not [p for p in recipe.output.sample_prompts if p in path.read_text(encoding="utf-8")]


# --- origins ---------------------------------------------------------------------------------------------------------


def test_resolved_tells_where_each_value_came_from(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL + "lora:\n  rank: 8\n  alpha: 16\n  targets:\n    - q_proj\n    - v_proj\n")
    overrides = ["train.seed=7", "data.sources[0].path=x", "plan={gpus: 2}", "output.sample_prompts=[a, b]"]
    recipe, document = load_recipe(path, overrides)
    rows = {key: (value, origin) for key, value, origin in resolved(recipe, document)}
    assert len(rows) == len(resolved(recipe, document))
    assert rows["model.name_or_path"] == ("m", f"{path}:1")
    assert rows["train.learning_rate"] == (2e-5, f"{path}:4")
    assert rows["lora.targets[1]"] == ("v_proj", f"{path}:11")
    assert rows["lora.dropout"] == (0.0, "default")
    assert rows["train.seed"] == (7, "--set")
    assert rows["train.beta1"] == (0.9, "default")
    assert rows["data.sources[0].path"] == ("x", "--set")
    assert rows["data.sources[0].split"] == ("train", "default")
    assert rows["plan.gpus"] == (2, "--set")
    assert rows["plan.pue"] == (1.1, "default")
    assert rows["output.sample_prompts[1]"] == ("b", "--set")
    assert rows["output.report_to"] == ([], "default")
    assert {origin for _, origin in rows.values()} <= {"--set", "default", *(f"{path}:{line}" for line in range(1, 12))}


@each
def test_every_shipped_value_has_an_origin(path: Path) -> None:
    recipe, document = load_recipe(path, ["train.seed=99"])
    rows = resolved(recipe, document)
    assert ("train.seed", 99, "--set") in rows
    assert all(origin in ("default", "--set") or re.fullmatch(rf"{re.escape(str(path))}:\d+", origin) for *_, origin in rows)
