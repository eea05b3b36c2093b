"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_recipe_reference", ROOT / "docs" / "build_recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_recipe_reference_is_up_to_date() -> None:
    builder = _builder()
    wanted = builder.build((ROOT / "sft" / "recipe.py").read_text(encoding="utf-8"))
    found = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert found == wanted, "run python docs/build_recipe_reference.py"


def test_every_knob_is_explained() -> None:
    bare = re.findall(r"^\| `(\w+)` .*\|  \|$", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"), re.M)
    assert bare == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_names_only_recipes_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"recipes/(\w+\.yaml)", text):
        assert (ROOT / "recipes" / name).is_file(), name
