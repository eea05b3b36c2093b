"""The YAML reader and the builder: what a recipe file may say, and how a fault is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from sft.config import dotted, parse_scalar, read_yaml
from sft.errors import RecipeError
from sft.recipe import Recipe, load_recipe

RECIPE = """\
model:
  name_or_path: m
template:
  name: alpaca
data:
  sources:
    - path: rows.jsonl
  max_length: 64
train:
  epochs: 1
  examples_per_step: 2
  tokens_per_device: 64
  learning_rate: 2e-5
output:
  dir: runs/x
"""


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str | bytes) -> str:
    Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return "bad.yaml"


def edited(*pairs: tuple[str, str]) -> str:
    """The sound recipe with some of its lines replaced."""
    text = RECIPE
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def load(text: str | bytes, *overrides: str) -> Recipe:
    return load_recipe(write(text), overrides)[0]


def faults(text: str | bytes, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert str(caught.value) == "\n".join(str(fault) for fault in caught.value.faults)
    assert caught.value.exit_code == 2
    return [str(fault) for fault in caught.value.faults]


# --- scalars: the YAML 1.2 core schema -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("2E+3", 2000.0),
        ("1.5e-3", 0.0015),
        (".5", 0.5),
        ("3.", 3.0),
        ("010", 10),
        ("+7", 7),
        ("-7", -7),
        ("0x10", 16),
        ("0xfF", 255),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2023-03-13", "2023-03-13"),
        ("0b11", "0b11"),
        ("0x", "0x"),
        ("e5", "e5"),
        (".", "."),
        ("nan", "nan"),
        ("inf", "inf"),
        ("tRue", "tRue"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    for found in (parse_scalar(text), read_yaml(write(f"a: {text}\n")).value["a"]):
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("text", ['"2e-5"', "'true'", '"010"', "'null'", "|\n  3"])
def test_quoted_and_block_text_stays_text(text: str) -> None:
    assert isinstance(read_yaml(write(f"a: {text}\n")).value["a"], str)


@pytest.mark.parametrize("text", [".inf", "-.inf", "+.Inf", ".INF", ".nan", ".NaN", ".NAN"])
def test_infinite_and_nan_are_refused(text: str) -> None:
    assert faults(edited(("2e-5", text))) == [
        f"bad.yaml:13: train.learning_rate: {text} is not a usable number; write a finite one"
    ]


def test_a_number_past_the_range_of_floats_is_refused() -> None:
    assert faults(edited(("2e-5", "1e999"))) == ["bad.yaml:13: train.learning_rate: 1e999 is too large for a number"]


# --- structure -------------------------------------------------------------------------------------------------------


def test_a_repeated_key_names_both_lines() -> None:
    text = edited(("  learning_rate: 2e-5\n", "  learning_rate: 2e-5\n  epochs: 2\n")) + "train:\n  epochs: 3\n"
    assert faults(text) == [
        "bad.yaml:14: train.epochs: this key was already given on line 10; keep one",
        "bad.yaml:17: train: this key was already given on line 9; keep one",
    ]


def test_an_alias_is_told_where_it_is_used() -> None:
    text = edited(("epochs: 1\n", "epochs: &n 1\n"), ("examples_per_step: 2\n", "examples_per_step: *n\n"))
    assert faults(text) == [
        "bad.yaml:11: train.examples_per_step: YAML anchors and aliases are not supported; write the value out"
    ]


def test_an_alias_that_contains_itself_ends() -> None:
    assert faults(RECIPE + "plan: &p\n  gpus: *p\n") == [
        "bad.yaml:17: plan.gpus: YAML anchors and aliases are not supported; write the value out"
    ]


def test_the_merge_key_is_not_special() -> None:
    assert faults(RECIPE + "<<: {plan: {gpus: 2}}\n") == ["bad.yaml:16: <<: unknown key"]


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("!!python/object:os.system {gpus: 2}", "tag:yaml.org,2002:python/object:os.system"),
        ("!!python/object/apply:os.system [ls]", "tag:yaml.org,2002:python/object/apply:os.system"),
        ("!!python/name:os.system", "tag:yaml.org,2002:python/name:os.system"),
        ("!x {gpus: 2}", "!x"),
        ("!x 2", "!x"),
        ("!!str 2", "tag:yaml.org,2002:str"),
        ('!!int "2"', "tag:yaml.org,2002:int"),
        ("!!set {gpus}", "tag:yaml.org,2002:set"),
    ],
)
def test_tags_are_refused_on_every_kind_of_node(value: str, tag: str) -> None:
    message = f"the tag {tag} is not allowed: a recipe is data only"
    assert faults(f"{RECIPE}plan: {value}\n") == [f"bad.yaml:16: plan: {message}"]
    assert faults(RECIPE, f"plan={value}") == [f"--set: plan: {message}"]


def test_a_tag_on_a_key_is_refused() -> None:
    assert faults(RECIPE + "!x plan: {gpus: 2}\n") == ["bad.yaml:16: plan: the tag !x is not allowed: a recipe is data only"]


@pytest.mark.parametrize("text", ["- 1\n", "", "# nothing\n", "text\n", "3\n"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    assert faults(text) == ["bad.yaml:1: a recipe is a mapping of sections, such as 'model:' and 'template:'"]


def test_a_key_that_is_not_text() -> None:
    assert faults(RECIPE + "? [a, b]\n: 1\n") == ["bad.yaml:16: a key must be plain text"]


def test_broken_yaml_has_its_line() -> None:
    assert faults("model: [1\ndata: 2\n") == ["bad.yaml:2: not valid YAML: expected ',' or ']', but got ':'"]


def test_two_documents_are_refused() -> None:
    assert faults(RECIPE + "---\na: 1\n") == ["bad.yaml:16: not valid YAML: but found another document"]


def test_control_characters_make_one_line() -> None:
    (fault,) = faults("a: \x00\n")
    assert fault.startswith("bad.yaml: not valid YAML: unacceptable character #x0000")
    assert "\n" not in fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('a: "\\U00110000"\n', "bad.yaml: not valid YAML: chr() arg not in range(0x110000)"),
        ('a: "\\UFFFFFFFF"\n', "bad.yaml: not valid YAML: Python int too large to convert to C int"),
    ],
)
def test_escapes_of_no_character_are_faults_not_crashes(text: str, fault: str) -> None:
    assert faults(text) == [fault]


def test_numbers_of_pages_and_half_characters_are_faults_at_their_place() -> None:
    text = f'a: 0x{"f" * 5000}\nb: {"9" * 5000}\nc: "\\ud800"\n"\\udc00": 1\n'
    assert faults(RECIPE + text)[:4] == [
        "bad.yaml:16: a: a number of 5,002 digits is too large",
        "bad.yaml:17: b: a number of 5,000 digits is too large",
        "bad.yaml:18: c: the text holds half a character, U+D800",
        "bad.yaml:19: a key holds half a character, U+DC00",
    ]


def test_very_deep_nesting_is_a_fault_not_a_crash() -> None:
    (fault,) = faults("a: " + "[" * 3000 + "]" * 3000)
    assert fault.startswith("bad.yaml: not valid YAML: ")
    (fault,) = faults(RECIPE, f"lora={'[' * 3000}")
    assert fault.startswith("--set: lora: the value ")


def test_bad_utf_8() -> None:
    (fault,) = faults(b"model: \xff\n")
    assert fault.startswith("bad.yaml: cannot be read as UTF-8 text: ")


def test_a_missing_file() -> None:
    with pytest.raises(RecipeError, match=r"^none\.yaml: no such file$"):
        load_recipe("none.yaml")


def test_a_run_directory_stands_for_its_recipe() -> None:
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(RECIPE)
    recipe, document = load_recipe("run")
    assert recipe.train.learning_rate == 2e-5
    assert document.locate(("train", "learning_rate")) == "run/recipe.yaml:13"


def test_places_are_those_of_the_keys() -> None:
    where = read_yaml(write(RECIPE)).where
    assert where[("data", "sources", 0, "path")] == "bad.yaml:7"
    assert where[("output", "dir")] == "bad.yaml:15"
    assert dotted(("data", "sources", 0, "path")) == "data.sources[0].path"


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
