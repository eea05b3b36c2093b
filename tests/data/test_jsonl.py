"""Rows out of files: the same rows from every layout, the right line for each, and a reason for each that cannot be read."""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data import chunks, jsonl
from sft.data.jsonl import RawRow, read_rows, write_jsonl_atomic
from sft.errors import DataError

# Surrogates cannot be written as UTF-8; everything else may occur, line separators and NUL too.
TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["\u2028", "\r\n", "\0", '"]},', "\ufeff"])
SCALAR = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUE, max_size=4), max_size=6)


def _compact(rows: list[Any]) -> str:
    return json.dumps(rows, separators=(",", ":"))


def _pretty(rows: list[Any]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)


def _lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


LAYOUTS: dict[str, tuple[str, Callable[[list[Any]], str]]] = {
    "list, compact": ("rows.json", _compact),
    "list, pretty": ("rows.json", _pretty),
    "object around a list, pretty": (
        "rows.json",
        lambda rows: json.dumps({"v": [1, {"data": 2}], "data": rows, "w": "]"}, indent=2),
    ),
    "object around a list, compact": ("rows.json", lambda rows: json.dumps({"v": [1, {"data": 2}], "data": rows, "w": "]"})),
    "lines": ("rows.jsonl", _lines),
    "lines with a byte order mark and CRLF": ("rows.jsonl", lambda rows: "\ufeff" + _lines(rows).replace("}\n", "}\r\n")),
    "packed lines": ("rows.jsonl.gz", _lines),
    "Zstandard lines": ("rows.jsonl.zst", _lines),
    "packed list": ("rows.json.gz", _pretty),
    "Zstandard list": ("rows.json.zst", _pretty),
}


def _write(path: Path, text: str) -> Path:
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
    elif path.suffix == ".zst":
        pack = zstandard.ZstdCompressor().compress
        data = pack(data[: len(data) // 2]) + pack(data[len(data) // 2 :])
    path.write_bytes(data)
    return path


def _marks(path: Path, rows: list[RawRow]) -> list[str]:
    return [row.where.removeprefix(f"{path}:") for row in rows]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60)
@given(rows=OBJECTS)
def test_every_layout_reads_back_identical(
    tmp_path_factory: pytest.TempPathFactory, layout: str, rows: list[dict[str, Any]]
) -> None:
    """Also when every read brings one byte, so that each token is cut everywhere."""
    name, render = LAYOUTS[layout]
    path = _write(tmp_path_factory.mktemp("rows") / name, render(rows))
    for chunk in (1, 7, 1 << 18):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "_CHUNK", chunk)
            read = list(read_rows(path))
        assert [row.error for row in read] == [None] * len(rows), f"{chunk} bytes at a time"
        assert [row.value for row in read] == rows, f"{chunk} bytes at a time"
        assert len({row.where for row in read}) == len(rows), f"{chunk} bytes at a time"


@settings(max_examples=60)
@given(rows=OBJECTS.map(lambda rows: [{"n": i, **row} for i, row in enumerate(rows)]))
def test_line_numbers(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    lines = _write(folder / "a.jsonl", _lines(rows))
    assert _marks(lines, list(read_rows(lines))) == [str(i + 1) for i in range(len(rows))]
    text = _pretty(rows)
    starts = [str(i) for i, line in enumerate(text.split("\n"), 1) if line == " {"]
    pretty = _write(folder / "b.json", text)
    assert _marks(pretty, list(read_rows(pretty))) == starts
    one_line = _write(folder / "c.json", _compact(rows))
    places = _marks(one_line, list(read_rows(one_line)))
    assert places[:1] == ["1"][: len(rows)]
    for place, row in zip(places[1:], rows[1:], strict=True):
        line, column = place.split(":")
        assert line == "1"
        assert json.JSONDecoder().raw_decode(_compact(rows), int(column) - 1)[0] == row


def test_a_json_file_may_hold_one_object_per_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.json", '\n {"a": 1}\n\n{"a": 2}\n{"a": \n{"data": [4]}\n')
    assert list(read_rows(path)) == [
        RawRow(f"{path}:2", {"a": 1}),
        RawRow(f"{path}:4", {"a": 2}),
        RawRow(f"{path}:5", None, "invalid_json: Expecting value at column 7"),
        RawRow(f"{path}:6", {"data": [4]}),
    ]


def test_a_bad_first_line_of_many_is_one_bad_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.json", '{"a": "cut}\n{"a": 2}\n')
    assert list(read_rows(path)) == [
        RawRow(f"{path}:1", None, "invalid_json: Unterminated string starting at column 7"),
        RawRow(f"{path}:2", {"a": 2}),
    ]


@pytest.mark.parametrize("text", ["", " \n\t\n", "[]", "[\n]\n", '{"data": []}'])
def test_files_without_rows(tmp_path: Path, text: str) -> None:
    assert list(read_rows(_write(tmp_path / "rows.json", text))) == []


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"a": 1 "b": 2}', "invalid_json: Expecting ',' delimiter at column 9"),
        ('{"a" 1}', "invalid_json: Expecting ':' delimiter at column 6"),
        ('  {"a": 1} x', "invalid_json: Extra data at column 12"),
        ('{"a": "tab\there"}', "invalid_json: Invalid control character at column 11"),
        ("[", "invalid_json: Expecting value at column 2; a list that spans lines belongs in a .json file"),
        ('{"a": 1, "b": 2, "a": 1}', "duplicate_key: the key 'a' is given twice in one object; keep one"),
        ('{"x": [{"é": 1, "é": 2}]}', "duplicate_key: the key 'é' is given twice in one object; keep one"),
        ('{"a": NaN}', "not_finite: NaN is not JSON; write null or a finite number"),
        ('{"a": [-Infinity]}', "not_finite: -Infinity is not JSON; write null or a finite number"),
        ('{"a": 1e999}', "not_finite: 1e999 is too large for a number"),
    ],
)
def test_a_bad_line_is_one_row_and_reading_goes_on(tmp_path: Path, line: str, error: str) -> None:
    path = _write(tmp_path / "rows.jsonl", f'{{"n": 1}}\n{line}\n{{"n": 3}}')
    read = list(read_rows(path))
    assert read == [RawRow(f"{path}:1", {"n": 1}), RawRow(f"{path}:2", None, error), RawRow(f"{path}:3", {"n": 3})]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("[" * 100_000, "invalid_json: Nested too deeply at column 1$"),
        ('{"a": ' + "9" * 5000 + "}", "invalid_json: A whole number of more than 4300 digits at column 1$"),
    ],
)
def test_monstrous_lines(tmp_path: Path, line: str, error: str) -> None:
    read = list(read_rows(_write(tmp_path / "rows.jsonl", f'{line}\n{{"n": 2}}\n')))
    assert re.match(error, str(read[0].error))
    assert read[1].value == {"n": 2}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_byte_that_is_not_utf8_costs_one_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [b'{"a": "\xc3\xa9"}', b'{"a": "caf\xe9"}', rb'{"a": "\udce9"}', b'{"a": 4}']
    path.write_bytes(b"\n".join(rows) if name.endswith("l") else b"[" + b",\n".join(rows) + b"]")
    assert list(read_rows(path)) == [
        RawRow(f"{path}:1", {"a": "é"}),
        RawRow(f"{path}:2", None, "not_utf8: the byte 0xe9 is not UTF-8; save the file as UTF-8"),
        RawRow(f"{path}:3", {"a": "\udce9"}),  # an escaped surrogate is valid JSON; the formats refuse it
        RawRow(f"{path}:4", {"a": 4}),
    ]


def test_faults_inside_an_item_do_not_end_a_list(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.json", '[\n{"a": 1, "a": 2},\n{"a": NaN},\n3\n]')
    assert list(read_rows(path)) == [
        RawRow(f"{path}:2", None, "duplicate_key: the key 'a' is given twice in one object; keep one"),
        RawRow(f"{path}:3", None, "not_finite: NaN is not JSON; write null or a finite number"),
        RawRow(f"{path}:4", 3),
    ]


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize(
    ("tail", "line", "error"),
    [
        ('{"b":\n 2 "c": 3},\n{"a": 4}]', 3, "Expecting ',' delimiter at line 4 column 4"),
        ('{"b": 2}\n{"c": 3}]', 4, "Expecting ',' or ']' at line 4 column 1"),
        ('{"b": 2},\n]', 4, "Illegal trailing comma before ']' at line 4 column 1"),
        ('{"b": 2}\n', 4, "Expecting ',' or ']', but the file ends at line 4 column 1"),
        ('{"b": "cut off', 3, "Unterminated string starting at line 3 column 7"),
        (" nonsense]", 3, "Expecting value at line 3 column 2"),
        ('{"b": 2}] []', 3, "Extra data after the end of the JSON value at line 3 column 11"),
    ],
)
def test_a_broken_list_says_where_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, tail: str, line: int, error: str
) -> None:
    monkeypatch.setattr(chunks, "_CHUNK", chunk)
    path = _write(tmp_path / "rows.json", '[\n{"a": 1},\n' + tail)
    read = list(read_rows(path))
    assert read[0] == RawRow(f"{path}:2", {"a": 1})
    assert read[-1] == RawRow(f"{path}:{line}", None, f"broken_file: {error}; the rest of the file is not read")
    assert [row.value for row in read[1:-1]] in ([], [{"b": 2}])


@pytest.mark.parametrize("chunk", [1_000, 4_500, 5_008, 1 << 18])
def test_numbers_of_pages_read_the_same_in_any_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """What is whole so far may have a fraction in the next chunk, and is then no whole number."""
    monkeypatch.setattr(chunks, "_CHUNK", chunk)
    path = _write(tmp_path / "rows.json", f'[{{"a": {"9" * 5000}.5}},\n{{"a": 1}},\n[{"9" * 5000}]]')
    read = list(read_rows(path))
    assert [(row.where, row.value) for row in read] == [(f"{path}:1", None), (f"{path}:2", {"a": 1}), (f"{path}:3", None)]
    assert str(read[0].error).startswith("not_finite: 999")
    whole = "broken_file: A whole number of more than 4300 digits at line 3 column 1; the rest of the file is not read"
    assert read[2].error == whole


def test_a_break_far_from_the_end_is_found_without_reading_the_rest(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.json", '[{"a" 1},' + '{"a": 1},' * 400_000)
    tracemalloc.start()
    read = list(read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.where for row in read] == [f"{path}:1"]
    assert peak < 2_500_000


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{\n "a": 1\n}', "One object over several lines, without a 'data' list, ends at line 3 column 2"),
        ('{\n "data": {}\n}', "A second 'data', or one that is no list, at line 2 column 10"),
        ('{\n "data": [],\n "data": []\n}', "A second 'data', or one that is no list, at line 3 column 10"),
        ('{\n "data": [] 3\n}', "Expecting ',' or '}' at line 2 column 13"),
        ("{\n 3: []\n}", "Expecting a key in double quotes at line 2 column 2"),
        ('{\n "data" []\n}', "Expecting ':' at line 2 column 9"),
    ],
)
def test_broken_objects_around_a_list(tmp_path: Path, text: str, error: str) -> None:
    read = list(read_rows(_write(tmp_path / "rows.json", text)))
    assert [row.error for row in read] == [f"broken_file: {error}; the rest of the file is not read"]


@pytest.mark.parametrize("render", [_pretty, _compact, _lines])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, render: Callable[[list[Any]], str]) -> None:
    rows = [{"instruction": "x" * 900, "n": n} for n in range(20_000)]
    path = _write(tmp_path / ("rows.jsonl" if render is _lines else "rows.json"), render(rows))
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_500_000 < path.stat().st_size // 7


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_PARQUET_BATCH", 2)
    rows = [{"a": n, "b": [{"c": str(n)}]} for n in range(5)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    assert list(read_rows(path)) == [RawRow(f"{path}#{n}", row) for n, row in enumerate(rows)]


def test_a_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match=r"rows\.parquet: not a sound \.parquet file \(after 0 rows\)"):
        list(read_rows(path))
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(DataError, match=r"two columns have the same name \(a, a\); rename one"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
def test_an_archive_that_was_cut_short_is_refused_not_shortened(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, _lines([{"n": n} for n in range(5000)]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"the compressed file is damaged or cut short .*; fetch it again"):
        list(read_rows(path))
    path.write_bytes(b"not packed at all")
    with pytest.raises(DataError, match="the compressed file is damaged or cut short"):
        list(read_rows(path))


def test_utf16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": 1}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="this file is UTF-16; save it as UTF-8"):
        list(read_rows(path))


def test_files_that_cannot_be_meant_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.csv: the ending of this file is not known; use one of \.json, \.jsonl"):
        read_rows(tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"rows\.jsonl: no such file"):
        read_rows(str(tmp_path / "rows.jsonl"))


@settings(max_examples=60)
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | SCALAR, max_size=3), max_size=5))
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_jsonl_atomic(path, rows) == len(rows)
    assert [row.value for row in read_rows(path)] == rows
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_written_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl_atomic(path, [{"b": "né", "a": 1}, {"cut": "\ud83d"}])
    assert path.read_bytes() == '{"b": "né", "a": 1}\n{"cut": "\\ud83d"}\n'.encode()


@pytest.mark.parametrize(("row", "why"), [({"a": float("nan")}, "Out of range float"), ({"a": {1, 2}}, "set is not JSON")])
def test_a_row_that_is_not_json_leaves_the_old_file(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl_atomic(path, [{"old": True}])
    with pytest.raises(DataError, match=f"row 1 cannot be written as JSON: .*{why}"):
        write_jsonl_atomic(path, [{"n": 0}, row])
    assert path.read_text() == '{"old": true}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
