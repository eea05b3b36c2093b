"""From files to rows on disk: nothing lost without a count, nothing loaded that was not wholly written."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.data.conversation import Drop, Drops
from sft.data.dataset import check_drops, choose_holdout
from sft.data.store import RowStore
from sft.errors import DataError
from sft.recipe import DataSection
from tests.data.rows import alpaca, recipe, run, write
from tests.data.talks import letters

# -- rows


def test_rows_ids_masks_and_counts_of_two_files(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [{"id": "first", **alpaca("yes")[0]}, *alpaca("no")])
    two = write(tmp_path / "two.jsonl", alpaca("maybe"))
    made = run(recipe(tmp_path, one, {"path": two, "name": "second file"}))
    assert made.train.labels == ("one.jsonl", "second file")
    assert made.train.source_of.tolist() == [0, 0, 1]
    assert list(made.train.names) == ["first", f"{one}:2", f"{two}:1"]
    # <|im_start|>user\n...<|im_end|>\n and the same of the answer, one token per byte; learnt: the answer and <|im_end|>
    assert made.train.lengths.tolist() == [(8 + 8) + (13 + 3), (8 + 7) + (13 + 2), (8 + 10) + (13 + 5)]
    assert made.train.trained.tolist() == [4, 3, 6]
    ids, mask = made.train.row(0)
    assert letters().decode(ids[mask].tolist()) == "yes<|im_end|>"
    assert (len(made.train), len(made.holdout), made.cached) == (3, 0, False)
    assert {k: made.report[k] for k in ("rows_in", "train_rows", "holdout_rows", "train_tokens", "trained_tokens")} == {
        "rows_in": 3, "train_rows": 3, "holdout_rows": 0, "train_tokens": 98, "trained_tokens": 13,
    }  # fmt: skip


def test_drops_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad = ['{"instruction": 1}', "not json", {"instruction": "q", "input": "", "output": "\U00100005"}]
    rows = write(tmp_path / "rows.jsonl", [*alpaca("a", "b", "c"), *bad, *alpaca("d")])
    made = run(recipe(tmp_path, rows, data__max_drop_share=0.5))
    assert len(made.train) == 4
    drops = made.report["drops"]
    assert sum(drops["counts"].values()) == 3
    assert drops["counts"]["invalid_json"] == drops["counts"]["private_use_character"] == 1
    assert drops["examples"]["invalid_json"][0][0] == f"{rows}:5"
    assert made.report["rows_in"] == 7


def test_more_drops_than_allowed_are_refused_with_an_example_of_each(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [*alpaca(*"abcdefgh"), "not json", "nor this"])
    with pytest.raises(DataError) as refusal:
        run(recipe(tmp_path, rows, data__max_drop_share=0.1))
    lines = str(refusal.value).splitlines()
    assert lines[0] == "2 of 10 rows (20.0%) cannot be used; data.max_drop_share allows 10.0%."
    assert lines[1].startswith(f"  invalid_json: 2, such as {rows}:9: ")
    assert lines[2] == "Mend the rows, or raise data.max_drop_share."
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(run(recipe(tmp_path, rows, data__max_drop_share=0.2)).train) == 8


def test_a_row_that_the_template_or_the_length_refuses_is_named_by_its_place(tmp_path: Path) -> None:
    two = [{"from": r, "value": "x"} for r in ("human", "gpt", "human", "gpt")]
    path = write(tmp_path / "rows.jsonl", [{"id": "mine", "conversations": two}, {"conversations": two[:2]}])
    rows = {"path": path, "format": "sharegpt"}
    with pytest.raises(DataError) as refusal:
        run(recipe(tmp_path, rows, template__name="alpaca_short"))
    assert str(refusal.value).splitlines()[1] == (
        f"  template_refused: 1, such as {path}:1 (mine): the template alpaca_short holds one answer, this row has 2: "
        "name one that holds many, such as vicuna_v1.1 or chatml"
    )
    with pytest.raises(DataError, match=rf"^{path}:1 \(mine\): \d+ tokens, data\.max_length is 20; raise it"):
        run(recipe(tmp_path, rows, data__max_length=20, data__overflow="error"))


def test_rows_left_out_on_request_are_no_fault_but_counted(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", alpaca("a", "b" * 50, "c" * 50))
    made = run(recipe(tmp_path, rows, data__max_length=60, data__overflow="drop", data__max_drop_share=0.0))
    assert (len(made.train), made.report["drops"]["counts"]) == (1, {"too_long": 2})


def test_no_rows_and_no_rows_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data sources hold no rows"):
        run(recipe(tmp_path, write(tmp_path / "none.jsonl", [])))
    rows = write(tmp_path / "same.jsonl", [{"id": str(i), **alpaca("a")[0]} for i in range(3)])
    with pytest.raises(DataError, match=r"no rows are left to train on: 3 read, 0 dropped \(none\), 3 held out"):
        run(recipe(tmp_path, rows, data__holdout=1))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_file_that_breaks_off_is_an_error_whatever_share_may_be_lost(tmp_path: Path, share: float) -> None:
    rows = tmp_path / "rows.json"
    text = json.dumps(alpaca(*"abcdefgh"), indent=1)
    rows.write_text(text[: text.index('"Say e."') + 3], encoding="utf-8")
    line = text[: text.index('"Say e."')].count("\n")  # on which the item starts: one before its first key, counted from 1
    with pytest.raises(DataError, match="nobody knows how many") as refusal:
        run(recipe(tmp_path, rows, data__max_drop_share=share))
    assert f"{rows}:{line}: " in str(refusal.value)
    assert len(run(recipe(tmp_path, {"path": rows, "limit": 4}, data__max_drop_share=share)).train) == 4


@pytest.mark.parametrize("content", [["not json"], []])
def test_a_source_that_gives_nothing_is_refused_however_small(tmp_path: Path, content: list[str]) -> None:
    good = write(tmp_path / "good.jsonl", alpaca(*(f"answer {i}" for i in range(200))))
    bad = write(tmp_path / "bad.jsonl", content)
    with pytest.raises(DataError, match=r"^bad\.jsonl: this source gives no rows to train on") as refusal:
        run(recipe(tmp_path, good, bad))
    assert ("invalid_json: 1" in str(refusal.value)) == bool(content)
    with pytest.raises(DataError, match=r"^bad\.jsonl: this source"):
        run(recipe(tmp_path, good, data__holdout_sources=({"path": str(good)}, {"path": str(bad)})))


def test_check_drops_alone() -> None:
    data = DataSection.model_validate({"sources": ({"path": "a"},), "max_length": 8, "max_drop_share": 0.5})
    drops = Drops()
    check_drops(drops, 1, data, [("a", 1)])
    drops.extend(Drop(f"a:{i}", "odd", "it is odd") for i in range(2))
    check_drops(drops, 4, data, [("a", 2)])
    with pytest.raises(DataError, match=r"2 of 3 rows \(66\.7%\)"):
        check_drops(drops, 3, data, [("a", 1)])


# -- held-out rows


def test_equal_rows_are_held_out_together(tmp_path: Path) -> None:
    answers = [f"answer {i % 10}" for i in range(40)]
    made = run(recipe(tmp_path, write(tmp_path / "rows.jsonl", alpaca(*answers)), data__holdout=0.25))
    assert len(made.holdout) == 12  # three groups of four are the first to reach ten

    def texts(store: RowStore) -> set[bytes]:
        return {store.row(i)[0].tobytes() for i in range(len(store))}

    assert not texts(made.train) & texts(made.holdout)
    assert len(texts(made.train)) + len(texts(made.holdout)) == 10
    assert made.train.labels == made.holdout.labels == ("rows.jsonl",)


def test_parts_of_a_split_row_are_held_out_together(tmp_path: Path) -> None:
    def talk(name: str) -> dict[str, Any]:
        turns = [{"role": r, "content": f"{name} {i} says hello"} for i in range(3) for r in ("user", "assistant")]
        return {"id": name, "messages": turns}

    rows = write(tmp_path / "rows.jsonl", [talk(name) for name in "abcdef"])
    source = {"path": rows, "format": "messages"}
    made = run(recipe(tmp_path, source, data__max_length=80, data__overflow="split", data__holdout=2))
    kept, held = ({name.split("#")[0] for name in store.names} for store in (made.train, made.holdout))
    assert (kept | held, kept & held) == (set("abcdef"), set())
    assert len(made.train) + len(made.holdout) == 18
    assert len(held) == 1


def test_held_out_rows_of_their_own_files(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", alpaca("a", "b"))
    other = write(tmp_path / "other.jsonl", alpaca("c"))
    made = run(recipe(tmp_path, rows, data__holdout_sources=({"path": str(other), "name": "own"},)))
    assert (len(made.train), len(made.holdout)) == (2, 1)
    assert (made.train.labels, made.holdout.labels) == (("rows.jsonl",), ("own",))


def test_choose_holdout_takes_groups_in_the_order_of_their_hashes() -> None:
    marks = np.asarray([5, 9, 5, 7, 9, 9, 3], dtype=np.uint64)
    ranked = sorted({5, 9, 7, 3}, key=lambda mark: hashlib.sha256(f"4:{mark}".encode()).digest())
    for wanted in range(7):
        held = choose_holdout(marks, wanted, seed=4)
        groups = set(marks[held].tolist())
        assert groups == set(ranked[: len(groups)])
        assert np.array_equal(held, np.isin(marks, list(groups)))
        assert held.sum() >= wanted
        last = ranked[len(groups) - 1] if groups else None
        assert wanted == 0 or held.sum() - (marks == last).sum() < wanted
    assert choose_holdout(marks, 0.5, seed=4).sum() >= 4
    with pytest.raises(DataError, match=r"data\.holdout asks for 7 rows, there are only 7"):
        choose_holdout(marks, 7, seed=4)


def test_choose_holdout_of_a_million_rows() -> None:
    marks = np.random.Generator(np.random.PCG64(1)).integers(0, 2**63, 1_000_000, dtype=np.uint64)
    begin = time.process_time()
    held = choose_holdout(marks, 0.1, seed=0)
    assert time.process_time() - begin < 3
    assert held.sum() == 100_000
