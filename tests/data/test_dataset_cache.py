"""Prepared data on disk: found again for the same inputs only, never loaded unless it was wholly written, gone on with if it was not."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.data import cache, dataset, sources, text_encoder
from sft.data.cache import CacheFolder
from sft.data.dataset import data_key
from sft.data.tokenize import RowEncoder
from sft.errors import DataError
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
    assert all(mapped(made.train.row(0)[0]) and mapped(made.holdout.row(1)[1]) for made in (first, second))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.key]
    assert first.train.shards == first.holdout.shards  # held-out rows are an index, not a copy


def mapped(array: Any) -> bool:
    """Whether an array is a view of a file that it cannot change."""
    root = array
    while isinstance(root, np.ndarray):
        root = root.base
    return isinstance(root, mmap.mmap) and not array.flags.writeable


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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four conversations, encoded two by two."""
    monkeypatch.setattr(dataset, "SHARD", 4)
    monkeypatch.setattr(dataset, "_BATCH", 2)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all conversations that are tokenised."""
    seen: list[str] = []
    trace = RowEncoder.trace

    def look(self: RowEncoder, conversations: Any) -> Any:
        seen.extend(conversation.id for conversation in conversations)
        return trace(self, conversations)

    monkeypatch.setattr(RowEncoder, "trace", look)
    return seen


def mixed(folder: Path, own: bool = False, **changes: Any) -> Recipe:
    """Fourteen rows, some dropped, some cut, some twice: three shards of four and one of two. Two more are held out if ``own``."""
    long = [{"id": f"long {i}", "instruction": "Say x.", "input": "", "output": "x" * 80} for i in range(2)]
    one = [*alpaca(*"abcd"), "not json", *long, *alpaca("\U00100005", "a")]
    two = [{"id": i, **alpaca(i)[0]} for i in "vwvxyz"]
    third = {"path": str(write(folder / "third.jsonl", alpaca("p", "q"))), "format": "alpaca"}
    holdout: dict[str, Any] = {"data__holdout_sources": (third,)} if own else {"data__holdout": 3}
    changes = {"data__max_length": 90, "data__max_drop_share": 0.5, **holdout, **changes}
    return recipe(folder, write(folder / "one.jsonl", one), write(folder / "two.jsonl", two), **changes)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


ARRAYS = ("ids", "marks", "mask", "name_offsets", "names", "offsets", "source_of", "trained")
SHARD_FILES = sorted([*(f"{name}.npy" for name in ARRAYS), "shard.json"])


def test_what_lies_in_a_folder(tmp_path: Path, small: None) -> None:
    first = run(mixed(tmp_path))
    shards = [f"rows-{number:05d}/{name}" for number in range(4) for name in SHARD_FILES]
    assert sorted(bytes_of(tmp_path / "cache" / first.key)) == ["held.npy", "report.json", *shards]
    own = run(mixed(tmp_path, own=True))
    shards += [f"holdout-00000/{name}" for name in SHARD_FILES]
    assert sorted(bytes_of(tmp_path / "cache" / own.key)) == sorted(["report.json", *shards])


@pytest.mark.parametrize("own", [False, True])
def test_rows_drops_and_report_do_not_depend_on_the_shards(tmp_path: Path, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(mixed(tmp_path, own=own))
    assert whole.report["drops"]["changed"] == {"repeated_id": 1, "truncated": 2}
    assert whole.report["drops"]["counts"] == {"invalid_json": 1, "private_use_character": 1}
    for size in (1, 3, 4, 13, 14):
        monkeypatch.setattr(dataset, "SHARD", size)
        made = run(mixed(tmp_path, own=own, data__cache_dir=str(tmp_path / f"shards of {size}")))
        assert len(made.train.shards) == -(-14 // size)
        assert equal(made.train, whole.train)
        assert equal(made.holdout, whole.holdout)
        assert (made.report, made.key) == (whole.report, whole.key)


FILES = [
    "rows-00001/shard.json",
    *(f"rows-00001/{name}.npy" for name in ARRAYS),
    "rows-00003/ids.npy",
    "held.npy",
    "report.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["cut", "changed", "gone", "emptied"])
def test_a_damaged_shard_alone_is_made_again(
    tmp_path: Path, name: str, fault: str, small: None, encoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = run(mixed(tmp_path, data__cache_dir=str(tmp_path / "elsewhere")))
    first = run(mixed(tmp_path))  # its own files are damaged under it: not to be looked at again
    folder = tmp_path / "cache" / first.key
    before, inodes = bytes_of(folder), {path: path.stat().st_ino for path in folder.glob("*")}
    path, data = folder / name, before[name]
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-1], "changed": data[:-1] + bytes([data[-1] ^ 1]), "emptied": b""}[fault])
    every, encoded[:] = encoded[14:], []
    with caplog.at_level(logging.WARNING):
        again = run(mixed(tmp_path))
    assert not again.cached
    assert equal(again.train, wanted.train)
    assert again.report == wanted.report
    hurt = path.parent if path.parent != folder else path
    told = [record.message for record in caplog.records]
    silent = (name, fault) == ("report.json", "gone")  # which is what a stopped preparation looks like
    assert told == ([] if silent else [f"{hurt}: this prepared data is damaged; it is made again"])
    assert encoded == {"rows-00001": every[4:8], "rows-00003": every[12:]}.get(hurt.name, [])
    assert bytes_of(folder) == before
    assert [place for place, inode in inodes.items() if place.stat().st_ino != inode and place.is_dir()] == (
        [hurt] if hurt.is_dir() else []
    )
    assert run(mixed(tmp_path)).cached


def test_a_lost_shard_is_made_again(tmp_path: Path, small: None, caplog: pytest.LogCaptureFixture) -> None:
    first = run(mixed(tmp_path))
    folder = tmp_path / "cache" / first.key
    before = bytes_of(folder)
    shutil.rmtree(folder / "rows-00002")
    assert not run(mixed(tmp_path)).cached
    assert "rows-00002: this prepared data is damaged" in caplog.text
    assert bytes_of(folder) == before


def test_any_changed_byte_is_found(tmp_path: Path, small: None) -> None:
    first = run(mixed(tmp_path))
    path = tmp_path / "cache" / first.key
    for name, data in bytes_of(path).items():
        for at in {0, len(data) - 1, *range(5, len(data), 149)}:
            (path / name).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            assert CacheFolder(path, first.key).load() is None, (name, at)
        (path / name).write_bytes(data)
    assert CacheFolder(path, first.key).load() is not None


def test_the_folder_of_another_key_is_not_taken(tmp_path: Path, small: None, encoded: list[str]) -> None:
    first = run(mixed(tmp_path))
    other = mixed(tmp_path, template__name="plain")
    key = key_of(other)
    shutil.copytree(tmp_path / "cache" / first.key, tmp_path / "cache" / key)
    encoded.clear()
    made = run(other)
    assert (made.key, made.cached, len(encoded)) == (key, False, 14)
    shutil.rmtree(tmp_path / "cache")
    assert equal(made.train, run(other).train)


def test_shards_of_other_rows_are_not_taken(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set on the Hub whose revision is not pinned may change between a stop and the start behind it; its name does not."""
    monkeypatch.setattr(sources, "fingerprint", lambda _: {"hub": "org/set"})
    made = mixed(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stopped(lambda: run(made), Path, "rename", 3)
    write(tmp_path / "two.jsonl", [{"id": i, **alpaca(i)[0]} for i in "vwvxyZ"])
    write(tmp_path / "one.jsonl", alpaca(*"abcDefgh"))
    went_on = run(made)
    shutil.rmtree(tmp_path / "cache")
    straight = run(made)
    assert equal(went_on.train, straight.train)
    assert went_on.report == straight.report


def test_a_report_knows_its_shards(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "fingerprint", lambda _: {"hub": "org/set"})
    first = run(mixed(tmp_path))
    folder = tmp_path / "cache" / first.key
    made = mixed(tmp_path, data__cache_dir=str(tmp_path / "other"))
    write(tmp_path / "two.jsonl", [{"id": i, **alpaca(i)[0]} for i in "vwvxyZ"])
    assert run(made).key == first.key
    shutil.rmtree(folder / "rows-00003")
    shutil.copytree(tmp_path / "other" / first.key / "rows-00003", folder / "rows-00003")
    assert CacheFolder(folder, first.key).load() is None


# -- stopped


def stopped(work: Callable[[], Any], owner: Any, name: str, call: int) -> Any:
    """Run something that is interrupted where it calls a function for the ``call``-th time; nothing is tidied up."""
    real, calls = getattr(owner, name), iter(range(1, 10_000))

    def strike(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, strike)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process does not tidy up
        return work()


# Where it stops, and how many shards stand then.
STOPS: list[tuple[Any, str, int, int]] = [
    (RowEncoder, "trace", 1, 0),
    (RowEncoder, "trace", 4, 1),
    (np, "save", 1, 0),
    (np, "save", 5, 0),
    (np, "save", 8 * 2 + 3, 2),
    (cache, "_sealed", 1, 0),
    (Path, "rename", 1, 0),
    (Path, "rename", 4, 3),
    (np, "save", 8 * 4 + 1, 4),
    (Path, "replace", 1, 4),
    (Path, "replace", 2, 4),
]


@pytest.mark.parametrize(("owner", "name", "call", "stand"), STOPS)
@pytest.mark.parametrize("interned_from", [None, 250])
def test_stopped_and_gone_on_is_straight(
    tmp_path: Path,
    owner: Any,
    name: str,
    call: int,
    stand: int,
    interned_from: int | None,
    small: None,
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if interned_from is not None:
        monkeypatch.setattr(text_encoder, "INTERNED_FROM", interned_from)
    straight = run(mixed(tmp_path, data__cache_dir=str(tmp_path / "straight")))
    assert straight.report["encoded"].startswith("words interned" if interned_from else "by the tokenizer")
    every = list(encoded)
    with pytest.raises(KeyboardInterrupt):
        stopped(lambda: run(mixed(tmp_path)), owner, name, call)
    encoded.clear()
    went_on = run(mixed(tmp_path))
    assert not went_on.cached
    assert encoded == every[4 * stand :]
    assert went_on.report == straight.report
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "straight")
    assert run(mixed(tmp_path)).cached


def test_refused_data_leaves_nothing(tmp_path: Path, small: None) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        run(mixed(tmp_path, data__max_drop_share=0.01))
    with pytest.raises(DataError, match=r"data\.max_length is 90; raise it"):
        run(mixed(tmp_path, data__overflow="error"))
    with pytest.raises(DataError, match="asks for 99 rows"):
        run(mixed(tmp_path, data__holdout=99))
    assert list((tmp_path / "cache").iterdir()) == []


PROGRAM = """
import os, signal, sys
from pathlib import Path
import numpy as np
from sft.data import dataset
from tests.data.rows import recipe, run
folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
dataset.SHARD = 64
save, calls = np.save, iter(range(1, 1000))

def strike(*args, **kwargs):
    save(*args, **kwargs)
    if next(calls) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

np.save = strike
print("ready", flush=True)
sys.stdin.readline()
made = run(recipe(folder, folder / "rows.jsonl", data__holdout=5))
print(made.key, len(made.train), len(made.holdout), int(made.train.flat().ids.sum()))
"""


def start(folder: Path, kill_at: int = 0) -> Any:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(kill_at)], cwd=ROOT, **pipes)


def test_processes_at_once_leave_one_folder_though_one_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SHARD", 64)
    rows = write(tmp_path / "rows.jsonl", alpaca(*(f"answer {i}" for i in range(300))))
    made = recipe(tmp_path, rows, data__holdout=5)
    alone = start(tmp_path, 8 * 3 + 2)
    alone.communicate("go\n", timeout=120)
    assert alone.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "cache").iterdir()
    assert [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")] == [
        f"rows-0000{i}" for i in range(3)
    ]
    assert len(list(folder.glob(".partial-*/*.npy"))) == 2
    together = [start(tmp_path), start(tmp_path)]
    assert [process.stdout.readline() for process in together] == ["ready\n"] * 2
    for process in together:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=120)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert told[0] == told[1]
    final = run(made)
    assert final.cached
    assert f"{final.key} 295 5 {int(final.train.flat().ids.sum())}" == told[0].strip()
    straight = run(made.model_copy(update={"data": made.data.model_copy(update={"cache_dir": str(tmp_path / "straight")})}))
    assert (final.report, final.key) == (straight.report, straight.key)
    left = {name: data for name, data in bytes_of(tmp_path / "cache").items() if "/.partial-" not in name}
    assert left == bytes_of(tmp_path / "straight")


# -- two at once, and places that cannot be written


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process to which nothing is there until it has made it."""
    load, take, asked = CacheFolder.load, CacheFolder.take, set[int]()

    def look(self: CacheFolder, part: str, number: int) -> Any:
        first = number not in asked
        asked.add(number)
        return None if first else take(self, part, number)

    monkeypatch.setattr(CacheFolder, "load", lambda _: None)
    monkeypatch.setattr(CacheFolder, "take", look)
    yield
    monkeypatch.setattr(CacheFolder, "load", load)
    monkeypatch.setattr(CacheFolder, "take", take)


def test_another_process_that_was_first_wins(tmp_path: Path, small: None, request: pytest.FixtureRequest) -> None:
    first = run(mixed(tmp_path))
    folder = tmp_path / "cache" / first.key
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    request.getfixturevalue("late")
    second = run(mixed(tmp_path))
    assert not second.cached
    assert equal(second.train, first.train)
    assert second.report == first.report
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


def test_what_is_removed_while_it_is_written_is_found_in_its_place(
    tmp_path: Path,
    small: None,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A process that finishes clears away what others have begun."""
    first = run(mixed(tmp_path))
    request.getfixturevalue("late")
    seal = cache._sealed

    def clear(value: Any) -> str:
        for left in (tmp_path / "cache" / first.key).glob(".partial-*"):
            shutil.rmtree(left)
        return seal(value)

    monkeypatch.setattr(cache, "_sealed", clear)
    second = run(mixed(tmp_path))
    assert equal(second.train, first.train)
    assert caplog.text == ""


def _refuse(self: Path, _: Path) -> None:
    raise FileNotFoundError(self)


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = run(mixed(tmp_path, data__cache_dir=str(tmp_path / "elsewhere")))
    monkeypatch.setattr(Path, "rename", _refuse)
    assert equal(run(mixed(tmp_path)).train, wanted.train)
    assert [record.message.split(": ")[1] for record in caplog.records] == [CANNOT]
    assert list((tmp_path / "cache").iterdir()) == []


CANNOT = "cannot be written, so this data will be prepared again next time"


@pytest.mark.parametrize("call", [9, 8 * 3 + 4, 8 * 4 + 1])
def test_a_disk_that_is_full_in_the_middle_costs_time_only(
    tmp_path: Path, small: None, encoded: list[str], caplog: pytest.LogCaptureFixture, call: int
) -> None:
    wanted = run(mixed(tmp_path, data__cache_dir=str(tmp_path / "elsewhere")))
    save, calls = np.save, iter(range(1, 1000))

    def full(*args: Any, **kwargs: Any) -> None:
        if next(calls) >= call:
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "save", full)
        made = run(mixed(tmp_path))
    assert equal(made.train, wanted.train)
    assert equal(made.holdout, wanted.holdout)
    assert made.report == wanted.report
    assert [record.message.split(": ")[1] for record in caplog.records] == [CANNOT]
    encoded.clear()
    assert equal(run(mixed(tmp_path)).train, wanted.train)
    assert len(encoded) == 14 - min(14, 4 * ((call - 1) // 8))
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "elsewhere")


def test_the_cache_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = DataSection.model_validate({"sources": ({"path": "a"},), "max_length": 8})
    monkeypatch.setenv("VICUGNA_CACHE", str(tmp_path))
    assert dataset.cache_root(data) == tmp_path
    monkeypatch.delenv("VICUGNA_CACHE")
    assert dataset.cache_root(data) == Path.home() / ".cache" / "vicugna"
    assert dataset.cache_root(data.model_copy(update={"cache_dir": "x"})) == Path("x")
