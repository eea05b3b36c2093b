"""Shipped curations: they load, say what they reproduce and where they deviate, and run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sft.config import flatten
from sft.curate.pipeline import as_yaml, curate
from sft.curate.recipe import CurateRecipe, load_curate_recipe
from tests.builders import LLAMA, save_tiny, sentencepiece_like
from tests.curate.conftest import ROOT

KINDS = {"train": "\ntrain:", "generate": "\nstrategy:", "curate": "\nrules:"}
ALL = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").rglob("*.yaml"))}
CURATIONS = [path for path, text in ALL.items() if KINDS["curate"] in text]
ROWS = ROOT / "data" / "sharegpt_quickstart.jsonl"

each = pytest.mark.parametrize("path", CURATIONS, ids=[path.stem for path in CURATIONS])


def header(path: Path) -> str:
    """The comment block above the first key."""
    return re.split(r"^(?!#)", ALL[path], maxsplit=1, flags=re.M)[0]


def test_every_recipe_is_of_one_kind() -> None:
    found = {path.name: [kind for kind, key in KINDS.items() if key in text] for path, text in ALL.items()}
    assert {name: kinds for name, kinds in found.items() if len(kinds) != 1} == {}
    assert {"sharegpt", "data_quickstart"} <= {path.stem for path in CURATIONS}


@each
def test_a_curation_loads_and_writes_to_its_own_folder(path: Path) -> None:
    recipe, _ = load_curate_recipe(path)
    assert recipe.output.dir == f"runs/{path.stem}"
    told = [line for line in ALL[path].splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(told) <= 40
    assert max(map(len, ALL[path].splitlines())) <= 136


@each
def test_the_header_says_what_where_and_how_it_differs(path: Path) -> None:
    for word in ("# Reproduces: ", "# Hardware: ", "# Time", "# Deviations:"):
        assert header(path).count(word) == 1, word
    assert "not yet measured here" in header(path)
    assert re.search(r"^sources:  # \S", ALL[path], re.M)


def test_every_rule_of_the_published_chain_states_its_values() -> None:
    path = ROOT / "recipes" / "sharegpt.yaml"
    recipe, document = load_curate_recipe(path)
    # Empty lists add to what a rule knows, or take from it; the published chain does neither.
    unsaid = [
        (key[1:], value)
        for key, value in flatten(recipe.model_dump(mode="json"))
        if key[0] == "rules" and not any(key[: len(known)] == known for known in document.where if len(known) >= 3)
    ]
    left = {
        ".".join(map(str, (recipe.rules[int(number)].kind, *rest)))
        for (number, *rest), value in unsaid
        if value not in ([], None)
    }
    assert left == {"field.missing", "role_repair.separator"}  # of no use beside present: drop and doubled: drop_chat
    kinds = [
        "html",
        "role_repair",
        "vendor_names",
        "notice",
        "empty_turn",
        "min_length",
        "field",
        "language",
        "repetition",
        "broken_list",
    ]
    assert [rule.kind for rule in recipe.rules] == kinds
    for name in ("html", "vendor_names", "notice", "language", "broken_list", "dedup", "split", "identity", "holdout"):
        assert f"#   - {name}: " in header(path)


def test_the_published_chain_cuts_for_the_training_recipe() -> None:
    from sft.recipe import load_recipe

    split = load_curate_recipe(ROOT / "recipes" / "sharegpt.yaml")[0].split
    training, _ = load_recipe(ROOT / "recipes" / "vicuna.yaml")
    assert split is not None
    found = (split.model.name_or_path, split.model.revision, split.template, split.max_length)
    assert found == (training.model.name_or_path, training.model.revision, training.template, training.data.max_length)


@each
def test_a_written_recipe_reads_the_same(path: Path, tmp_path: Path) -> None:
    recipe, _ = load_curate_recipe(path)
    (tmp_path / "recipe.yaml").write_text(as_yaml(recipe), encoding="utf-8")
    assert load_curate_recipe(tmp_path)[0] == recipe


def local(path: Path, tmp_path: Path) -> CurateRecipe:
    """A shipped curation over the small file, with a small tokenizer where it names one of the Hub."""
    recipe, _ = load_curate_recipe(path)
    edits = [f"output.dir={tmp_path / 'run'}", "output.workers=1", f"sources[0].path={ROWS}"]
    if recipe.split is not None and recipe.split.model.name_or_path is not None:
        save_tiny(tmp_path / "base", sentencepiece_like(), LLAMA)
        edits.append(f"split.model={{name_or_path: {tmp_path / 'base'}}}")
    return load_curate_recipe(path, edits)[0]


@pytest.mark.parametrize("path", [path for path in CURATIONS if path.stem != "data_quickstart"], ids=lambda path: path.stem)
def test_it_runs_on_a_small_file(path: Path, tmp_path: Path) -> None:
    done = curate(local(path, tmp_path), progress=False)
    assert done.stages["clean"].rows_in == len(ROWS.read_text(encoding="utf-8").splitlines())
    assert done.stages["clean"].changed["html"] == 17
    assert done.stages["dedup"].counts["exact_duplicate"] == 3
    rows = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 40
    assert not [row["id"] for row in rows if "<div" in json.dumps(row)]


def test_the_quickstart_has_something_for_every_rule() -> None:
    from sft.curate.recipe import rules_of

    recipe, _ = load_curate_recipe(ROOT / "recipes" / "data_quickstart.yaml")
    kinds = {rule.kind for rule in rules_of([rule.model_dump(mode="json") for rule in recipe.rules])}
    assert len(kinds) == 12


def test_what_the_quickstart_keeps_changes_and_leaves_out(quickstart: Path) -> None:
    run = json.loads((quickstart / "run.json").read_text(encoding="utf-8"))
    clean, dedup, split = (run["stages"][name] for name in ("clean", "dedup", "split"))
    assert (clean["rows_in"], clean["rows_out"], dedup["rows_out"], split["rows_out"]) == (72, 55, 49, 55)
    assert clean["counts"] == {
        "other_language": 3,
        "vendor_name": 3,
        "notice": 2,
        "refusal": 2,
        "empty_turn": 1,
        "field_set": 1,
        "no_exchange": 1,
        "repeated_digits": 1,
        "repeated_lines": 1,
        "too_short": 1,
        "unknown_role": 1,
    }
    assert clean["changed"] == {
        "html": 17,
        "role_repair": 3,
        "notice": 2,
        "pii": 2,
        "broken_list": 1,
        "empty_turn": 1,
        "refusal": 1,
    }
    assert (dedup["counts"], dedup["changed"]) == ({"exact_duplicate": 3, "near_duplicate": 3}, {"same_id_renamed": 1})
    assert (split["counts"], split["changed"]) == ({}, {"split": 5, "exchange_too_long_kept": 1})
    assert run["mixed"] == {"talks": {"rows": 55, "within_limit": 55, "held_out": 4, "by_weight": 0, "written": 51}}
