"""What benchmarks count by: shares of a step's time, chained conversations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.chain_chats import chained

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # its programs import each other as scripts

from gpu_profile import busy, kind_of, shares  # type: ignore[import-not-found]  # of that folder


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_256x152_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("void cutlass::device_kernel<flash::enable_sm90<...>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("triton_red_fused__to_copy_add_mul_pow_3", "fused elementwise"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4>", "other"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_shares_of_a_step() -> None:
    kernels = [("gemm", 0.0, 10.0), ("triton_a", 5.0, 20.0), ("nvjet", 30.0, 40.0), ("triton_b", 50.0, 60.0)]
    assert busy(kernels) == 40.0
    found = shares(kernels, (48.0, 70.0), 100.0)
    assert found == {"products": 0.2, "fused elementwise": 0.15, "optimiser": 0.1, "idle": pytest.approx(0.6)}


def test_chained_conversations_start_with_a_person_and_end_with_an_answer() -> None:
    def turn(who: str, text: str) -> dict[str, str]:
        return {"from": who, "value": text}

    chats = [
        [turn("human", "aaaa"), turn("gpt", "bbbb")],
        [turn("gpt", "left out"), turn("human", "left out")],
        [turn("human", "cc"), turn("gpt", "dd"), turn("human", "cut")],
        [turn("human", "eeeeee"), turn("gpt", "ffffff")],
        [turn("human", "rest"), turn("gpt", "rest")],
    ]
    found = list(chained(chats, 12))
    assert [[t["value"] for t in made] for made in found] == [["aaaa", "bbbb", "cc", "dd"], ["eeeeee", "ffffff"]]
