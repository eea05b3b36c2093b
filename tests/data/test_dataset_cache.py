"""Prepared data on disk: found again for the same inputs only, and never loaded unless it was wholly written."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.data import dataset
from sft.data.dataset import Prepared, data_key
from sft.recipe import DataSection, Recipe
from tests.builders import byte_level
from tests.data.rows import alpaca, encoder_of, equal, recipe, run, write
from tests.data.talks import letters

ROOT = Path(dataset.__file__).parents[2]


def test_a_second_run_reads_the_same_arrays_and_report_from_the_cache(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [*alpaca(*"abcdefgh"), "not json"])
    made = recipe(tmp_path, rows, data__holdout=2, data__max_drop_share=0.2)
    first, second = run(made), run(made)
    assert (first.cached, second.cached) == (False, True)
    assert equal(first.train, second.train)
    assert equal(first.holdout, second.holdout)
    assert (first.report, first.key) == (second.report, second.key)
    assert isinstance(second.train.ids, np.memmap)
    assert not second.train.ids.flags.writeable
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.key]


def key_of(made: Recipe, tokenizer: Any = None) -> str:
    return data_key(made, encoder_of(made, tokenizer), tokenizer or letters())[0]


@pytest.mark.parametrize(
    "change",
    [
        {"template__name": "plain"},
        {"template__system": "Be kind."},
        {"template__train_on": "last"},
        {"data__max_length": 511},
        {"data__overflow": "drop"},
        {"data__max_drop_share": 0.5},
        {"data__holdout": 1},
        {"data__holdout": 0.1},
        {"train__seed": 1},
    ],
)
def test_the_key_changes_with_whatever_the_rows_depend_on(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = write(tmp_path / "rows.jsonl", alpaca("a", "b"))
    assert key_of(recipe(tmp_path, rows)) != key_of(recipe(tmp_path, rows, **change))


def test_the_key_changes_with_sources_bytes_and_tokenizer(tmp_path: Path) -> None:
    rows, other = (write(tmp_path / name, alpaca("a", "b")) for name in ("rows.jsonl", "other.jsonl"))
    made = recipe(tmp_path, rows)
    options: list[dict[str, Any]] = [
        {"weight": 2.0},
        {"limit": 1},
        {"name": "x"},
        {"format": "auto"},
        {"columns": {"output": "output"}},
    ]
    keys = [key_of(recipe(tmp_path, {"path": rows, **option})) for option in options]
    keys += [key_of(made), key_of(recipe(tmp_path, rows, other)), key_of(recipe(tmp_path, other))]
    keys += [key_of(recipe(tmp_path, rows, data__holdout_sources=({"path": str(other)},)))]
    keys += [key_of(made, byte_level()), key_of(made, byte_level(400))]
    renamed = letters()
    renamed.eos_token = "<|im_end|>"
    keys += [key_of(made, renamed)]
    write(rows, alpaca("a", "c"))
    keys += [key_of(made)]
    assert len(set(keys)) == len(keys)


def test_the_key_does_not_change_with_the_rest(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", alpaca("a", "b"))
    key = key_of(recipe(tmp_path, rows))
    changes: tuple[dict[str, Any], ...] = (
        {"data__cache_dir": str(tmp_path / "elsewhere")},
        {"train__learning_rate": 0.5},
        {"train__examples_per_step": 7},
        {"train__tokens_per_device": 4096},
        {"output__dir": "elsewhere"},
        {"output__save_every": 3},
        {"model__name_or_path": "other"},
    )
    for change in changes:
        assert key_of(recipe(tmp_path, rows, **change)) == key
    os.utime(rows, (1, 1))
    assert key_of(recipe(tmp_path, rows)) == key


def cached_folder(tmp_path: Path) -> tuple[Recipe, Prepared, Path]:
    made = recipe(tmp_path, write(tmp_path / "rows.jsonl", alpaca("a", "b", "c")), data__holdout=1)
    first = run(made)
    return made, first, tmp_path / "cache" / first.key


@pytest.mark.parametrize("name", ["train/ids.npy", "train/mask.npy", "holdout/offsets.npy", "train/names.json", "report.json"])
@pytest.mark.parametrize("fault", ["cut", "changed", "gone", "emptied"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, name: str, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    made, first, folder = cached_folder(tmp_path)
    path = folder / name
    data = path.read_bytes()
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-1], "changed": data[:-1] + bytes([data[-1] ^ 1]), "emptied": b""}[fault])
    with caplog.at_level(logging.WARNING):
        again = run(made)
    assert not again.cached
    assert equal(again.train, first.train)
    told = [record.message for record in caplog.records]
    assert told == [] if (name, fault) == ("report.json", "gone") else all("is damaged" in message for message in told)
    third = run(made)
    assert third.cached
    assert equal(third.train, first.train)
    assert [path.name for path in folder.parent.iterdir()] == [first.key]


def test_a_killed_write_leaves_nothing_that_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(tmp_path, write(tmp_path / "rows.jsonl", alpaca("a", "b", "c")))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process does not tidy up
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(made)
    assert [path.name[:9] for path in (tmp_path / "cache").iterdir()] == [".partial-"]
    assert not run(made).cached
    assert run(made).cached


def test_the_report_is_the_last_file_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(tmp_path, write(tmp_path / "rows.jsonl", alpaca("a", "b", "c")))
    seen: list[list[str]] = []
    rename = Path.rename

    def look(self: Path, target: Path) -> Path:
        files = [path for path in self.rglob("*") if path.is_file()]
        seen.append(sorted(path.relative_to(self).as_posix() for path in files))
        assert max(files, key=lambda path: path.stat().st_mtime_ns).name == "report.json"
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", look)
    run(made)
    arrays = [f"{part}/{name}" for part in ("holdout", "train") for name in
              ("ids.npy", "mask.npy", "names.json", "offsets.npy", "source_of.npy")]  # fmt: skip
    assert seen == [sorted([*arrays, "report.json"])]


def test_another_process_that_was_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, first, folder = cached_folder(tmp_path)
    before = (folder / "report.json").stat().st_ino
    monkeypatch.setattr(dataset, "_read_cache", _missing_once(dataset._read_cache))
    late = run(made)
    assert not late.cached
    assert equal(late.train, first.train)
    assert (folder / "report.json").stat().st_ino == before
    assert [path.name for path in folder.parent.iterdir()] == [first.key]


def _missing_once(read: Any) -> Any:
    asked: list[int] = []

    def look(*args: Any) -> Any:
        asked.append(1)
        return None if len(asked) == 1 else read(*args)

    return look


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = recipe(tmp_path, write(tmp_path / "rows.jsonl", alpaca("a", "b", "c")))

    def refuse(self: Path, _: Path) -> None:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "rename", refuse)
    assert len(run(made).train) == 3
    assert "will be prepared again next time" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


PROGRAM = """
import sys
from pathlib import Path
from tests.data.rows import recipe, run
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
made = run(recipe(folder, folder / "rows.jsonl", data__holdout=5))
print(made.key, len(made.train), len(made.holdout), int(made.train.ids.sum()))
"""


def test_two_processes_at_once_leave_one_folder(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", alpaca(*(f"answer {i}" for i in range(300))))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both: list[Any] = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(told) == 1
    final = run(recipe(tmp_path, tmp_path / "rows.jsonl", data__holdout=5))
    assert final.cached
    assert f"{final.key} 295 5 {int(final.train.ids.sum())}" == told.pop().strip()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [final.key]


def test_the_cache_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = DataSection.model_validate({"sources": ({"path": "a"},), "max_length": 8})
    monkeypatch.setenv("VICUGNA_CACHE", str(tmp_path))
    assert dataset.cache_root(data) == tmp_path
    monkeypatch.delenv("VICUGNA_CACHE")
    assert dataset.cache_root(data) == Path.home() / ".cache" / "vicugna"
    assert dataset.cache_root(data.model_copy(update={"cache_dir": "x"})) == Path("x")
