"""Stretches of files that are read where the work is done: the rows, places and faults of one reader, wherever the cuts are."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import pytest

from sft.curate.slices import Slice, count, cut, pieces_of, read_slices
from sft.data.jsonl import RawRow
from sft.data.sources import raw_rows
from sft.errors import DataError
from sft.recipe import Source

LINES = [
    b'{"id": 1}',
    b"",
    b"  \t\r",
    b'{"id": "\xe4\xb8\xad\xe6\x96\x87"}\r',
    b"not json",
    b'{"bad": "\xff"}',
    b'\xef\xbb\xbf{"id": "behind a mark that begins a file, which this line does not"}',
    b'{"a": 1, "a": 2}',
    b'   {"id": 7} x',
    b'"' + b"long " * 40 + b'"',
]


def _file(path: Path, dice: random.Random, lines: int, head: bytes = b"", tail: bytes = b"\n") -> None:
    path.write_bytes(head + b"\n".join(dice.choices(LINES, k=lines)) + tail)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dice = random.Random(0)
    _file(tmp_path / "a.jsonl", dice, 60)
    _file(tmp_path / "b.jsonl", dice, 41, head=b"\xef\xbb\xbf", tail=b"")
    (tmp_path / "c.jsonl").write_bytes(b"\n\n")
    (tmp_path / "d.jsonl").write_bytes(b"")
    _file(tmp_path / "e.jsonl", dice, 9, head=b"\xef\xbb\xbf\n", tail=b'\n{"id": "last"}')
    return tmp_path


def _slices(source: Source, size: int, rows: int) -> list[tuple[Slice, ...]]:
    pieces = pieces_of(source, size)
    assert pieces is not None
    return list(cut([count(piece) for piece in pieces], rows, source.limit))


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 24])
@pytest.mark.parametrize("rows", [1, 3, 25, 1000])
def test_slices_hold_the_rows_of_the_whole_in_parts_of_the_size_that_is_wanted(folder: Path, size: int, rows: int) -> None:
    source = Source(path=str(folder))
    wanted = list(raw_rows(source))
    assert {raw.error.partition(":")[0] for raw in wanted if raw.error} == {"invalid_json", "not_utf8", "duplicate_key"}
    found = [list(read_slices(slices)) for slices in _slices(source, size, rows)]
    assert list(chain(*found)) == wanted
    assert [len(some) for some in found[:-1]] == [rows] * (len(found) - 1)


@pytest.mark.parametrize(("limit", "rows"), [(1, 3), (10, 3), (10, 100), (9, 3)])
def test_no_more_rows_than_the_limit(folder: Path, limit: int, rows: int) -> None:
    source = Source(path=str(folder), limit=limit)
    found = list(chain(*(read_slices(slices) for slices in _slices(source, 64, rows))))
    assert found == list(raw_rows(source))[:limit]


def test_places_name_file_and_line_as_the_recipe_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(b'1\n\n2\n3\n\n\n"4"\n')
    (first, second) = _slices(Source(path="rows.jsonl"), 4, 2)
    assert first == (Slice("rows.jsonl", begin=0, line=1, skip=0, rows=2),)
    assert second == (Slice("rows.jsonl", begin=5, line=4, skip=0, rows=2),)
    assert list(read_slices(second)) == [RawRow("rows.jsonl:4", 3), RawRow("rows.jsonl:7", "4")]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz"])
def test_a_source_with_a_file_that_cannot_be_cut_is_not_cut(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text("1\n")
    (tmp_path / name).write_text("")
    assert pieces_of(Source(path=str(tmp_path))) is None
    assert pieces_of(Source(hub="someone/something")) is None


def test_faults_of_a_file_name_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n2\n", encoding="utf-16")
    with pytest.raises(DataError, match=rf"^{path}: this file is UTF-16; save it as UTF-8$"):
        list(read_slices([Slice(str(path), 0, 1, 0, 1)]))
    path.write_text("1\n2\n")
    with pytest.raises(DataError, match=rf"^{path}: it changed while it was read; run the command again$"):
        list(read_slices([Slice(str(path), 0, 1, 0, 3)]))
