"""The YAML reader: what a recipe file may say, and how a fault of its text is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sft.config import dotted, parse_scalar, read_yaml
from sft.errors import RecipeError
from sft.recipe import load_recipe
from tests.recipe_text import RECIPE, edited, faults, write


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
