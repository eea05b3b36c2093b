"""Checkpoints in order of their steps; the last complete one is found, the half-written one never."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.engine import checkpoints
from sft.errors import ResumeError, VerificationError
from sft.files import PARTIAL
from tests.builders import LLAMA, tiny_model


def make(run_dir: Path, *names: str) -> None:
    for name in names:
        (run_dir / name).mkdir()
        (run_dir / name / "x").touch()


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def test_steps_order_checkpoints_not_names(tmp_path: Path) -> None:
    make(
        tmp_path,
        "checkpoint-900",
        "checkpoint-1000",
        "checkpoint-20",
        f"{PARTIAL}checkpoint-1100",
        "checkpoint-x",
        "checkpoint-30-old",
    )
    found = checkpoints.complete_checkpoints(tmp_path)
    assert [checkpoints.step_of(path) for path in found] == [20, 900, 1000]
    assert checkpoints.last_checkpoint(tmp_path).name == "checkpoint-1000"


def test_no_checkpoint_is_refused(tmp_path: Path) -> None:
    make(tmp_path, f"{PARTIAL}checkpoint-5")
    with pytest.raises(ResumeError, match="no complete checkpoint to resume from; start without --resume"):
        checkpoints.last_checkpoint(tmp_path)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-9", "checkpoint-10", "checkpoint-11", "model")
    checkpoints.rotate(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11", "model"]
    checkpoints.rotate(tmp_path, 5)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11", "model"]


def test_a_kill_while_deleting_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "checkpoint-1", "checkpoint-2")

    def killed(path: Path) -> None:
        (path / "x").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sft.engine.checkpoints.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.rotate(tmp_path, 1)
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    checkpoints.remove_partial(tmp_path)
    assert names(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize("tied", [False, True])
def test_saved_weights_are_compared_tensor_by_tensor(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(300, LLAMA | {"tie_word_embeddings": tied})
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    saved = load_file(path)
    assert checkpoints.verify_weights(tmp_path, model) == len(saved) == len(model.state_dict()) - tied
    key = "model.layers.1.mlp.up_proj.weight"

    def rewritten(**changes: torch.Tensor | None) -> None:
        kept = {**saved, **{k: v for k, v in changes.items() if v is not None}}
        save_file({k: v for k, v in kept.items() if changes.get(k, v) is not None}, path, {"format": "pt"})

    rewritten(**{key: saved[key] + 1e-6})
    with pytest.raises(VerificationError, match=r"up_proj\.weight differs from the model's"):
        checkpoints.verify_weights(tmp_path, model)
    rewritten(**{key: saved[key][:-1].clone()})
    with pytest.raises(VerificationError, match=r"up_proj\.weight is not a tensor of the model, or has another shape"):
        checkpoints.verify_weights(tmp_path, model)
    rewritten(**{"foreign.weight": torch.zeros(1)})
    with pytest.raises(VerificationError, match=r"foreign\.weight is not a tensor of the model"):
        checkpoints.verify_weights(tmp_path, model)
    rewritten(**{key: None})
    with pytest.raises(VerificationError, match=rf"1 tensors were not saved, such as {key}"):
        checkpoints.verify_weights(tmp_path, model)
