"""Sources: which files, in which order, under which fingerprint; and every row either a conversation or a counted drop."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data import sources
from sft.data.conversation import Conversation, Drop, Drops, Turn
from sft.data.jsonl import read_rows
from sft.data.sources import _Ids, fingerprint, read_source, resolve_files
from sft.errors import DataError
from sft.recipe import Source

GOOD = {"src": "q", "tgt": "r"}
TURNS = (Turn("user", "q"), Turn("assistant", "r"))


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"src": "q", "tgt": "r"}\n')


def _lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _read(source: Source) -> tuple[list[Conversation], Drops]:
    drops = Drops()
    return list(read_source(source, drops)), drops


def _names(folder: Path, pattern: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in resolve_files(Source(path=str(folder / pattern)))]


def test_files_folders_and_globs(tmp_path: Path) -> None:
    _fill(
        tmp_path,
        "b.jsonl",
        "a.json",
        "c.parquet",
        "d.jsonl.gz",
        "sub/e.json.zst",
        "README.md",
        ".f.json",
        ".cache/g.json",
        "h[1].json",
    )
    everything = ["a.json", "b.jsonl", "c.parquet", "d.jsonl.gz", "h[1].json", "sub/e.json.zst"]
    assert _names(tmp_path, "") == everything
    assert _names(tmp_path, "b.jsonl") == ["b.jsonl"]
    assert _names(tmp_path, "*.json*") == ["a.json", "b.jsonl", "d.jsonl.gz", "h[1].json"]
    assert _names(tmp_path, "**/*.zst") == ["sub/e.json.zst"]
    assert _names(tmp_path, "h[1].json") == ["h[1].json"]  # the file itself wins over the glob


def test_nothing_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^train/\*\.json: no such file, and no file matches it \(looked from {tmp_path}\)$"):
        resolve_files(Source(path="train/*.json"))
    _fill(tmp_path, "empty/README.md")
    with pytest.raises(DataError, match=r"^empty: a folder without \.json, .* files \(looked from"):
        resolve_files(Source(path="empty"))
    with pytest.raises(DataError, match=r"README\.md: the ending of this file is not known \(\.json, .*\); narrow 'empty/\*'"):
        resolve_files(Source(path="empty/*"))


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_the_same_file_twice(tmp_path: Path, link: Any) -> None:
    _fill(tmp_path, "a.jsonl")
    link(tmp_path / "b.jsonl", tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl and .*b\.jsonl are the same file; remove one or narrow the pattern"):
        resolve_files(Source(path=str(tmp_path)))


def test_a_file_beside_its_packed_copy(tmp_path: Path) -> None:
    _fill(tmp_path, "a.jsonl", "a.jsonl.gz")
    with pytest.raises(DataError, match=r"a\.jsonl and .*a\.jsonl\.gz are the same file"):
        resolve_files(Source(path=str(tmp_path)))


def test_fingerprint_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    _fill(tmp_path, "here/x/a.jsonl", "there/x/a.jsonl")
    data = b"\n" * 3_000_000
    for place in ("here", "there"):
        (tmp_path / place / "b.json").write_bytes(data)
    small = {"name": "x/a.jsonl", "bytes": 25, "sha256": hashlib.sha256(b'{"src": "q", "tgt": "r"}\n').hexdigest()}
    big = {"name": "b.json", "bytes": 3_000_000, "sha256": hashlib.sha256(data).hexdigest()}
    here = fingerprint(Source(path=str(tmp_path / "here"), name="mine"))
    assert here == {"label": "mine", "files": [big, small]}
    assert fingerprint(Source(path=str(tmp_path / "there"), name="mine")) == here
    assert fingerprint(Source(path=str(tmp_path / "here/x/a.jsonl"))) == {
        "label": "a.jsonl",
        "files": [{**small, "name": "a.jsonl"}],
    }


def test_fingerprint_of_the_hub() -> None:
    place = {"hub": "org/set", "subset": "en", "revision": "abc", "split": "test"}
    assert fingerprint(Source(**place)) == {"label": "org/set", **place}  # type: ignore[arg-type]


def test_rows_come_in_file_order_with_ids_and_places(tmp_path: Path) -> None:
    _lines(tmp_path / "b.jsonl", GOOD, {**GOOD, "id": 5})
    (tmp_path / "a.json").write_text(json.dumps([GOOD, GOOD, {**GOOD, "id": "x"}]))
    pq.write_table(pa.Table.from_pylist([{**GOOD, "id": "x"}, {**GOOD, "id": None}]), tmp_path / "c.parquet")
    read, drops = _read(Source(path=str(tmp_path), name="mine"))
    a, b, c = (str(tmp_path / name) for name in ("a.json", "b.jsonl", "c.parquet"))
    places = [f"{a}:1", f"{a}:1:28", f"{a}:1:54", f"{b}:1", f"{b}:2", f"{c}#0", f"{c}#1"]
    ids = [f"{a}:1", f"{a}:1:28", "x", f"{b}:1", "5", f"{c}#0", f"{c}#1"]  # the second "x" goes by its place
    assert [(c, c.where) for c in read] == [
        (Conversation(i, TURNS, "mine"), place) for i, place in zip(ids, places, strict=True)
    ]
    assert drops == Drops(changed=drops.changed)
    assert drops.changed == {"repeated_id": 1}


def test_several_conversations_of_a_row(tmp_path: Path) -> None:
    instances = [{"input": "", "output": "r"}] * 2
    path = _lines(
        tmp_path / "a.jsonl",
        {"id": "s", "instruction": "q", "instances": instances},
        {"instruction": "q", "instances": instances},
    )
    read, _ = _read(Source(path=str(path)))
    assert [(c.id, c.where) for c in read] == [
        ("s/0", f"{path}:1"), ("s/1", f"{path}:1"), (f"{path}:2/0", f"{path}:2"), (f"{path}:2/1", f"{path}:2"),
    ]  # fmt: skip
    assert {c.turns for c in read} == {TURNS}


def test_drops_say_which_row_and_why(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", "{broken", {"id": "n", "src": "q"}, GOOD, {**GOOD, "tgt": ""}, [], '{"a":1,"a":1}')
    read, drops = _read(Source(path=str(path)))
    assert [c.where for c in read] == [f"{path}:3"]
    assert drops.counts == {"invalid_json": 1, "missing_field": 1, "empty_answer": 1, "not_an_object": 1, "duplicate_key": 1}
    detail = "Expecting property name enclosed in double quotes at column 2"
    assert drops.examples["invalid_json"] == [Drop(f"{path}:1", "invalid_json", detail)]
    detail = "'tgt' is missing or null; 'columns' can map another name to it"
    assert drops.examples["missing_field"] == [Drop(f"{path}:2 (n)", "missing_field", detail)]
    assert drops.examples["not_an_object"] == [
        Drop(f"{path}:5", "not_an_object", "the row is a list; write an object with named fields")
    ]


def test_a_broken_list_has_a_reason_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"[{json.dumps(GOOD)},\n{{oops}}, {json.dumps(GOOD)}]")
    read, drops = _read(Source(path=str(path)))
    assert len(read) == 1
    assert drops.counts == {"broken_file": 1}
    assert drops.examples["broken_file"][0].detail.endswith("at line 2 column 2; the rest of the file is not read")


@pytest.mark.parametrize(("limit", "kept", "dropped"), [(1, 0, 1), (2, 1, 1), (3, 2, 1), (9, 2, 2), (None, 2, 2)])
@pytest.mark.parametrize("form", ["auto", "src_tgt"])
def test_limit_counts_rows_read(tmp_path: Path, limit: int | None, kept: int, dropped: int, form: Any) -> None:
    path = _lines(tmp_path / "a.jsonl", "{", GOOD, GOOD, "{")
    read, drops = _read(Source(path=str(path), limit=limit, format=form))
    assert (len(read), drops.total) == (kept, dropped)


def test_auto_tells_the_format_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _lines(tmp_path / "a.jsonl", "{", {"src": "no answer"}, GOOD)
    with caplog.at_level(logging.INFO, "sft.data.sources"):
        read, drops = _read(Source(path=str(path), name="mine"))
    assert len(read) == 1
    assert drops.counts == {"invalid_json": 1, "missing_field": 1}
    assert [record.getMessage() for record in caplog.records] == [f"mine: rows are read as src_tgt, told from {path}:3"]


def test_auto_gives_up_after_enough_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_DETECT_ROWS", 3)
    path = _lines(tmp_path / "a.jsonl", "{", {"x": 1, "y": 2}, {}, {}, GOOD)
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: no format fits the keys x, y; set 'format' \(alpaca, .*\) and map its fields"
    ):
        _read(Source(path=str(path)))
    with pytest.raises(DataError, match=r"b\.jsonl:1: no format fits a row that is no object; set 'format'"):
        _read(Source(path=str(_lines(tmp_path / "b.jsonl", "[]"))))


def test_auto_refuses_an_ambiguous_row(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", {**GOOD, "input": ["a"], "output": ["b"]})
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: the keys .* fit several formats \(parallel_lists, src_tgt\); set 'format' to one"
    ):
        _read(Source(path=str(path)))


def test_auto_with_nothing_readable_drops_everything(tmp_path: Path) -> None:
    read, drops = _read(Source(path=str(_lines(tmp_path / "a.jsonl", *["{"] * 150))))
    assert read == []
    assert drops.counts == {"invalid_json": 150}


@pytest.mark.parametrize("form", ["auto", "src_tgt"])
def test_columns_that_the_format_has_not_are_refused(tmp_path: Path, form: Any) -> None:
    path = _lines(tmp_path / "a.jsonl", {"src": "q", "answer": "r"})
    assert _read(Source(path=str(path), format=form, columns={"tgt": "answer"}))[0][0].turns == TURNS
    with pytest.raises(DataError, match="'columns' maps 'target', but the fields of format src_tgt are src, tgt, id"):
        _read(Source(path=str(path), format=form, columns={"tgt": "answer", "target": "answer"}))


ROWS = st.lists(
    st.sampled_from([GOOD, {**GOOD, "id": 1}, {"src": "q"}, {**GOOD, "tgt": " "}, [], 3, "{", '{"a":1,"a":2}', '{"a":NaN}'])
)


@settings(max_examples=80)
@given(rows=ROWS, name=st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.json"]))
def test_no_row_is_lost_silently(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], name: str) -> None:
    path = tmp_path_factory.mktemp("rows") / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    data = ("[" + ",\n".join(lines) + "]" if name == "a.json" else "\n".join(lines)).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    drops = Drops(keep=len(rows))
    read = list(read_source(Source(path=str(path), format="src_tgt"), drops))
    dropped = {drop.id.split(" ")[0] for drops_of in drops.examples.values() for drop in drops_of}
    raw = list(read_rows(path))
    assert len(read) + drops.total == len(raw)
    assert {c.where for c in read} | dropped == {row.where for row in raw}
    assert len({conversation.id for conversation in read}) == len(read)
    assert len(raw) == len(rows) or (name == "a.json" and drops.counts["broken_file"] == 1)


def _fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[Any]:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _fake_hub(monkeypatch, [GOOD, {"src": "q", "tgt": None}, {**GOOD, "id": "x"}])
    read, drops = _read(Source(hub="org/set", subset="en", split="test", revision="abc"))
    assert asked == [(("org/set",), {"name": "en", "split": "test", "revision": "abc"})]
    assert [(c, c.where) for c in read] == [
        (Conversation("org/set#0", TURNS, "org/set"), "org/set#0"),
        (Conversation("x", TURNS, "org/set"), "org/set#2"),
    ]
    assert drops.counts == {"missing_field": 1}


def test_a_hub_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_hub(monkeypatch, ValueError("Unknown split"))
    expected = r"org/set: cannot load this Hub data set \(subset none, split train, revision none\): Unknown split; check the name, .*network"
    with pytest.raises(DataError, match=expected):
        _read(Source(hub="org/set"))


def test_reading_files_imports_neither_datasets_nor_torch(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", GOOD)
    code = f"""
import sys
from sft.data.conversation import Drops
from sft.data.sources import fingerprint, read_source
from sft.recipe import Source
source = Source(path={str(path)!r})
assert len(list(read_source(source, Drops()))) == 1 and fingerprint(source)
print(sorted({{"datasets", "torch", "transformers", "pyarrow", "zstandard"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "[]\n"


def test_ids_are_told_apart_in_a_few_bytes_each() -> None:
    ids, rng = _Ids(), random.Random(0)
    known: set[str] = set()
    for number in (rng.randrange(30_000) for _ in range(60_000)):
        text = f"row {number}" if number else "\ud800"
        assert ids.add(text) == (text not in known)
        known.add(text)
    assert len(ids._slots) * ids._slots.itemsize <= 24 * len(known)
