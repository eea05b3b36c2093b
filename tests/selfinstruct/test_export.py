"""Exports: every row once, readable by the training side, never over anything, with an honest card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from selfinstruct.results.export import FORMATS, Format, export_run
from sft.data.conversation import Conversation, Drops
from sft.data.sources import read_source
from sft.errors import DataError
from sft.recipe import FormatName, Source
from tests.selfinstruct.finished import KEPT, write_run

READ_AS: dict[Format, FormatName] = {"alpaca": "alpaca", "sharegpt": "sharegpt", "messages": "messages", "parquet": "alpaca"}


def _turns(path: Path, format: Format) -> list[list[tuple[str, str]]]:
    """The exported folder, as the training side reads it, told nothing about its format."""
    drops = Drops()
    conversations: list[Conversation] = list(read_source(Source(path=str(path)), drops))
    assert not drops.counts
    told = list(read_source(Source(path=str(path), format=READ_AS[format]), drops))
    assert [c.turns for c in told] == [c.turns for c in conversations]
    return [[(turn.role, turn.content) for turn in conversation.turns] for conversation in conversations]


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_through_the_readers_of_the_training_side(tmp_path: Path, format: Format) -> None:
    exported = export_run(write_run(tmp_path / "run"), tmp_path / "out", format)
    assert exported.rows == len(KEPT)
    wanted = []
    for instruction, given, output in KEPT:
        if not given:
            asked = [("user", instruction)]
        elif READ_AS[format] == "alpaca":
            asked = [("user", instruction), ("input", given)]
        else:
            asked = [("user", f"{instruction}\n\n{given}")]
        wanted.append([*asked, ("assistant", output)])
    assert _turns(tmp_path / "out", format) == wanted


def test_many_rows_and_odd_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfinstruct.results.export._BATCH", 64)
    odd = '\u2028\u2029\x01\x1f\ufeff\U0001f999\U0010ffff \\ " </s> [INST] 中文\r\n'
    kept = [(f"Name number {n}. {odd}", odd if n % 2 else "", f"{n}{odd}") for n in range(300)]
    run = write_run(tmp_path / "run", kept=kept)
    for format in FORMATS:
        assert export_run(run, tmp_path / format, format).rows == len(kept)
        turns = _turns(tmp_path / format, format)
        assert [t[-1][1] for t in turns] == [output for _, _, output in kept]


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for format in FORMATS:
        first, second = (export_run(run, tmp_path / f"{format}{copy}", format) for copy in "ab")
        assert first.path.read_bytes() == second.path.read_bytes()
        assert first.card.read_bytes() == second.card.read_bytes()


def test_lineage_goes_along_in_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export_run(write_run(tmp_path / "run"), tmp_path / "out", "parquet")
    table = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["id"] for row in table] == [f"0-0-{item}" for item in range(len(KEPT))]
    assert json.loads(table[0]["lineage"]) == {"request": "ab", "round": 0}


@pytest.mark.parametrize("taken", ["file", "folder", "link"])
def test_nothing_is_overwritten(tmp_path: Path, taken: str) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    if taken == "file":
        out.write_text("mine")
    elif taken == "folder":
        out.mkdir()
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="already there; nothing is overwritten"):
        export_run(run, out, "alpaca")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows to export"):
        export_run(write_run(tmp_path / "empty", kept=[]), tmp_path / "out", "alpaca")
    run = write_run(tmp_path / "run", kept=[("Say it.", "", "a\ud800b")])
    with pytest.raises(DataError, match="row 0-0-0 holds a lone surrogate, which parquet cannot carry"):
        export_run(run, tmp_path / "out", "parquet")
    with pytest.raises(DataError, match="unknown export format 'csv'; use one of alpaca, sharegpt, messages, parquet"):
        export_run(run, tmp_path / "out", "csv")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot be made: No such file or directory"):
        export_run(run, tmp_path / "no" / "out", "alpaca")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]
    for format in ("alpaca", "sharegpt", "messages"):  # JSON can: escaped
        exported = export_run(run, tmp_path / format, format)
        assert b"a\\ud800b" in exported.path.read_bytes()


def test_the_card_tells_where_the_rows_come_from(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", changes={"licence_note": "Terms of the *teacher* apply.", "language": "en: [x"})
    card = export_run(run, tmp_path / "out", "messages", licence="cc-by-4.0").card.read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "language": ["en: [x"],
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "instruction-tuning", "self-instruct"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train.jsonl"}]}],
    }
    for line in (
        "| rows | 4, 1 of them with an input |",
        r"| teacher | recorded \| teacher |",
        "| prompt alpaca_en.jinja | fingerprint 0123456789abcdef |",
        "| tokens | 1000 asked, 500 answered |",
        "| cost | 0.5 USD |",
        "4 of 10 proposed tasks were accepted (40.0%).",
        "| parsing | 2 | 8 | missing_output 1, truncated 1 |",
        "| more than wanted | 1 | 4 | surplus 1 |",
        r"Terms of the \*teacher\* apply.",
        "Its provider's terms may restrict",
    ):
        assert line in body
