"""Every generator recipe that ships loads, is short, says where it comes from, and can be played; the refusals between sections."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from selfinstruct.job import prepare
from selfinstruct.recipe import load_recipe, values
from selfinstruct.strategies.base import View
from sft.errors import RecipeError
from tests.selfinstruct.teachers import write_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if "\nstrategy:" in p.read_text(encoding="utf-8"))
each = pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])


def test_the_promised_recipes_are_there() -> None:
    promised = {"selfinstruct_alpaca", "selfinstruct_classic", "selfinstruct_zh", "evolve", "selfinstruct_quickstart"}
    assert {path.stem for path in RECIPES} == promised


@each
def test_a_recipe_is_short_and_writes_to_its_own_folder(path: Path) -> None:
    recipe, _ = load_recipe(path)
    assert recipe.output.dir == f"runs/{path.stem}"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 40
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 128
    assert not any(line != line.rstrip() or "\t" in line for line in lines)


@each
def test_the_header_names_source_and_deviations(path: Path) -> None:
    text = path.read_text(encoding="utf-8").partition("\nseed:")[0]
    for word in ("# Generates: ", "# Source: ", "# Hardware: ", "# Deviations:"):
        assert text.count(word) == 1, word
    assert text.count("\n#   - ") >= 3


@each
def test_no_key_stands_in_a_recipe(path: Path) -> None:
    assert not re.search(r"sk-[A-Za-z0-9]|Bearer", path.read_text(encoding="utf-8"))


@each
def test_a_recipe_makes_its_first_requests(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    overrides = []
    if path.stem == "evolve":  # the set that it starts from does not ship
        rows = [{"instruction": f"What is the name of the river {i}?", "input": "", "output": "Po"} for i in range(99)] + [
            {"instruction": "x", "output": ""}
        ]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        overrides = [f"seeds.path={tmp_path / 'rows.json'}"]
    prepared = prepare(load_recipe(path, overrides)[0])
    requests = prepared.job.strategy.requests(0, View(prepared.job.seeds, [], prepared.job.judge.screen))
    assert len(requests) == min(prepared.recipe.strategy.requests_per_round, 99 if path.stem == "evolve" else 10**9)
    assert len({request.id for request in requests}) == len(requests)
    assert prepared.languages[0] == ("zh" if path.stem.endswith("_zh") else "en")
    assert len(prepared.dropped_seeds) == (path.stem == "evolve")


def refusals(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [str(fault).partition(": ")[2] for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        (
            "strategy.kind=alpac",
            "strategy.kind: must be one of 'alpaca', 'classic', 'evolve', got \"alpac\"; did you mean 'alpaca'?",
        ),
        ("strategy.task_per_call=3", "strategy.task_per_call: unknown key; did you mean 'strategy.tasks_per_call'?"),
        ("filters[0].min_wrds=3", "filters[0].min_wrds: unknown key; did you mean 'filters[0].min_words'?"),
        (
            "teacher.sampling.max_tokens=30",
            "teacher.sampling.max_tokens: 30 tokens cannot hold 20 tasks; give at least 400, or lower strategy.tasks_per_call",
        ),
        ("strategy.format=json", "strategy.format: the prompt 'alpaca_en' and format: json do not go together; change one"),
        (
            "strategy.prompt=alpaca_json_zh",
            "strategy.format: the prompt 'alpaca_json_zh' and format: numbered do not go together; change one",
        ),
        ("teacher.batch.enabled=true", "teacher.replay: a replay has no Batch API; remove replay or set batch.enabled: false"),
        (
            "teacher.sampling.stop=[a, b, c, d]",
            "teacher.sampling.stop: the API takes four stop strings, and the strategy needs one of them; remove one",
        ),
        (
            "filters[1].kind=length",
            "filters: the filter 'length' is given twice; its refusals could not be told apart: keep one",
        ),
        ("output.rows=0", "output.rows: input should be greater than or equal to 1, got 0"),
        (
            "strategy={kind: evolve, operators: [deepen, deepen]}",
            "strategy.operators: an operator is named twice; name each once",
        ),
    ],
)
def test_refusals(tmp_path: Path, override: str, refusal: str) -> None:
    assert refusals(write_recipe(tmp_path), override) == [refusal]


def test_all_faults_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "seeds: {pth: x}\nteacher:\n  model: m\n  temprature: 1\nstrategy:\n  kind: alpaca\n  demonstrations: 0\noutput: {dir: x, rows: 1.5}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [str(fault).replace(str(path), "r") for fault in caught.value.faults] == [
        "r:1: seeds.path: is required",
        "r:1: seeds.pth: unknown key; did you mean 'seeds.path'?",
        "r:4: teacher.temprature: unknown key; did you mean 'teacher.sampling.temperature'?",
        "r:7: strategy.demonstrations: input should be greater than or equal to 1, got 0",
        "r:8: output.rows: must be a whole number, got 1.5",
    ]


def test_values_have_dotted_keys(tmp_path: Path) -> None:
    found = values(load_recipe(write_recipe(tmp_path))[0])
    assert found["strategy.tasks_per_call"] == 20
    assert found["filters[0].kind"] == "length"
