"""sft plan: every figure against arithmetic done here."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, T5Config

from sft import plan as planner
from sft.errors import DataError, InputError, ModelError
from sft.plan import energy, make_plan
from sft.plan_choice import fullest
from sft.plan_memory import Load, memory_estimate, model_shape
from sft.recipe import Recipe
from tests.plans import LINEAR, TINY, TOTAL, H, L, V, llama_7b, prepared, recipe, shown

# -- data


def test_rows_and_steps_by_hand() -> None:
    rows = prepared(
        [4, 4, 4, 4, 8, 8, 8, 8, 2, 2], held=2, rows_in=15, counts={"empty": 4}, changed={"truncated": 3, "split": 1}
    )
    plan = make_plan(recipe(train__epochs=2.0), rows, TINY)
    d = plan.data
    assert (d.rows_in, d.rows_kept, d.dropped, d.truncated, d.split, d.split_gain) == (15, 11, {"empty": 4}, 3, 1, 1)
    assert (d.rows_train, d.rows_holdout, d.tokens, d.trained_tokens, d.trained_share) == (10, 2, 52, 26, 0.5)
    assert (d.steps, d.epochs, d.steps_per_epoch, d.accumulation, d.run_tokens) == (6, 2.0, 3.0, 1, 104)
    assert d.rows_per_step == planner.Spread(2, 20 / 6, 4)
    assert d.tokens_per_step.mean == 104 / 6
    assert d.fill == 104 / (64 * 6)
    text = shown(plan)
    for line in ("11 = 15 in - 4 empty", "3 truncated, 1 split: +1 rows", "6 steps = 2 epochs x 3.0", "50.0% = 26 / 52 tokens"):
        assert line in text
    assert "4 rows per step = 1 micro-batches x 1 GPUs x 4.0 rows" in text


def test_rows_held_out_from_their_own_files_are_no_part_of_the_rows_read() -> None:
    rec = recipe(data__holdout_sources=({"path": "other.jsonl"},))
    assert make_plan(rec, prepared([4] * 8, held=5, rows_in=8), TINY).data.split_gain == 0


def test_padding_waste_and_fullest_micro_batch() -> None:
    rec = recipe(train__tokens_per_device=8, plan__gpus=2, train__examples_per_step=4)
    steps = planner.lay_out(rec, prepared([8, 8, 4, 4]))
    assert (steps.accumulation, len(steps.steps)) == (2, 1)
    load = fullest(steps)
    assert (load.tokens, load.trained, load.longest, load.accumulation) == (8, 4, 8, 2)
    one = planner.lay_out(recipe(train__tokens_per_device=64), prepared([8, 4, 4, 2]))
    assert planner._padding_waste(one) == 1 - 18 / 32
    assert planner._padding_waste(steps) == 0  # four batches of one row


def test_padded_micro_batches_count_their_padding() -> None:
    steps = planner.lay_out(recipe(train__batching="padded"), prepared([8, 4, 4, 2]))
    assert fullest(steps) == Load(tokens=32, trained=9, longest=8, accumulation=1)


# -- suggestions


def big(**changes: Any) -> Recipe:
    sizes = {"data__max_length": 512, "train__tokens_per_device": 4096, "train__examples_per_step": 16}
    return recipe(**{"model__dtype": "float32", "model__compute_dtype": "bfloat16", **sizes, **changes})


def settings(plan: planner.Plan) -> list[str]:
    return [" ".join(s.settings) for s in plan.suggestions]


ROWS = prepared([512] * 32)


def test_no_suggestions_where_it_fits() -> None:
    plan = make_plan(recipe(), prepared([4] * 8), TINY)
    assert plan.memory.fits
    assert plan.suggestions == ()


def test_suggestions_come_in_order_and_each_one_reduces() -> None:
    plan = make_plan(big(plan__gpu_memory_gib=7.0), ROWS, llama_7b())
    assert [s.split("=")[0] for s in settings(plan)] == [
        "--set train.tokens_per_device",
        "--set train.gradient_checkpointing",
        "--set train.optimizer",
        "--set model.dtype",
        "--set lora.rank",
        "--set model.quantization",
    ]
    assert settings(plan)[0] == "--set train.tokens_per_device=512"
    half = "--set model.dtype=bfloat16 --set model.compute_dtype=bfloat16"
    assert settings(plan)[3] == f"{half} --set train.optimizer=adamw_8bit_stochastic"
    assert settings(plan)[4] == "--set lora.rank=16 --set lora.alpha=32.0 --set train.optimizer=adamw_8bit"
    totals = [plan.memory.total_gib, *(s.total_gib for s in plan.suggestions)]
    assert all(b < a for a, b in itertools.pairwise(totals))
    assert [s.fits for s in plan.suggestions] == [False] * 5 + [True]
    text = shown(plan)
    assert "does NOT fit in 7 GiB" in text
    assert f"{totals[-1]:,.1f} GiB" in text


def test_suggestions_stop_at_the_first_that_fits() -> None:
    whole = make_plan(big(plan__gpu_memory_gib=1000.0), ROWS, llama_7b())
    plan = make_plan(big(plan__gpu_memory_gib=whole.memory.total_gib - 0.1), ROWS, llama_7b())
    assert settings(plan) == ["--set train.tokens_per_device=2048"]
    assert plan.suggestions[0].fits


def test_smaller_micro_batches_are_not_suggested_where_their_gradients_outweigh_them() -> None:
    """One micro-batch per step frees activations as gradients come; two hold 25 GiB of gradients while saving 14 of activations."""
    rows, sizes = prepared([512] * 16), {"train__tokens_per_device": 4096, "train__examples_per_step": 8}
    whole = make_plan(big(plan__gpu_memory_gib=1000.0, **sizes), rows, llama_7b())
    assert whole.data.accumulation == 1
    plan = make_plan(big(plan__gpu_memory_gib=whole.memory.total_gib - 0.1, **sizes), rows, llama_7b())
    assert settings(plan) == ["--set train.gradient_checkpointing=true"]


def test_each_total_is_that_of_the_edited_recipe() -> None:
    rows = prepared([8] * 16)
    tiny = recipe(train__tokens_per_device=64, train__examples_per_step=16, plan__gpu_memory_gib=0.1)
    plan = make_plan(tiny, rows, TINY)
    edited = tiny
    for suggestion in plan.suggestions:
        values: dict[str, Any] = {}
        for text in suggestion.settings:
            key, value = text.removeprefix("--set ").split("=")
            values[key] = json.loads(value) if value[0].isdigit() or value in ("true", "false") else value
        found = planner._edited(edited, values)
        assert found is not None
        edited = found
        again = memory_estimate(edited, model_shape(TINY), fullest(planner.lay_out(edited, rows)))
        assert again.total_gib == suggestion.total_gib
    assert plan.suggestions
    assert not plan.suggestions[-1].fits  # the constant alone is larger
    assert "still too large" in shown(plan)


def test_several_gpus_shard_and_a_sharded_recipe_can_offload() -> None:
    plan = make_plan(big(plan__gpus=8, plan__gpu_memory_gib=30.0), ROWS, llama_7b())
    assert settings(plan)[-1] == "--set train.sharding=fsdp"
    assert plan.suggestions[-1].fits
    tight = make_plan(big(plan__gpus=8, plan__gpu_memory_gib=2.9, lora={}, train__sharding="fsdp"), ROWS, llama_7b())
    assert "--set train.cpu_offload=true" in settings(tight)


def test_an_edit_that_did_not_help_is_tried_again_after_another() -> None:
    """Small micro-batches change nothing while gradients and states are the peak; once those are shared they do."""
    rows = prepared([512] * 64)
    rec = big(plan__gpus=8, plan__gpu_memory_gib=15.5, train__examples_per_step=64)
    assert settings(make_plan(rec, rows, llama_7b()))[-2:] == [
        "--set train.sharding=fsdp",
        "--set train.tokens_per_device=512",
    ]


def test_an_edit_that_the_recipe_refuses_is_not_suggested() -> None:
    scratch = {"config": {"model_type": "llama"}, "vocab_size": 300}
    rec = recipe(model__name_or_path=None, model__scratch=scratch, plan__gpu_memory_gib=0.1)
    assert not any("lora" in s for s in settings(make_plan(rec, prepared([4] * 8), TINY)))


# -- time, money, energy


def test_the_llama_papers_energy() -> None:
    kwh, kg = energy(82_432, 400, 1.1, 0.385)
    assert kwh == pytest.approx(36_270.08)
    assert round(kwh / 1000, 1) == 36.3
    assert round(kg / 1000, 1) == 14.0


def test_time_and_money_by_hand() -> None:
    rec = recipe(plan__gpus=2, plan__tokens_per_second=0.01, plan__price_per_gpu_hour=3.0)
    plan = make_plan(rec, prepared([6] * 12), TINY, probed_tokens_per_second=5.0)
    t = plan.time
    assert (t.tokens_per_second, t.rate_from) == (0.01, "plan.tokens_per_second")
    assert t.hours == t.gpu_hours / 2 == 72 / 0.01 / 3600 == 2.0  # type: ignore[operator]
    assert t.money == 12.0
    assert t.kwh == pytest.approx(4 * 400 * 1.1 / 1000)
    assert t.co2_kg == pytest.approx(1.76 * 0.385)
    text = shown(plan)
    for line in (
        "2 h = 72 tokens / 0 per second",
        "4 = 2 h x 2 GPUs",
        "12.00 = 4 GPU-hours x 3",
        "1.76 kWh = 4 GPU-hours x 400 W x 1.1",
    ):
        assert line in text


def test_a_probed_rate_is_used_and_no_rate_leaves_hours_out() -> None:
    rows = prepared([6] * 12)
    probed = make_plan(recipe(), rows, TINY, probed_tokens_per_second=72.0).time
    assert (probed.rate_from, probed.hours, probed.money) == ("probed", 1 / 3600, None)
    unknown = make_plan(recipe(), rows, TINY)
    assert (unknown.time.hours, unknown.time.kwh, unknown.time.rate_from) == (None, None, "unknown")
    assert "set plan.tokens_per_second" in shown(unknown)


def test_flop_per_token() -> None:
    rows = prepared([2, 8, 2, 8])
    context = (4 + 64 + 4 + 64) / 20
    attention = 6 * L * H * context
    assert make_plan(recipe(), rows, TINY).time.flop_per_token == pytest.approx(6 * (LINEAR + 0.5 * V * H) + attention)
    assert make_plan(recipe(lora={}), rows, TINY).time.flop_per_token == pytest.approx(4 * (LINEAR + 0.5 * V * H) + attention)


# -- warnings, refusals, the front


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output__save_every": 4}, "output.save_every = 4 is more than the 3 steps"),
        ({"train__examples_per_step": 5}, "the last step of an epoch holds 2 rows instead of 5"),
        ({"train__warmup_steps": 3}, "train.warmup_steps = 3 of 3 steps"),
        ({"output__eval_every": 1}, "output.eval_every is set, but no rows are held out"),
    ],
)
def test_warnings(changes: dict[str, Any], says: str) -> None:
    rows = prepared([4] * 12)
    assert make_plan(recipe(), rows, TINY).warnings == ()
    plan = make_plan(recipe(**changes), rows, TINY)
    assert len(plan.warnings) == 1
    assert says in plan.warnings[0]
    assert says in shown(plan)


def test_a_last_step_that_max_steps_cuts_off_is_no_warning() -> None:
    assert make_plan(recipe(train__examples_per_step=5, train__max_steps=2), prepared([4] * 12), TINY).warnings == ()


def test_mixture_of_experts_is_counted_and_flagged() -> None:
    config = AutoConfig.for_model(
        "mixtral", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100, num_local_experts=4,
    )  # fmt: skip
    plan = make_plan(recipe(), prepared([4] * 12), config)
    assert plan.model.linear == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 4 * 3 * 32 * 64 + 4 * 32)
    assert "mixture of experts" in plan.warnings[0]


def test_a_sliver_of_an_epoch_is_one_step() -> None:
    data = make_plan(recipe(train__epochs=1e-12), prepared([4] * 8), TINY).data
    assert (data.steps, data.epochs, data.steps_per_epoch) == (1, 0.5, 2.0)


def test_an_epoch_without_rows_is_no_last_step_to_warn_about() -> None:
    source = {"path": "rows.jsonl", "weight": 0.25}
    plan = make_plan(recipe(data__sources=(source,), train__epochs=4.0, train__examples_per_step=1), prepared([4, 4]), TINY)
    assert (plan.data.steps, plan.data.epochs, plan.warnings) == (2, 4.0, ())


def test_refusals() -> None:
    rows = prepared([4] * 8)
    with pytest.raises(ModelError, match=r"no linear layer 'qproj'; it has .*q_proj"):
        make_plan(recipe(lora={"targets": ("q_proj", "qproj")}), rows, TINY)
    with pytest.raises(InputError, match="must be positive, got 0"):
        make_plan(recipe(), rows, TINY, probed_tokens_per_second=0.0)
    with pytest.raises(ModelError, match="cannot build a t5 model"):
        make_plan(recipe(), rows, T5Config())
    with pytest.raises(DataError, match="a row of 65 tokens does not fit"):
        make_plan(recipe(), prepared([65]), TINY)
    with pytest.raises(DataError, match="no rows are left"):
        make_plan(recipe(), prepared([]), TINY)


def test_the_plan_is_plain_data_and_says_that_memory_is_estimated() -> None:
    plan = make_plan(recipe(plan__tokens_per_second=10.0), prepared([4] * 8), TINY)
    data = json.loads(json.dumps(plan.to_json()))
    assert data["model"]["total"] == TOTAL
    assert data["memory"]["estimated"] is True
    assert data["data"]["tokens_per_step"] == {"least": 16, "mean": 16.0, "most": 16}
    assert data["inputs"]["watts_per_gpu"] == 400.0
    assert data["trainable"] == TOTAL
    text = shown(plan)
    assert "Memory of one GPU (estimated)" in text
    assert f"{TOTAL:,} = 3,200 embeddings + 3,200 head + 18,432 linear + 160 norms" in text


def test_importing_the_planner_leaves_torch_out() -> None:
    code = "import sys, sft.plan; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    root = Path(planner.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
