"""The recorded ledger: unpacked and packed again it is the same bytes, so a changed prompt or recipe makes the maintainer pack anew."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from selfinstruct.teacher.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "data" / "selfinstruct_quickstart"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_unpacked_and_packed_it_is_the_same_bytes(build: ModuleType, tmp_path: Path) -> None:
    count = build.unpack(FOLDER / "ledger.jsonl", tmp_path)
    assert count >= 40
    assert build.pack(tmp_path) == (FOLDER / "ledger.jsonl").read_bytes(), (
        "run data/selfinstruct_quickstart/build.py unpack, then pack"
    )


def test_it_answers_the_requests_of_the_recipe_in_order(build: ModuleType) -> None:
    with Ledger.open(FOLDER / "ledger.jsonl", read_only=True) as ledger:
        held = [entry.request for entry in ledger.iterate()]
    assert held == list(islice(build.calls(ROOT / "data" / "seed_tasks.jsonl"), len(held)))
