"""A recipe runs on a card that has what it needs, and is refused with key and remedy on one that has not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sft.errors import ModelError
from sft.model import attention, capability
from sft.recipe import Recipe, load_recipe
from sft.train import run
from tests.runs import tiny_recipe

ROOT = Path(__file__).resolve().parent.parent.parent
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FULL = ("train.sharding=none", "model.compute_dtype=float16")
LORA = (*FULL, "lora={rank: 4, alpha: 8}")
FLOAT8 = ("train.sharding=none", "model.compute_dtype=bfloat16")

REFUSALS = [
    (
        ("train.sharding=none", "model.compute_dtype=bfloat16"),
        (8, 0),
        r"model\.compute_dtype: bfloat16 needs compute capability 8\.0, and cuda:0 has {}: it has no bfloat16 and would emulate it; "
        r"set model\.compute_dtype: float16$",
    ),
    (
        ("train.sharding=none", "model.dtype=bfloat16", "model.compute_dtype=null"),
        (8, 0),
        r"model\.dtype: bfloat16 needs .* 8\.0, .* has {}: .*; set model\.dtype: float32 and model\.compute_dtype: float16$",
    ),
    (
        ("train.sharding=none", "model.dtype=bfloat16", "model.compute_dtype=null", "lora={rank: 4, alpha: 8}"),
        (8, 0),
        r"model\.dtype: bfloat16 needs .* 8\.0, .* has {}: .*; set model\.compute_dtype: float16$",
    ),
    *(
        (
            (*FULL, f"model.attention={kernel}"),
            (8, 0),
            rf"model\.attention: {kernel} needs .* 8\.0, .* has {{}}: these kernels are made for Ampere and newer; "
            r"set model\.attention: auto, which takes SDPA there$",
        )
        for kernel in ("flash", "varlen")
    ),
    (
        (*FULL, "model.attention=cudnn"),
        (9, 0),
        r"model\.attention: cudnn needs .* 9\.0, .* has {}: it is used only where .*; set model\.attention: auto$",
    ),
    (
        (*FLOAT8, "lora={rank: 4, alpha: 8}", "model.quantization=float8"),
        (8, 9),
        r"model\.quantization: float8 needs .* 8\.9, .* has {}: it has no float8 products; set int8 or nf4$",
    ),
    (
        (*FLOAT8, "train.float8=true"),
        (8, 9),
        r"train\.float8: true needs .* 8\.9, .* has {}: it has no float8 products; set train\.float8: false$",
    ),
    (
        (*FULL, "train.compile=on"),
        (7, 0),
        r"train\.compile: on needs .* 7\.0, .* has {}: Triton makes no code for it; set train\.compile: off$",
    ),
    *(
        (
            (*LORA, f"model.quantization={kind}"),
            (6, 0),
            rf"model\.quantization: {kind} needs .* 6\.0, .* has {{}}: bitsandbytes has no kernels .*; set model\.quantization: none$",
        )
        for kind in ("int8", "nf4", "fp4")
    ),
    *(
        (
            (*FULL, f"train.optimizer={name}"),
            (6, 0),
            rf"train\.optimizer: {name} needs .* 6\.0, .* has {{}}: bitsandbytes has no kernels .*; set train\.optimizer: adamw$",
        )
        for name in ("adamw_8bit", "paged_adamw_8bit")
    ),
]
BELOW = {(6, 0): (5, 2), (7, 0): (6, 1), (8, 0): (7, 5), (8, 9): (8, 6), (9, 0): (8, 9)}


def recipe_with(*sets: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / "alpaca.yaml", sets)[0]


@pytest.mark.parametrize(("sets", "least", "said"), REFUSALS, ids=[" ".join(sets) for sets, _, _ in REFUSALS])
def test_what_a_card_has_not_is_refused_and_from_the_bound_on_it_runs(
    sets: tuple[str, ...], least: tuple[int, int], said: str
) -> None:
    recipe, below = recipe_with(*sets), BELOW[least]
    with pytest.raises(ModelError, match="^" + said.replace("{}", rf"{below[0]}\.{below[1]}")):
        capability.require(recipe, CUDA, below)
    capability.require(recipe, CUDA, least)
    capability.require(recipe, CPU)


def test_every_feature_has_a_refusal_that_is_tried() -> None:
    tried = {feature.name for feature in capability.FEATURES for sets, _, _ in REFUSALS if feature.asked(recipe_with(*sets))}
    assert tried == {feature.name for feature in capability.FEATURES}


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        capability.require(recipe_with(*FLOAT8, "train.float8=true", "model.attention=flash"), CUDA, (7, 5))
    assert [line.split(" needs")[0] for line in str(caught.value).splitlines()] == [
        "model.compute_dtype: bfloat16",
        "model.attention: flash",
        "train.float8: true",
    ]


@pytest.mark.parametrize("name", ["chinese_lora", "chinese_qlora", "chinese_chat_lora"])
def test_recipes_for_old_cards_run_on_them(name: str) -> None:
    recipe, _ = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    capability.require(recipe, CUDA, (7, 5))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "recipes").glob("vicuna*.yaml")))
def test_recipes_for_large_cards_run_on_an_a100(name: str) -> None:
    capability.require(load_recipe(ROOT / "recipes" / f"{name}.yaml")[0], CUDA, (8, 0))


@pytest.mark.parametrize(("have", "old"), [((7, 0), True), ((7, 5), True), ((8, 0), False)])
def test_auto_takes_no_kernel_that_the_card_cannot_run(
    monkeypatch: pytest.MonkeyPatch, have: tuple[int, int], old: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: have)
    assert (attention.choose("auto", True, torch.float16, CUDA) == "vicugna_sdpa") is old


def test_a_run_is_refused_before_its_data_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.train.device_for_run", lambda: CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("sft.train._prepare_once", lambda *_: pytest.fail("data was prepared"))
    with pytest.raises(ModelError, match=r"^model\.compute_dtype: bfloat16 needs compute capability 8\.0, and cuda:0 has 7\.5"):
        run(tiny_recipe(tmp_path / "run", model__compute_dtype="bfloat16"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_page_shows_the_table_of_the_code() -> None:
    assert capability.table() in (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")
