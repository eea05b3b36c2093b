"""Faults of a curation's recipe: all at once, each with its line and its whole key; and verbs that are given another one's recipe."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfinstruct.recipe import load_recipe as load_generation
from sft.cli import app, main
from sft.curate import refusals
from sft.curate.recipe import load_curate_recipe
from sft.errors import RecipeError
from sft.recipe import load_recipe
from tests.curate.conftest import ROOT

HEAD = "sources: [{path: ten.jsonl}]\noutput: {dir: out}\n"
SPLIT = "split:\n  model: {name_or_path: m}\n  template: {name: %s}\n  max_length: 64\n"


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turns = '[{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So that it works."}]'
    Path("ten.jsonl").write_text("".join(f'{{"id": "{i}", "conversations": {turns}}}\n' for i in range(10)), encoding="utf-8")


def faults(text: str) -> list[str]:
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as found:
        load_curate_recipe("r.yaml")
    return [str(fault) for fault in found.value.faults]


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What a verb says that ends with 2."""
    monkeypatch.setattr(sys, "argv", ["sft", "data", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("kind: field, field: a, presnt: drop", "presnt: unknown key; did you mean 'rules[1].present'?"),
        ("kind: field, field: a, present: drp", "present: must be 'keep' or 'drop', got \"drp\"; did you mean 'drop'?"),
        ("kind: field, field: a, keep: [5]", "keep[0]: must be text, got 5"),
        ("kind: field, field: 7, present: drop", "field: must be text, got 7"),
        ("kind: field, present: drop", "field: is required"),
        ("kind: field, field: a", "keep: the rule does nothing: say what to keep or to skip, such as lang: en"),
        (
            "kind: field, field: id, present: drop",
            "field: 'id' is no further key of the row; the rule 'model' looks at the model",
        ),
        ("kind: model, skp: [a]", "skp: unknown key; did you mean 'rules[1].skip'?"),
        ("kind: html, characters: 5", "characters: unknown key; did you mean 'rules[1].others'?"),
        ("kind: notice, actoin: drop_chat", "actoin: unknown key; did you mean 'rules[1].action'?"),
        ("kind: pii, masks: [email]", "masks: unknown key; did you mean 'rules[1].mask'?"),
    ],
)
def test_a_fault_of_a_rule_names_the_rules_own_key(rule: str, said: str) -> None:
    assert faults(f"{HEAD}rules:\n  - {{kind: html}}\n  - {{{rule}}}\n") == [f"r.yaml:5: rules[1].{said}"]


def test_own_checks_of_a_section_do_not_wait_for_its_unknown_keys() -> None:
    assert faults(f"{HEAD}mix: {{seeds: 3, holdout: -1, limits: {{a: 0}}}}\n") == [
        "r.yaml:3: mix.limits: a: a limit is at least 1; leave the source out instead",
        "r.yaml:3: mix.holdout: must be a number of rows, or a share of at least 0 and below 1",
        "r.yaml:3: mix.seeds: unknown key; did you mean 'mix.seed'?",
    ]
    assert faults(
        "sources: [{path: ten.jsonl, hub: x, wight: 2}]\noutput: {dir: out}\nmix: {limits: {b: 1}}\nsplits: {}\n"
    ) == [
        "r.yaml:1: sources[0].wight: unknown key; did you mean 'sources[0].weight'?",
        "r.yaml:1: sources[0].path: give exactly one of path and hub",
        "r.yaml:4: splits: unknown key; did you mean 'split'?",
    ]
    # what a misspelt key would have said is not missed a second time
    assert faults(f"{HEAD}rules: [{{kind: model, keeep: [a]}}]\n") == [
        "r.yaml:3: rules[0].keeep: unknown key; did you mean 'rules[0].keep'?"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HEAD}mix: {{limits: {{nobody: 5}}}}\n", "3: mix.limits: no source is called 'nobody'; there are ten.jsonl"),
        (HEAD.replace("dir: out", "dir: out, ray: yes"), "2: output.ray: must be local, auto or HOST:PORT, got 'yes'"),
        (
            HEAD.replace("dir: out", "dir: out, ray: 'ray://head:10001'"),
            "2: output.ray: ray:// is for machines outside a cluster, which do not see its files; start this on one inside",
        ),
        ("", "1: a recipe is a mapping of sections, such as 'sources:' and 'output:'"),
    ],
)
def test_values_that_only_the_whole_recipe_can_judge(text: str, said: str) -> None:
    assert faults(text) == [f"r.yaml:{said}"]


def test_each_verb_knows_the_recipes_of_the_others() -> None:
    for path, what in (("quickstart", "training"), ("selfinstruct_quickstart", "generation"), ("data_quickstart", "curation")):
        file = ROOT / "recipes" / f"{path}.yaml"
        for load, own in ((load_recipe, "training"), (load_generation, "generation"), (load_curate_recipe, "curation")):
            if own == what:
                load(file)
                continue
            with pytest.raises(
                RecipeError,
                match=rf"^{file}: this is the recipe of a {what}: its verbs are those of s\w+( data)?, such as s\w+( data)? check$",
            ) as found:
                load(file)
            assert len(found.value.faults) == 1


def check(text: str, *edits: str) -> list[str]:
    Path("r.yaml").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["data", "check", "r.yaml", *edits], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout.splitlines()


def test_check_says_what_is_not_there_yet() -> None:
    rules = "rules: [{kind: contamination, files: [ten.jsonl, 'eval/*.json']}]\n"
    model = (SPLIT % "chatml").replace("name_or_path: m", "name_or_path: ./m")
    nothing, here = "no such file, and no file matches it", f"(looked from {Path.cwd()})"
    assert check(HEAD.replace("ten", "nine") + rules + model)[:-1] == [
        f"r.yaml: not there yet: sources[0].path: nine.jsonl: {nothing} {here}",
        f"r.yaml: not there yet: rules[0].files[1]: eval/*.json: {nothing} {here}",
        f"r.yaml: not there yet: split.model.name_or_path: ./m: no such folder {here}",
    ]
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", ["check", "run"])
def test_check_and_run_refuse_the_same(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    Path("r.yaml").write_text(HEAD.replace("dir: out", "dir: r.yaml, ray: auto") + SPLIT % "chatmll", encoding="utf-8")
    said = fails(monkeypatch, capsys, verb, "r.yaml")
    assert said[0] == "r.yaml:2: output.dir: r.yaml is a file; choose another folder"
    assert said[1] == "r.yaml:2: output.ray: needs Ray: pip install 'vicugna[ray]', on every machine of the cluster"
    assert said[2].startswith("r.yaml:5: split.template.name: no template 'chatmll'; there are alpaca, ")
    assert len(said) == 3


def test_a_model_that_cannot_be_loaded_is_told_before_the_first_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("m").mkdir()
    Path("r.yaml").write_text(HEAD + SPLIT % "chatml", encoding="utf-8")
    said = fails(monkeypatch, capsys, "run", "r.yaml")
    assert len(said) == 1
    assert said[0].startswith("r.yaml:4: split.model.name_or_path: ")
    assert not Path("out").exists()
    assert refusals.within_split(RecipeError([])) == (("split",), "")


def test_a_run_directory_is_a_recipe_only_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(HEAD.replace("ten.jsonl", str(Path("ten.jsonl").resolve())), encoding="utf-8")
    for arguments in (["r.yaml"], ["out"]):
        assert CliRunner().invoke(app, ["data", "run", *arguments], catch_exceptions=False).exit_code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    said = fails(monkeypatch, capsys, "run", "../out")
    assert said == [
        f"output.dir: out, seen from {Path.cwd()}, is not the run directory ../out; start it where the run was started, or say "
        "--set output.dir=../out"
    ]
    assert not list(Path().iterdir())
    edit = ["--set", "output.dir=../out"]
    assert CliRunner().invoke(app, ["data", "run", "../out", *edit], catch_exceptions=False).exit_code == 0


def test_stats_goes_on_behind_a_file_that_cannot_be_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    Path("broken.json").write_text('[{"conversations": []}, oh]', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["sft", "data", "stats", "odd.jsonl", "broken.json", "ten.jsonl"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out.splitlines()[:2] == ["odd.jsonl: not counted, see below", "broken.json: not counted, see below"]
    assert said.out.splitlines()[2].startswith("ten.jsonl: 10 rows, ")
    assert said.err.splitlines()[0].startswith("odd.jsonl:1: no format fits the keys a; set 'format'")
    assert said.err.splitlines()[1:] == [
        "The rows behind a broken one are lost, and nobody knows how many:",
        "broken.json:1: Expecting value at line 1 column 25; the rest of the file is not read",
        "Mend the file.",
    ]
