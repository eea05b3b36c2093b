"""A file or folder is whole or not there, whenever the process dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft import files


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    files.write_json(path, {"a": "é", "b": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é", "b": [1, 2]}
    with pytest.raises(TypeError):
        files.write_json(path, {"a": 1, "b": object()})  # half is written by then
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == "é"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sft.files.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"a": 3})
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == "é"


def test_every_file_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, final = tmp_path / f"{files.PARTIAL}x", tmp_path / "x"
    (partial / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (partial / name).write_text(name, encoding="utf-8")
    order: list[str] = []
    original = files._sync

    def sync(path: Path) -> None:
        order.append(path.relative_to(tmp_path).as_posix() + (" after" if final.exists() else ""))
        original(path)

    monkeypatch.setattr(files, "_sync", sync)
    files.publish(partial, final)
    assert order == [f"{files.PARTIAL}x/a", f"{files.PARTIAL}x/deep/b", ". after"]
    assert (final / "deep" / "b").read_text() == "deep/b"
    assert not partial.exists()


def test_a_folder_of_that_name_is_replaced(tmp_path: Path) -> None:
    for name, text in ((f"{files.PARTIAL}x", "new"), ("x", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / text).touch()
    files.publish(tmp_path / f"{files.PARTIAL}x", tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]


def test_free_space_is_that_of_the_disk(tmp_path: Path) -> None:
    assert 0 < files.free_bytes(tmp_path) < 2**60


def test_half_a_surrogate_pair_is_written_escaped_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_json(path, {"a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n "a": "é"\n}'
    files.write_json(path, {"a": "é \ud83d"})
    assert path.read_text(encoding="utf-8") == '{\n "a": "\\u00e9 \\ud83d"\n}'
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é \ud83d"}
