"""The quickstart's curation, made once for all tests of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft.curate.pipeline import curate
from sft.curate.recipe import load_curate_recipe
from sft.curate.results.report import write_report

ROOT = Path(__file__).resolve().parents[2]


def quickstart_into(folder: Path, *overrides: str) -> Path:
    """Run recipes/data_quickstart.yaml with another output directory, from wherever the tests run."""
    rows = f"sources[0].path={ROOT / 'data' / 'sharegpt_quickstart.jsonl'}"
    recipe, _ = load_curate_recipe(ROOT / "recipes" / "data_quickstart.yaml", [f"output.dir={folder}", rows, *overrides])
    curate(recipe, progress=False)
    return folder


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory, to look at and not to touch."""
    folder = quickstart_into(tmp_path_factory.mktemp("quickstart") / "run")
    write_report(folder)
    return folder


def told(folder: Path) -> dict[str, Any]:
    """What the record says of the rows: without what tells how they were divided, and how long it took."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    stages = {name: {key: value for key, value in stage.items() if key != "sha256"} for name, stage in run["stages"].items()}
    return {"stages": stages, "mixed": run["mixed"], "clusters": run["clusters"], "fingerprints": run["fingerprints"]}
