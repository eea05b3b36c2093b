"""Every shipped recipe loads and says what it reproduces; the refusals that span sections; where a value came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sft.errors import RecipeError
from sft.recipe import Recipe, load_recipe, resolved

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
    assert recipe.model.dtype == "float32"


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


# --- refusals --------------------------------------------------------------------------------------------------------

SMALL = """\
model: {name_or_path: m, dtype: float32}
template: {name: alpaca}
data: {sources: [{path: rows.jsonl}], max_length: 64}
train: {epochs: 1, examples_per_step: 2, tokens_per_device: 64, learning_rate: 2e-5}
output: {dir: runs/x}
"""
LORA = ("lora.rank=8", "lora.alpha=16")
NO_MODEL = ("model.name_or_path=null", "model.scratch.config={model_type: llama}")


def refusals(tmp_path: Path, *overrides: str) -> list[str]:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [f"{fault.key}: {fault.message}" for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (
            ["data.max_length=65"],
            "train.tokens_per_device: 64 tokens cannot hold one row of data.max_length = 65; "
            "raise tokens_per_device or lower max_length",
        ),
        (
            ["train.examples_per_step=null", "train.tokens_per_step=63"],
            "train.tokens_per_step: a step must hold at least one row of data.max_length tokens; raise it",
        ),
        (
            ["model.quantization=int8"],
            "model.quantization: a quantised base can only be tuned with adapters: add a 'lora:' section, or set none",
        ),
        (
            ["model.quantization=nf4", "train.sharding=fsdp", *LORA],
            "train.sharding: a quantised base cannot be sharded here; set sharding: none or quantization: none",
        ),
        (["memory.budget=2GB"], "memory.budget: must be GiB above 0, written as 15GiB or 7.5GiB, got 2GB"),
        (["memory.budget=2"], "memory.budget: must be GiB above 0, written as 15GiB or 7.5GiB, got 2"),
        (["train.gradient_checkpointing=0"], "train.gradient_checkpointing: must be at least 1, or false, got 0"),
        (["train.tokens_per_device=4"], "train.tokens_per_device: must be at least 8, or auto, got 4"),
        (
            ["train.optimizer=adamw_stochastic", "model.dtype=bfloat16", *LORA],
            "train.optimizer: adamw_stochastic is for full tuning; adapters are float32: set adamw or adamw_8bit",
        ),
        (
            ["model.dtype=bfloat16", "model.compute_dtype=float16"],
            "model.compute_dtype: float16 does not hold what bfloat16 weights may be; set compute_dtype: bfloat16, or dtype: float32",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", "model.quantization=float8", *LORA],
            "train.float8: float8 is for full tuning; a frozen base has model.quantization: float8; set float8: false",
        ),
        (
            ["train.optimizer=adamw_8bit_stochastic"],
            "train.optimizer: adamw_8bit_stochastic is for full tuning of bfloat16 weights; set model.dtype: bfloat16, or adamw",
        ),
        (
            ["train.optimizer=adamw_8bit", "train.sharding=fsdp"],
            "train.optimizer: 8-bit states were not shown to be right over shards (FSDP2); "
            "set adamw or adamw_stochastic, or sharding: none",
        ),
        (
            ["train.sharding=deepspeed", *LORA],
            "train.sharding: deepspeed is for full tuning here; set sharding: none or fsdp for adapters",
        ),
        (
            ["train.sharding=deepspeed", "model.dtype=bfloat16"],
            "model.dtype: deepspeed moves float32 weights here; "
            "set dtype: float32 with compute_dtype: bfloat16, or sharding: fsdp",
        ),
        (
            ["train.sharding=deepspeed", "train.optimizer=sgd"],
            "train.optimizer: sgd is not for sharding: deepspeed; set adamw, or sharding: fsdp",
        ),
        (
            ["train.sharding=deepspeed", "train.compile=on"],
            "train.compile: ZeRO-3 fetches weights inside the layers; set compile: off, or sharding: fsdp",
        ),
        (
            ["train.sharding=deepspeed", "output.save_every=5"],
            "output.save_every: DeepSpeed's checkpoints are pickles, which are neither written nor read here; "
            "set save_every: null, or sharding: fsdp",
        ),
        (
            ["model.attention=eager"],
            "model.attention: eager attention cannot separate the documents of a flat row; set train.batching: padded",
        ),
        (
            ["model.attention=varlen", "train.batching=padded", "model.compute_dtype=bfloat16"],
            "model.attention: varlen is for flat rows; set attention: sdpa or train.batching: flat",
        ),
        (
            ["model.attention=flash", "train.batching=padded", "model.compute_dtype=bfloat16"],
            "model.attention: flash is for flat rows; set attention: sdpa or train.batching: flat",
        ),
        (
            ["model.attention=flash"],
            "model.attention: flash kernels need bfloat16 or float16; set model.compute_dtype",
        ),
        (
            ["model.attention=varlen", "model.dtype=bfloat16", "model.compute_dtype=float32"],
            "model.attention: varlen kernels need bfloat16 or float16; set model.compute_dtype",
        ),
        (
            ["model.dtype=float16"],
            "model.dtype: full tuning of float16 weights overflows; use float32 with compute_dtype: bfloat16",
        ),
        (
            ["model.quantization=int8", "lora.dora=true", *LORA],
            "lora.dora: DoRA needs the base's weights, which peft cannot read from int8; use nf4, or set dora: false",
        ),
        (
            ["model.quantization=float8", "model.dtype=bfloat16", "lora.dora=true", *LORA],
            "lora.dora: DoRA needs the base's weights, which peft cannot read from float8; use nf4, or set dora: false",
        ),
        (
            ["model.quantization=float8", *LORA],
            "model.quantization: products that are not in float8 must be in bfloat16; set model.compute_dtype: bfloat16",
        ),
        (
            ["train.float8=true"],
            "train.float8: products that are not in float8 must be in bfloat16; set model.compute_dtype: bfloat16",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", *LORA],
            "train.float8: float8 is for full tuning; a frozen base has model.quantization: float8; "
            "set that and float8: false, or remove 'lora:'",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", "train.compile=off"],
            "train.float8: float8 casts only pay in compiled layers over flat rows; set compile: on and batching: flat",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", "train.sharding=fsdp"],
            "train.float8: float8 products under FSDP were never measured; set train.sharding: none, or float8: false",
        ),
        (
            [*NO_MODEL, *LORA],
            "lora: adapters on random weights learn nothing useful; remove 'lora:' or load a trained model",
        ),
        # within one section
        (
            ["model.scratch.config={model_type: llama}"],
            "model.name_or_path: give exactly one of model.name_or_path and model.scratch",
        ),
        (["model.name_or_path=null"], "model.name_or_path: give exactly one of model.name_or_path and model.scratch"),
        (
            [*NO_MODEL, "model.scratch.config.vocab_size=400"],
            "model.scratch: vocab_size belongs in model.scratch.vocab_size, not in its config",
        ),
        (
            ["model.name_or_path=null", "model.scratch.config={hidden_size: 8}"],
            "model.scratch: scratch.config needs model_type, such as 'model_type: llama'",
        ),
        (["data.sources[0].hub=x"], "data.sources[0].path: give exactly one of path and hub"),
        (["data.holdout=1.5"], "data.holdout: must be a number of rows, or a share of at least 0 and below 1"),
        (["data.holdout=-1"], "data.holdout: must be a number of rows, or a share of at least 0 and below 1"),
        (
            ["data.holdout=2", "data.holdout_sources=[{path: x}]"],
            "data.holdout: give data.holdout or data.holdout_sources, not both",
        ),
        (["lora.targets=[]", *LORA], "lora.targets: name at least one module, or write all_linear"),
        (["train.epochs=null"], "train.epochs: give train.epochs or train.max_steps"),
        (
            ["train.tokens_per_step=64"],
            "train.examples_per_step: give exactly one of examples_per_step and tokens_per_step",
        ),
        (
            ["train.warmup_ratio=0.1", "train.warmup_steps=1"],
            "train.warmup_ratio: give warmup_ratio or warmup_steps, not both",
        ),
        (["train.cpu_offload=true"], "train.cpu_offload: cpu_offload needs sharding: fsdp"),
    ],
)
def test_refusals_say_what_to_change(tmp_path: Path, overrides: list[str], refusal: str) -> None:
    assert refusals(tmp_path, *overrides) == [refusal]


def test_several_refusals_come_together(tmp_path: Path) -> None:
    found = refusals(tmp_path, "model.quantization=int8", "train.sharding=fsdp", "model.attention=eager", "data.max_length=65")
    assert [line.split(":")[0] for line in sorted(found)] == [
        "model.attention",
        "model.quantization",
        "train.sharding",
        "train.tokens_per_device",
    ]


def test_a_refusal_points_at_the_line_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("max_length: 64", "max_length: 65"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [fault.where for fault in caught.value.faults] == [f"{path}:4"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.attention=eager", "train.batching=padded"],
        ["model.attention=flash", "model.compute_dtype=bfloat16"],
        ["model.dtype=float16", *LORA],
        ["model.quantization=nf4", "lora.dora=true", *LORA],
        ["model.quantization=float8", "model.dtype=bfloat16", *LORA],
        ["train.float8=true", "model.compute_dtype=bfloat16"],
        ["train.cpu_offload=true", "train.sharding=fsdp"],
        ["train.optimizer=adamw_stochastic", "model.dtype=bfloat16", "train.sharding=fsdp"],
        ["train.sharding=deepspeed", "model.compute_dtype=bfloat16"],
        ["train.epochs=null", "train.max_steps=5"],
        ["train.examples_per_step=null", "train.tokens_per_step=64"],
        NO_MODEL,
    ],
)
def test_what_is_not_refused(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    load_recipe(path, overrides)


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
