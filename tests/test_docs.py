"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _builder() -> ModuleType:
    return _module(ROOT / "docs" / "build_recipe_reference.py")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["recipes.md", "generate_recipes.md", "judge_recipes.md", "curate_recipes.md"])
def test_the_recipe_references_are_up_to_date_and_explain_every_knob(page: str) -> None:
    builder = _builder()
    wanted = {one.name: builder.build(one) for one in builder.PAGES}
    assert len(wanted) == 4
    found = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert found == wanted[page], "run python docs/build_recipe_reference.py"
    assert re.findall(r"^\| `(\w+)` .*\|  \|$", found, re.M) == []


def test_the_arithmetic_of_many_gpus_is_what_the_program_says() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert _module(ROOT / "benchmarks" / "scale_arithmetic.py").filled(page) == page, (
        "run python benchmarks/scale_arithmetic.py --write"
    )


def _reason_codes() -> tuple[set[str], set[str]]:
    """Every reason that the code drops a row by, and every one that it counts a change under, read off the source."""
    drops: set[str] = set()
    changes: set[str] = set()
    for path in sorted((ROOT / "sft" / "data").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        changes |= set(re.findall(r'changed\["(\w+)"\]', source))
        if path.name == "jsonl.py":  # "reason: sentence"
            drops |= set(re.findall(r'f"([a-z]+(?:_[a-z0-9]+)+): ', source))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                at = {"RowFault": 0, "RenderRefused": 0, "Drop": 1}.get(node.func.id)
                if at is not None and len(node.args) > at and isinstance(node.args[at], ast.Constant):
                    drops.add(ast.literal_eval(node.args[at]))
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                drops |= {str(c.value) for c in ast.walk(node.value) if isinstance(c, ast.Constant) and "_" in str(c.value)}
    return drops, changes


def test_every_reason_code_is_explained() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    drops, changes = _reason_codes()
    assert {"role_order", "empty_answer", "prompt_not_prefix", "too_long", "not_utf8", "contradiction"} <= drops
    rows = re.findall(r"^\| (`[^|]*) \|", page.split("## Reasons for a drop")[1].split("\n## ")[0], re.M)
    explained = [code for row in rows for code in re.findall(r"`(\w+)`", row)]
    assert sorted(explained) == sorted(drops)
    assert {"truncated", "repeated_id"} <= changes
    assert [code for code in (*changes, "split", "split_part_") if f"`{code}" not in page] == []


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "sft" / "data" / "templates").glob("*.jinja")))
def test_every_template_is_described(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8").replace(f"`recipes/{name}.yaml`", f"`{name}`")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_names_only_recipes_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"recipes/(\w+\.yaml)", text):
        assert (ROOT / "recipes" / name).is_file(), name


def test_every_verb_file_and_reason_of_a_curation_is_described() -> None:
    page = (ROOT / "docs" / "curate.md").read_text(encoding="utf-8")
    for verb in ("check", "stats", "clean", "run", "report"):
        assert f"| `sft data {verb} " in page
    for name in (
        "train.jsonl",
        "holdout.jsonl",
        "dropped.jsonl",
        "report.html",
        "run.json",
        "recipe.yaml",
        "clean/",
        "tokenizer/",
    ):
        assert f"`{name}`" in page, name
    source = (ROOT / "sft" / "curate" / "split.py").read_text(encoding="utf-8")
    source += (ROOT / "sft" / "curate" / "duplicates.py").read_text(encoding="utf-8")
    told = {*re.findall(r'"((?:exchange|nothing)_\w+)"', source), *re.findall(r'changed\["(\w+)"\]', source)}
    told |= {"exact_duplicate", "near_duplicate", "same_id", "first_exchange", "unstable"}
    reader = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert {"exchange_too_long", "nothing_learnt", "same_id_renamed", "split"} <= told
    assert [code for code in sorted(told) if f"`{code}`" not in page + reader] == []


def test_the_readme_and_the_page_show_the_same_curation() -> None:
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/curate.md")]
    shown = [re.search(r"```\n(clean: 72 rows in.*?)```", page, re.S) for page in pages]
    assert shown[0] is not None
    assert shown[1] is not None
    assert shown[0][1] == shown[1][1]
