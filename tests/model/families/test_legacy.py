"""Legacy folders are read as data: what is damaged, missing or more than tensors is refused, and nothing of it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.errors import ModelError
from sft.model.families.legacy import open_legacy
from tests.model.families.tiny import write_legacy, write_tensors

CONFIG = {"model_type": "some"}
STATE = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(4, dtype=torch.float16), "c": torch.zeros(1)}


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("files", [1, 2])
def test_tensors_come_shard_by_shard_and_by_name(tmp_path: Path, suffix: str, files: int) -> None:
    legacy = open_legacy(write_legacy(tmp_path / "legacy", CONFIG, STATE, files, suffix))
    found = [list(legacy.tensors(shard)) for shard in legacy.shards]
    names = [[name for name, _ in shard] for shard in found]
    assert names == ([["a", "b", "c"]] if files == 1 else [["a", "c"], ["b"]])
    assert all(torch.equal(value, STATE[name]) and value.dtype == STATE[name].dtype for shard in found for name, value in shard)
    assert legacy.names == (None if files == 1 else frozenset(STATE))
    assert legacy.config == CONFIG


def test_safetensors_are_taken_before_pickles(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "legacy", CONFIG, STATE)
    write_tensors(folder / "model.safetensors", STATE)
    assert [shard.name for shard in open_legacy(folder).shards] == ["model.safetensors"]


def test_pickles_of_the_old_format_are_read(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "legacy", CONFIG, STATE)
    torch.save(STATE, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    legacy = open_legacy(folder)
    assert [name for name, _ in legacy.tensors(legacy.shards[0])] == ["a", "b", "c"]


def test_parameters_are_read_as_tensors(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "legacy", CONFIG, {"a": torch.nn.Parameter(torch.ones(2))})
    legacy = open_legacy(folder)
    assert [value.requires_grad for _, value in legacy.tensors(legacy.shards[0])] == [False]


class _Runs:
    """Makes a folder where pickle may call what it names."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_a_pickle_that_calls_something_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "legacy", CONFIG, STATE)
    torch.save({**STATE, "d": _Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    legacy = open_legacy(folder)
    with pytest.raises(ModelError, match=r"not read: .*Only a file of plain tensors is opened \(torch's weights_only\)"):
        list(legacy.tensors(legacy.shards[0]))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "held",
    [[torch.ones(2)], {"state_dict": dict(STATE)}, {"a": 3}, {1: torch.ones(2)}, {"a": torch.eye(2).to_sparse()}],
    ids=["list", "nested", "number", "numbered", "sparse"],
)
def test_a_pickle_of_other_things_is_refused(tmp_path: Path, held: object) -> None:
    folder = write_legacy(tmp_path / "legacy", CONFIG, STATE)
    torch.save(held, folder / "pytorch_model.bin")
    legacy = open_legacy(folder)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: (a table of names and tensors was expected|not read: )"):
        list(legacy.tensors(legacy.shards[0]))


@pytest.mark.parametrize("kept", [0, 40, -100])
@pytest.mark.parametrize(
    ("suffix", "said"), [("bin", r"pytorch_model\.bin: not read: "), ("safetensors", r"damaged: .*fetch it again")]
)
def test_damaged_weights_are_refused(tmp_path: Path, suffix: str, said: str, kept: int) -> None:
    state = {"a": torch.zeros(1000)}
    folder = write_legacy(tmp_path / "legacy", CONFIG, state, suffix=suffix)
    (shard,) = open_legacy(folder).shards
    shard.write_bytes(shard.read_bytes()[:kept])
    legacy = open_legacy(folder)
    with pytest.raises(ModelError, match=said):
        list(legacy.tensors(shard))


def test_folders_without_configuration_or_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json here; give the folder of a checkpoint"):
        open_legacy(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"no weights here \(model\.safetensors\.index\.json, .*fetch the whole checkpoint"):
        open_legacy(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"), [("{", r"config\.json: no JSON: "), ("[]", r"config\.json: a JSON object was expected")]
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        open_legacy(tmp_path)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"a": "../other.bin"}, r"names a file outside of its folder: '\.\./other\.bin'"),
        ({"a": "/etc/hostname"}, r"names a file outside of its folder: '/etc/hostname'"),
        ({"a": "sub/part.bin"}, r"names a file outside of its folder"),
        ({"a": ".."}, r"names \.\., which is not there"),
        ({"a": "pytorch_model-00003-of-00003.bin"}, r"names pytorch_model-00003-of-00003\.bin, which is not there"),
        ({}, r"no weight_map in it; fetch it again"),
        (None, r"no weight_map in it"),
        ([1], r"no weight_map in it"),
    ],
)
def test_an_index_must_name_files_that_are_there(tmp_path: Path, places: object, said: str) -> None:
    folder = write_legacy(tmp_path / "legacy", CONFIG, STATE, files=2)
    (tmp_path / "other.bin").write_bytes(b"")
    (folder / "sub").mkdir()
    (folder / "sub" / "part.bin").write_bytes(b"")
    index = json.dumps({"weight_map": places})
    (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        open_legacy(folder)


def test_other_files_are_asked_for_by_name(tmp_path: Path) -> None:
    legacy = open_legacy(write_legacy(tmp_path / "legacy", CONFIG, STATE))
    (legacy.path / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    assert legacy.file("tokenizer.model", "vocab.json") == legacy.path / "vocab.json"
    assert legacy.json("vocab.json") == {"a": 0}
    assert legacy.json("added_tokens.json") == {}
    with pytest.raises(ModelError, match=r"no tokenizer\.model or merges\.txt here; fetch the whole checkpoint"):
        legacy.file("tokenizer.model", "merges.txt")
