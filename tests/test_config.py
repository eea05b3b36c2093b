"""The builder: from a read recipe to its sections, and how a fault is told."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from sft.recipe import load_recipe
from tests.recipe_text import RECIPE, edited, faults, load, write


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_all_faults_at_once_in_file_order() -> None:
    text = edited(
        ("  name_or_path: m\n", "  name_or_path: 3\n  dtype: bfloat\n"),
        ("  name: alpaca\n", ""),
        ("template:\n", "template: {}\n"),
        ("    - path: rows.jsonl\n", "    - path: rows.jsonl\n      formt: alpaca\n"),
        ("  max_length: 64\n", "  max_length: 4\n"),
        ("  learning_rate: 2e-5\n", "  learing_rate: 2e-5\n  seed: .nan\n"),
        ("  dir: runs/x\n", "  dir: runs/x\n  dir: runs/y\n"),
    )
    assert faults(text, "train.epochs=two") == [
        '--set: train.epochs: must be a number, got "two"',
        "bad.yaml:2: model.name_or_path: must be text, got 3",
        "bad.yaml:3: model.dtype: must be 'float32', 'bfloat16' or 'float16', got \"bfloat\"; did you mean 'bfloat16'?",
        "bad.yaml:4: template.name: is required",
        "bad.yaml:8: data.sources[0].formt: unknown key; did you mean 'data.sources[0].format'?",
        "bad.yaml:9: data.max_length: input should be greater than or equal to 8, got 4",
        "bad.yaml:10: train.learning_rate: is required",
        "bad.yaml:14: train.learing_rate: unknown key; did you mean 'train.learning_rate'?",
        "bad.yaml:15: train.seed: .nan is not a usable number; write a finite one",
        "bad.yaml:18: output.dir: this key was already given on line 17; keep one",
    ]


def test_a_missing_section() -> None:
    assert faults(edited(("output:\n  dir: runs/x\n", ""))) == ["bad.yaml:1: output: is required"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learing_rate", "train.learning_rate"),
        ("train.warmup_step", "train.warmup_steps"),
        ("data.max_lenght", "data.max_length"),
        ("model.revison", "model.revision"),
        ("learning_rate", "train.learning_rate"),
        ("max_length", "data.max_length"),
        ("model.learning_rate", "train.learning_rate"),
        ("train.max_length", "data.max_length"),
        ("train.dropout", "lora.dropout"),
        ("outptu", "output"),
        ("learing_rate", "train.learning_rate"),
    ],
)
def test_did_you_mean(key: str, meant: str) -> None:
    assert faults(RECIPE, f"{key}=1") == [f"--set: {key}: unknown key; did you mean '{meant}'?"]


@pytest.mark.parametrize("key", ["train.lr", "zzzz", "output.qqqqqq"])
def test_no_meaning_is_made_up(key: str) -> None:
    assert faults(RECIPE, f"{key}=1") == [f"--set: {key}: unknown key"]


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("train.schedule", "cosin", "must be 'cosine', 'linear' or 'constant', got \"cosin\"; did you mean 'cosine'?"),
        (
            "template.train_on",
            "assistent",
            "must be 'assistant', 'last' or 'all', got \"assistent\"; did you mean 'assistant'?",
        ),
        ("data.overflow", "xyz", "must be 'drop', 'truncate', 'split' or 'error', got \"xyz\""),
        ("train.sharding", "true", "must be 'none', 'fsdp' or 'deepspeed', got true"),
    ],
)
def test_literals_suggest(key: str, given: str, message: str) -> None:
    assert faults(RECIPE, f"{key}={given}") == [f"--set: {key}: {message}"]


def test_one_bad_source_is_one_fault() -> None:
    assert faults(edited(("- path: rows.jsonl", "- {}"))) == [
        "bad.yaml:7: data.sources[0].path: give exactly one of path and hub"
    ]
    assert faults(edited(("\n    - path: rows.jsonl", " []"))) == [
        "bad.yaml:6: data.sources: tuple should have at least 1 item after validation, not 0, got []"
    ]


def test_long_values_are_shortened() -> None:
    (fault,) = faults(RECIPE, f"train.seed={'x' * 500}")
    assert fault == f'--set: train.seed: must be a whole number, got "{"x" * 56}...'


# --- strictness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("train.seed", '"3"', 'must be a whole number, got "3"'),
        ("train.seed", "1.5", "must be a whole number, got 1.5"),
        ("train.seed", "true", "must be a whole number, got true"),
        ("train.seed", "null", "must be a whole number, got null"),
        ("train.learning_rate", '"2e-5"', 'must be a number, got "2e-5"'),
        ("train.learning_rate", "true", "must be a number, got true"),
        ("train.tf32", "1", "must be true or false, got 1"),
        ("train.tf32", "yes", 'must be true or false, got "yes"'),
        ("template.name", "3", "must be text, got 3"),
        ("template.name", "true", "must be text, got true"),
        ("template", "null", "must be a mapping, got null"),
        ("data.sources", "rows.jsonl", 'must be a list, got "rows.jsonl"'),
        ("data.holdout", "true", "must be a whole number or a number, got true"),
        ("data.holdout", '"3"', 'must be a whole number or a number, got "3"'),
        ("output.report_to", "wandb", 'must be a list, got "wandb"'),
    ],
)
def test_nothing_is_coerced(key: str, given: str, message: str) -> None:
    assert faults(RECIPE, f"{key}={given}") == [f"--set: {key}: {message}"]


def test_a_whole_number_may_stand_for_a_float() -> None:
    recipe = load(RECIPE, "train.epochs=3", "train.weight_decay=0")
    assert recipe.train.epochs == 3.0
    assert isinstance(recipe.train.weight_decay, float)


def test_text_that_other_parsers_turn_into_bools() -> None:
    assert load(RECIPE, "output.drill=on").output.drill == "on"
    assert load(RECIPE, "output.drill=off").output.drill == "off"


def test_a_recipe_is_frozen() -> None:
    recipe = load(RECIPE)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        recipe.train.seed = 1
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        recipe.train = recipe.train
    assert isinstance(recipe.data.sources, tuple)


# --- --set -----------------------------------------------------------------------------------------------------------


def test_set_edits_nested_values_lists_and_new_sections() -> None:
    recipe, document = load_recipe(
        write(RECIPE),
        [
            "train.learning_rate=1e-4",
            "data.sources[0].path=other.jsonl",
            "lora.rank=8",
            "lora.alpha=16",
            "lora.targets=[q_proj, v_proj]",
            'output.sample_prompts=["a=b"]',
            "plan={gpus: 8}",
            "model.revision=",
        ],
    )
    assert recipe.train.learning_rate == 1e-4
    assert recipe.data.sources[0].path == "other.jsonl"
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.targets) == (8, ("q_proj", "v_proj"))
    assert recipe.output.sample_prompts == ("a=b",)
    assert recipe.plan.gpus == 8
    assert recipe.model.revision is None
    for key in [("train", "learning_rate"), ("data", "sources", 0, "path"), ("lora",), ("plan", "gpus")]:
        assert document.locate(key) == "--set"
    assert document.locate(("train", "epochs")) == "bad.yaml:10"


def test_the_last_edit_wins() -> None:
    assert load(RECIPE, "train.seed=1", "train.seed=2").train.seed == 2


def test_an_edit_heals_a_fault_of_the_file() -> None:
    assert load(edited(("2e-5", "7")), "train.learning_rate=0.1").train.learning_rate == 0.1


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ("train.epochs", "--set: train.epochs: write key=value, got 'train.epochs'"),
        ("=3", "--set: write key=value, got '=3'"),
        ("train..epochs=3", "--set: train..epochs: write key=value, got 'train..epochs=3'"),
        ("data.sources[-1].path=x", "--set: data.sources[-1].path: write key=value, got 'data.sources[-1].path=x'"),
        ("data.sources[3].path=x", "--set: data.sources[3].path: there is no data.sources[3] to set a value in"),
        ("data.sources[1]=x", "--set: data.sources[1]: there is no data.sources[1] to set"),
        ("data.sources.path=x", "--set: data.sources.path: there is no data.sources.path to set"),
        ("train.epochs.x=3", "--set: train.epochs.x: there is no train.epochs.x to set"),
        ("train.epochs.x.y=3", "--set: train.epochs.x.y: there is no train.epochs.x to set a value in"),
        ("train.epochs=[", "--set: train.epochs: the value '[' is not valid YAML"),
        ('train.epochs="\\U00110000"', "--set: train.epochs: the value '\"\\\\U00110000\"' is not valid YAML"),
        (f"train.epochs=0x{'f' * 5000}", "--set: train.epochs: a number of 5,002 digits is too large"),
        ("train.epochs=.inf", "--set: train.epochs: .inf is not a usable number; write a finite one"),
        ("train.epochs=-1", "--set: train.epochs: input should be greater than 0, got -1"),
        ("plan={gpus: 1, gpus: 2}", "--set: plan: this key was already given on line 1; keep one"),
    ],
)
def test_wrong_edits(item: str, fault: str) -> None:
    assert faults(RECIPE, item) == [fault]


def test_a_new_section_by_set_is_located_there() -> None:
    assert faults(RECIPE, "lora.rank=8") == ["--set: lora.alpha: is required"]
