"""The generator's pages say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from selfinstruct.prompts import prompt_names

ROOT = Path(__file__).resolve().parents[2]


def test_the_recipe_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("build_generate_reference", ROOT / "docs" / "build_generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    found = (ROOT / "docs" / "generate_recipes.md").read_text(encoding="utf-8")
    assert found == builder.build(), "run python docs/build_generate_reference.py"


def test_every_knob_is_explained() -> None:
    page = (ROOT / "docs" / "generate_recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` .*\|  \|$", page, re.M) == []


def test_every_verb_prompt_and_file_is_described() -> None:
    page = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")
    for verb in ("check", "plan", "run", "replay", "review", "export", "trace"):
        assert f"selfinstruct {verb} " in page
    for name in (
        *prompt_names(),
        "ledger.jsonl",
        "candidates.jsonl",
        "dataset.jsonl",
        "run.json",
        "state.json",
        "novelty.bin",
        "journal.jsonl",
    ):
        assert f"`{name}`" in page, name
