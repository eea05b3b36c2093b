"""Preparation end to end on tiny files: what is kept, what is refused, what is held out, and when the cache answers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.data.conversation import Drops
from sft.data.dataset import Prepared, RowStore, check_drops, choose_holdout, data_key, iterate_sources, prepare
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import DataError
from sft.recipe import Recipe
from tests.builders import byte_level

Value = dict[str, Any]


def rows_file(path: Path, count: int = 12, first: int = 0) -> Path:
    """Alpaca rows, every one of them different."""
    rows = [
        {"instruction": f"Say {i}.", "input": "", "output": "yes " * (1 + i % 5) + str(i)} for i in range(first, first + count)
    ]
    return lines_file(path, [json.dumps(row) for row in rows])


def lines_file(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def recipe(folder: Path, *paths: Path, template: str = "alpaca_short", train: Value | None = None, **data: Any) -> Recipe:
    sources = tuple({"path": str(path), "format": "alpaca", "name": path.stem} for path in paths)
    value: Value = {
        "model": {"name_or_path": "base"},
        "template": {"name": template},
        "data": {"sources": sources, "max_length": 64, "cache_dir": str(folder / "cache"), **data},
        "train": {
            "epochs": 1.0,
            "examples_per_step": 4,
            "tokens_per_device": 256,
            "learning_rate": 1e-4,
            "seed": 3,
            **(train or {}),
        },
        "output": {"dir": str(folder / "run")},
    }
    return Recipe.model_validate(value)


def encoder_of(some: Recipe) -> RowEncoder:
    return RowEncoder(byte_level(), load_template(some.template.name), some.template.train_on)


def prepared(some: Recipe) -> Prepared:
    return prepare(some, byte_level(), encoder_of(some), progress=False)


def same(one: RowStore, other: RowStore) -> bool:
    arrays = ("ids", "mask", "offsets", "source_of")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return equal and list(one.names) == list(other.names) and one.labels == other.labels


def test_rows_are_what_the_encoder_makes_of_the_files(tmp_path: Path) -> None:
    some = recipe(tmp_path, rows_file(tmp_path / "a.jsonl", 5), rows_file(tmp_path / "b.jsonl", 3, first=50))
    found = prepared(some)
    conversations = [c for _, c in iterate_sources(some.data.sources, Drops(), progress=False)]
    wanted = encoder_of(some).encode(conversations)
    assert len(found.train) == len(wanted) == 8
    for i, row in enumerate(wanted):
        ids, mask = found.train.row(i)
        assert ids.tolist() == row.ids.tolist()  # type: ignore[union-attr]
        assert mask.tolist() == row.mask.tolist()  # type: ignore[union-attr]
        assert found.train.lengths[i] == len(ids)
        assert found.train.trained[i] == mask.sum() > 0
    assert found.train.labels == ("a", "b")
    assert found.train.source_of.tolist() == [0] * 5 + [1] * 3
    assert len(set(found.train.names)) == 8
    assert (found.report["rows_in"], found.report["train_rows"], found.report["holdout_rows"]) == (8, 8, 0)
    assert found.report["trained_tokens"] == int(found.train.mask.sum())


def test_too_many_unusable_rows_are_refused_with_the_limit_and_an_example(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", 9)
    lines_file(path, [*path.read_text(encoding="utf-8").splitlines(), "not json"])
    with pytest.raises(DataError, match=r"1 of 10 rows \(10\.0%\) cannot be used; data\.max_drop_share allows 5\.0%") as error:
        prepared(recipe(tmp_path, path, max_drop_share=0.05))
    assert f"{path}:10" in str(error.value)
    assert not (tmp_path / "cache").exists()
    assert len(prepared(recipe(tmp_path, path, max_drop_share=0.1)).train) == 9


def test_a_source_of_which_nothing_is_left_is_refused_however_small_its_share(tmp_path: Path) -> None:
    good = rows_file(tmp_path / "good.jsonl")
    bad = lines_file(tmp_path / "bad.jsonl", [json.dumps({"instruction": 1, "output": 2})])
    with pytest.raises(DataError, match=r"^bad: "):
        prepared(recipe(tmp_path, good, bad, max_drop_share=0.5))


def test_a_broken_file_is_refused_whatever_the_limit(tmp_path: Path) -> None:
    good = rows_file(tmp_path / "good.jsonl")
    broken = tmp_path / "broken.json"
    broken.write_text('[{"instruction": "a", "output": "b"},\n {"instruction": "c" "output": "d"}]', encoding="utf-8")
    with pytest.raises(DataError) as error:
        prepared(recipe(tmp_path, good, broken, max_drop_share=1.0))
    assert f"{broken}:2" in str(error.value)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data sources hold no rows"):
        check_drops(Drops(), 0, recipe(tmp_path, tmp_path / "a.jsonl").data, [])


def test_rows_that_overflow_drop_leaves_out_were_asked_for(tmp_path: Path) -> None:
    long = {"instruction": "Go on.", "input": "", "output": "yes " * 200}
    path = rows_file(tmp_path / "a.jsonl", 4)
    lines_file(path, [*path.read_text(encoding="utf-8").splitlines(), json.dumps(long)])
    found = prepared(recipe(tmp_path, path, overflow="drop", max_drop_share=0.0))
    assert len(found.train) == 4
    assert found.report["drops"]["counts"] == {"too_long": 1}


def test_equal_conversations_are_held_out_together_and_independent_of_order(tmp_path: Path) -> None:
    lines = rows_file(tmp_path / "a.jsonl", 10).read_text(encoding="utf-8").splitlines() * 2
    found = prepared(recipe(tmp_path, lines_file(tmp_path / "a.jsonl", lines), holdout=6))
    turned = prepared(recipe(tmp_path, lines_file(tmp_path / "a.jsonl", lines[::-1]), holdout=6))

    def texts(store: RowStore) -> list[tuple[int, ...]]:
        return sorted(tuple(store.row(i)[0].tolist()) for i in range(len(store)))

    assert (len(found.train), len(found.holdout)) == (14, 6)
    assert not set(texts(found.train)) & set(texts(found.holdout))
    assert texts(found.holdout) == texts(turned.holdout)


def test_holdout_by_share_and_its_limit() -> None:
    marks = np.arange(50, dtype=np.uint64)
    assert choose_holdout(marks, 0.1, 0).sum() == 5
    assert choose_holdout(marks, 0, 0).sum() == 0
    assert choose_holdout(marks, 7, 0).tolist() == choose_holdout(marks, 7, 0).tolist()
    assert choose_holdout(marks, 7, 0).tolist() != choose_holdout(marks, 7, 1).tolist()
    small, large = choose_holdout(marks, 7, 0), choose_holdout(marks, 9, 0)
    assert (small <= large).all()
    with pytest.raises(DataError, match=r"data\.holdout asks for 50 rows, there are only 50"):
        choose_holdout(marks, 50, 0)


def test_holding_out_many_groups_takes_no_time() -> None:
    marks = np.arange(100_000, dtype=np.uint64)
    begin = time.perf_counter()
    assert choose_holdout(marks, 0.5, 0).sum() == 50_000
    assert time.perf_counter() - begin < 5  # a pass over all rows for each group would take minutes


def test_holdout_sources_are_files_of_their_own(tmp_path: Path) -> None:
    held = {"path": str(rows_file(tmp_path / "held.jsonl", 3, first=90)), "format": "alpaca", "name": "held"}
    found = prepared(recipe(tmp_path, rows_file(tmp_path / "a.jsonl", 5), holdout_sources=(held,)))
    assert (len(found.train), len(found.holdout)) == (5, 3)
    assert found.holdout.labels == ("held",)


def test_a_cache_hit_is_identical(tmp_path: Path) -> None:
    some = recipe(tmp_path, rows_file(tmp_path / "a.jsonl"), holdout=3)
    first, second = prepared(some), prepared(some)
    assert (first.cached, second.cached) == (False, True)
    assert first.key == second.key
    assert same(first.train, second.train)
    assert same(first.holdout, second.holdout)
    assert first.report == second.report
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.key]  # nothing half-written beside it


def test_the_key_changes_with_what_matters_and_with_nothing_else(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl")

    def key(**changes: Any) -> str:
        some = recipe(tmp_path, path, **changes)
        return data_key(some, encoder_of(some), byte_level())[0]

    base = key()
    assert key(cache_dir=str(tmp_path / "elsewhere")) == base
    assert key(train={"learning_rate": 0.5, "epochs": 9.0, "tokens_per_device": 999, "examples_per_step": 1}) == base
    changed = [
        key(max_length=32),
        key(overflow="drop"),
        key(holdout=2),
        key(train={"seed": 4}),
        key(template="alpaca"),
        base,
    ]
    assert len(set(changed)) == len(changed)
    rows_file(path, first=1)
    assert key() not in changed
