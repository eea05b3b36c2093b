"""Lengths for a model that is made from scratch: a tokenizer of the rows themselves, made once and made again when they change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft.curate.pipeline import Curation, curate
from sft.curate.recipe import CurateRecipe
from sft.data.conversation import Conversation, Turn
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder, Tokenized

VOCABULARY = 400


def go(folder: Path, words: str, rows_per_part: int = 4) -> Curation:
    rows = [
        {
            "id": f"r{i}",
            "conversations": [{"from": "human", "value": f"Say {words} {i}"}, {"from": "gpt", "value": f"{words} {i}. " * 9}],
        }
        for i in range(10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, Any] = {
        "sources": [{"path": str(folder / "rows.jsonl")}],
        "split": {
            "model": {"scratch": {"vocab_size": VOCABULARY, "config": {"model_type": "llama"}}},
            "template": {"name": "chatml"},
            "max_length": 64,
        },
        "output": {"dir": str(folder / "run"), "rows_per_part": rows_per_part, "workers": 1},
    }
    return curate(CurateRecipe.model_validate(values, strict=False), progress=False)


def tokenizer_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "run" / "tokenizer").iterdir()}


def test_it_is_made_of_the_rows_and_counts_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    done = go(tmp_path, "red apples and green pears")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    assert 261 < len(tokenizer) <= VOCABULARY  # more than bytes and special tokens
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.tokenize(" apples") == ["Ġapples"]
    encoder = RowEncoder(tokenizer, load_template("chatml"))
    lengths = 0
    for line in (tmp_path / "run" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = (Turn("user", row["conversations"][0]["value"]), Turn("assistant", row["conversations"][1]["value"]))
        found = encoder.encode([Conversation(row["id"], turns, "")])[0]
        assert isinstance(found, Tokenized)
        lengths += len(found.ids)
    assert done.stages["split"].histograms["totals"]["tokens"] == lengths


def test_it_stands_while_its_rows_do(tmp_path: Path) -> None:
    go(tmp_path, "red apples")
    first = tokenizer_files(tmp_path)
    again = go(tmp_path, "red apples")
    assert tokenizer_files(tmp_path) == first
    assert again.parts["split"] == (3, 3)
    other = go(tmp_path, "blue plums")  # in the same process: no work is left over from the first tokenizer
    assert other.parts["split"] == (3, 0)
    assert tokenizer_files(tmp_path)["tokenizer.json"] != first["tokenizer.json"]
    alone = tmp_path / "alone"
    alone.mkdir()
    assert go(alone, "blue plums").stages["split"].histograms == other.stages["split"].histograms


@pytest.mark.parametrize("rows_per_part", [1, 100])
def test_it_does_not_depend_on_the_parts(tmp_path: Path, rows_per_part: int) -> None:
    for name, size in (("a", 4), ("b", rows_per_part)):
        (tmp_path / name).mkdir()
        go(tmp_path / name, "red apples", size)
    files = [tmp_path / name / "run" / "tokenizer" / "tokenizer.json" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_a_stop_left_is_made_again(tmp_path: Path) -> None:
    go(tmp_path, "red apples")
    first = (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes()
    (tmp_path / "run" / "tokenizer" / "made_from.json").unlink()
    (tmp_path / "run" / "tokenizer" / "tokenizer.json").write_text("torn")
    go(tmp_path, "red apples")
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes() == first
