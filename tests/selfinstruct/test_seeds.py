"""Seed files: the originals' format, every fault at once with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.records import Instance
from selfinstruct.seeds import read_seeds
from sft.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = {
    "id": "seed_task_900",
    "name": "rhyme",
    "instruction": "Give three words that rhyme with the given word.",
    "instances": [{"input": "tin", "output": "pin, win, bin"}],
    "is_classification": False,
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["seed_tasks.jsonl", "seed_tasks_zh.jsonl"])
def test_ours_load(name: str) -> None:
    seeds, dropped = read_seeds(ROOT / "data" / name)
    assert (len(seeds), dropped) == (175, [])
    assert sum(seed.is_classification for seed in seeds) == 25


@pytest.mark.skipif("VICUGNA_DATA" not in os.environ, reason="VICUGNA_DATA names no folder with the originals")
@pytest.mark.parametrize(("name", "classification"), [("seed_tasks.jsonl", 26), ("belle_zh_seed_tasks.jsonl", 26)])
def test_the_originals_load_unchanged(name: str, classification: int) -> None:
    seeds, dropped = read_seeds(Path(os.environ["VICUGNA_DATA"]) / "seeds" / name)
    assert (len(seeds), dropped) == (175, [])
    assert sum(seed.is_classification for seed in seeds) == classification


def test_a_row_of_each_kind(tmp_path: Path) -> None:
    alpaca = {"instruction": "Name the capital.", "input": "Peru", "output": "Lima.", "lineage": {}}
    (first, second), dropped = read_seeds(write(tmp_path / "s.jsonl", GOOD, alpaca))
    assert dropped == []
    assert (first.id, first.name, first.instances) == ("seed_task_900", "rhyme", (Instance("tin", "pin, win, bin"),))
    assert (second.id, second.instances, second.is_classification) == ("row_1", (Instance("Peru", "Lima."),), False)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{", "invalid_json: Expecting property name enclosed in double quotes at column 2"),
        ([1], "a seed task is an object with 'instruction' and 'instances'"),
        ({**GOOD, "instruction": " "}, "instruction: is required and must not be blank"),
        ({**GOOD, "instruction": 3}, "instruction: must be text, got int"),
        ({**GOOD, "instances": []}, "instances: must be a list of at least one {input, output}"),
        ({**GOOD, "instances": ["x"]}, "instances[0]: must be an object with 'input' and 'output'"),
        ({**GOOD, "instances": [{"input": "", "output": ""}]}, "instances[0].output: is required and must not be blank"),
        ({**GOOD, "instances": [{"input": None, "output": "x"}]}, "instances[0].input: must be text, got NoneType"),
        ({**GOOD, "is_classification": "no"}, "is_classification: must be true or false, got 'no'"),
        ({"instruction": "x"}, "instances: is required: a list of {input, output} (an Alpaca row has 'output' in its place)"),
    ],
)
def test_each_fault_has_its_line(tmp_path: Path, row: Any, fault: str) -> None:
    path = write(tmp_path / "s.jsonl", GOOD, row)
    with pytest.raises(DataError) as caught:
        read_seeds(path)
    assert str(caught.value) == f"{path}:2: {fault}"


def test_all_faults_come_at_once_and_a_repeated_id_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", GOOD, {}, GOOD)
    with pytest.raises(DataError) as caught:
        read_seeds(path)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:2: instruction: ")
    assert second == f"{path}:3: id: 'seed_task_900' is already the id of {path}:1; give every task its own"


def test_a_share_of_unusable_rows_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", *({**GOOD, "id": str(i)} for i in range(9)), {})
    seeds, dropped = read_seeds(path, 0.1)
    assert (len(seeds), len(dropped)) == (9, 1)
    with pytest.raises(DataError, match="instruction: is required"):
        read_seeds(path, 0.09)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no seed task in this file"):
        read_seeds(write(tmp_path / "s.jsonl"))
