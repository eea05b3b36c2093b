"""A run from recipe to talking model. Read this first: ``run`` is the whole story, top to bottom.

Run directory::

    recipe.yaml  run.json  metrics.jsonl  report.html
    checkpoint-N/          complete, resumable
    model/ or adapter/     what was trained, with tokenizer and template
    merged/                servable, verified on the written files
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers.utils.logging import disable_progress_bar

from sft import files
from sft.data.dataset import Prepared, prepare
from sft.data.packing import StepPlan, plan_steps
from sft.data.tokenize import RowEncoder
from sft.engine import checkpoints, manifest, memory, offload, regional
from sft.engine.evaluate import evaluate_rows
from sft.engine.extras import refuse_missing_packages
from sft.engine.metrics import UTILISATION, FlopModel, MetricsFile, matmul_rate
from sft.engine.ranks import Ranks
from sft.engine.records import Record
from sft.engine.sharding import forget_deepspeed, refuse_alone, refuse_tied_adapters
from sft.engine.trainer import PlannedTrainer, training_arguments
from sft.errors import InputError, ModelError
from sft.model import adapters, capability, merge, servable
from sft.model.attention import check_isolation, isolation_tolerance
from sft.model.load import Loaded, compute_dtype, device_for_run, freeze_head, load_model
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe
from sft.run.generate import sample_answers
from sft.run.report import write_report
from sft.run.screen import Screen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_SMALL = 50_000_000  # parameters; below this the save-and-reload drill costs more attention than it saves


def run(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, probe: bool = False) -> dict[str, Any]:
    """Train by a recipe.

    Args:
        recipe: checked.
        resume: go on from the last complete checkpoint in ``output.dir``.
        overwrite: remove an earlier run in ``output.dir`` first.
        probe: only take the steps, for their times: no evaluation, no samples, no weights written, nothing on the screen.

    Returns:
        The contents of run.json.

    Raises:
        InputError: anything that the user can mend, before a step is taken.
        RunError: a run that went wrong; the last checkpoint stands.
    """
    regional.keep_compilations()
    ranks = Ranks.join(offload=recipe.train.cpu_offload)
    device = _able_device(recipe, ranks)
    run_dir, start = _open_run_dir(recipe, ranks, resume, overwrite)
    screen = Screen(enabled=ranks.main and not probe)
    tokenizer, template, repairs = tokenizer_for(recipe)
    encoder = RowEncoder(tokenizer, template, recipe.template.train_on)
    prepared = _prepare_once(recipe, tokenizer, encoder, ranks)
    screen.data(prepared)
    if recipe.model.scratch is not None:
        disable_progress_bar()  # of single shards; a model of any size keeps it
    loaded = load_model(recipe, tokenizer, device)
    identity = manifest.identity(recipe, prepared, encoder, tokenizer, loaded.commit)
    isolation = _prove_isolation(recipe, loaded, tokenizer)
    model, written = _with_adapters(recipe, loaded), recipe
    recipe, chosen = memory.settle_run(
        recipe, model, prepared.train, tokenizer.pad_token_id, lambda r: step_plan(r, prepared, ranks.world), start, ranks.world
    )
    plan = step_plan(recipe, prepared, ranks.world)
    screen.plan(plan, loaded.attention, isolation, chosen)
    about = _about(recipe, identity, prepared, plan, encoder, [*repairs, *loaded.repairs], isolation, chosen)
    if start is not None:
        about["resumed"] = manifest.refuse_changes(start, about["identity"], about["plan"])
    if ranks.main:
        (run_dir / "recipe.yaml").write_text(_as_yaml(written), encoding="utf-8")
        files.write_json(run_dir / "run.json", about)

    trainer = _build_trainer(recipe, prepared, plan, model, tokenizer, about, run_dir, start, ranks, screen)
    if probe:
        trainer.record.evaluate = lambda step: None
        trainer.train_planned(None, drill=False)
        return about
    samples = _Samples(recipe, tokenizer, encoder, ranks)
    try:
        samples.take("before", trainer.model)
        trainer.train_planned(start, drill=_wants_drill(recipe, model))
    finally:
        screen.close()
    about["holdout"] = {"before": trainer.first_eval, "after": trainer.last_eval}
    samples.take("after", trainer.accelerator.unwrap_model(trainer.model))
    about["samples"] = samples.pairs
    _finish(recipe, trainer, tokenizer, encoder, about, run_dir, ranks, device, screen)
    return about


def _able_device(recipe: Recipe, ranks: Ranks) -> torch.device:
    """The device of this process, once it is known that packages, card and number of processes do for the recipe."""
    refuse_missing_packages(recipe)
    device = device_for_run()
    refuse_alone(recipe, ranks.world, device)
    capability.require(recipe, device)
    offload.refuse_without_gpu(recipe.train, device)
    return device


def step_plan(recipe: Recipe, prepared: Prepared, world: int) -> StepPlan:
    """Lay out the run of a recipe on prepared data."""
    train = recipe.train
    return plan_steps(
        lengths=prepared.train.lengths,
        trained=prepared.train.trained,
        source_of=prepared.train.source_of,
        weights=[source.weight for source in recipe.data.sources],
        seed=train.seed,
        epochs=train.epochs,
        max_steps=train.max_steps,
        examples_per_step=train.examples_per_step,
        tokens_per_step=train.tokens_per_step,
        tokens_per_device=recipe.row_tokens,
        max_length=recipe.data.max_length,
        world=world,
        padded=train.batching == "padded",
    )


def _open_run_dir(recipe: Recipe, ranks: Ranks, resume: bool, overwrite: bool) -> tuple[Path, Path | None]:
    """The run directory, and the checkpoint to resume from. An earlier run is never mixed with a new one."""
    run_dir = Path(recipe.output.dir)
    start = None
    if ranks.main:
        if resume:
            checkpoints.last_checkpoint(run_dir)
        elif (run_dir / "run.json").exists():
            if not overwrite:
                raise InputError(
                    f"output.dir: {run_dir} already holds a run; go on with --resume, replace it with --overwrite, "
                    "or choose another with --set output.dir=..."
                )
            shutil.rmtree(run_dir)
        elif run_dir.is_dir() and any(run_dir.iterdir()):
            raise InputError(f"output.dir: {run_dir} is not empty and holds no run of ours; choose another")
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a file of that name, no right to write there, a read-only disk
            raise InputError(f"output.dir: {run_dir} cannot be made: {error.strerror}; choose another") from None
        checkpoints.remove_partial(run_dir)
    ranks.wait()
    if resume:
        start = checkpoints.last_checkpoint(run_dir)
    return run_dir, start


def _prepare_once(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, ranks: Ranks) -> Prepared:
    """Rank 0 tokenises, the others read its cache."""
    if ranks.main:
        prepared = prepare(recipe, tokenizer, encoder)
        ranks.wait()
        return prepared
    ranks.wait()
    return prepare(recipe, tokenizer, encoder, progress=False)


def _with_adapters(recipe: Recipe, loaded: Loaded) -> torch.nn.Module:
    """What is trained: the model itself, or the recipe's adapters on it."""
    if recipe.lora is None:
        frozen = freeze_head(loaded.model, recipe.train.freeze_head)
        if frozen and recipe.tokenizer.extend is not None:
            raise ModelError(
                "train.freeze_head: the output rows of what tokenizer.extend adds would stay as they are; set false"
            )
        loaded.repairs.extend(frozen)
        return loaded.model
    extend = recipe.tokenizer.extend
    whole = extend is not None and extend.train == "all"
    model = adapters.attach(loaded.model, recipe.lora, loaded.new_rows, seed=recipe.train.seed, whole_embedding=whole)
    refuse_tied_adapters(recipe, model)
    return model


def _prove_isolation(recipe: Recipe, loaded: Loaded, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    if recipe.train.batching == "padded":
        return {}
    dtype = compute_dtype(recipe.model)
    device = next(loaded.model.parameters()).device
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        tolerance = isolation_tolerance(dtype, recipe.model.quantization)
        return check_isolation(loaded.model, len(tokenizer), tolerance=tolerance)


def _about(
    recipe: Recipe,
    identity: dict[str, Any],
    prepared: Prepared,
    plan: StepPlan,
    encoder: RowEncoder,
    repairs: list[str],
    isolation: dict[str, float],
    chosen: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "identity": identity,
        "versions": manifest.versions(),
        "data": {key: value for key, value in prepared.report.items() if key != "inputs"},
        "plan": {
            "steps": len(plan.steps),
            "accumulation": plan.accumulation,
            "world": plan.world,
            "sharding": recipe.train.sharding,
            "fill": plan.fill(),
            "equation": plan.equation(),
        },
        "memory": chosen,
        "serving": servable.serving_record(encoder),
        "repairs": repairs,
        "isolation": isolation,
        "utilisation": UTILISATION,
    }


def _as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _wants_drill(recipe: Recipe, model: torch.nn.Module) -> bool:
    if recipe.output.drill != "auto":
        return recipe.output.drill == "on"
    return sum(p.numel() for p in model.parameters()) >= _SMALL


def _build_trainer(
    recipe: Recipe,
    prepared: Prepared,
    plan: StepPlan,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    about: dict[str, Any],
    run_dir: Path,
    start: Path | None,
    ranks: Ranks,
    screen: Screen,
) -> PlannedTrainer:
    device = device_for_run()
    dtype = compute_dtype(recipe.model)
    padded = recipe.train.batching == "padded"

    def evaluate(step: int) -> dict[str, Any] | None:
        if len(prepared.holdout) == 0:
            return None
        found = evaluate_rows(
            trainer.model if recipe.train.sharding == "none" else trainer.model_wrapped,
            prepared.holdout,
            capacity=recipe.evaluation_tokens,
            pad_id=tokenizer.pad_token_id if padded else None,
            dtype=dtype,
            rank=ranks.rank,
            world=ranks.world,
        )
        return found.to_json()

    record = Record(
        metrics=MetricsFile(run_dir / "metrics.jsonl", None if start is None else checkpoints.step_of(start))
        if ranks.main
        else None,
        flops=FlopModel.of(model, model.config, trainable_base=recipe.lora is None),
        rate=matmul_rate(device, dtype),
        manifest=about,
        evaluate=evaluate,
        on_record=screen.record,
    )
    trainer = PlannedTrainer(
        recipe,
        prepared.train,
        plan,
        record,
        model=model,
        args=training_arguments(recipe, plan, device),
        processing_class=tokenizer,
    )
    return trainer


class _Samples:
    """Greedy answers to the recipe's sample prompts, before and after training."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, ranks: Ranks) -> None:
        self.prompts, self.most = recipe.output.sample_prompts, recipe.output.sample_tokens
        self.tokenizer, self.encoder = tokenizer, encoder
        self.active = bool(self.prompts) and ranks.main and recipe.train.sharding == "none"
        self.pairs: list[dict[str, str]] = [{"prompt": p, "before": "", "after": ""} for p in self.prompts if self.active]

    def take(self, when: str, model: Any) -> None:
        if not self.active:
            return
        # Answers must not move the random state that training continues from.
        with torch.random.fork_rng():
            for pair, text in zip(
                self.pairs, sample_answers(model, self.tokenizer, self.encoder, self.prompts, self.most), strict=True
            ):
                pair[when] = text


def _finish(
    recipe: Recipe,
    trainer: PlannedTrainer,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    about: dict[str, Any],
    run_dir: Path,
    ranks: Ranks,
    device: torch.device,
    screen: Screen,
) -> None:
    """Save what was trained, merge it, prove the merge, write the report."""
    folder = run_dir / ("model" if recipe.lora is None else "adapter")
    partial = run_dir / f"{files.PARTIAL}{folder.name}"
    trainer.save_model(str(partial), _internal_call=True)
    if recipe.lora is not None or recipe.train.sharding != "none":
        trainer.verify_saved_model(partial)
    if ranks.main:
        servable.write_tokenizer(tokenizer, encoder, partial)
        servable.write_generation_config(encoder, tokenizer, partial)
        files.write_json(partial / "vicugna.json", {**about["serving"], **about})
        files.publish(partial, folder)
    if recipe.train.sharding == "deepspeed":
        forget_deepspeed()
    for name in ("model", "model_wrapped", "deepspeed", "optimizer", "lr_scheduler", "accelerator"):
        with contextlib.suppress(AttributeError):
            delattr(trainer, name)
    ranks.wait()
    if ranks.main:
        if recipe.output.merge:
            found = merge_run(recipe, run_dir, tokenizer, encoder, about, device)
            about["merge"] = str(found)
            screen.merged(run_dir / "merged", found)
        files.write_json(run_dir / "run.json", about)
        screen.finished(about, write_report(run_dir))
    ranks.wait()


def merge_run(
    recipe: Recipe,
    run_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    about: dict[str, Any],
    device: torch.device,
    out: Path | None = None,
    dtype: str | None = None,
) -> merge.Difference:
    """Write the servable model of a finished run; see :mod:`sft.model.merge`."""
    out = out or run_dir / "merged"
    card = {
        "name": run_dir.name,
        "base": recipe.model.name_or_path or "scratch",
        "revision": about["identity"]["recipe"].get("model.commit") or recipe.model.revision,
        "method": "full" if recipe.lora is None else "lora",
        "versions": about["versions"],
        "data": about["identity"]["data"],
        "train_rows": about["data"]["train_rows"],
        "trained_tokens": about["data"]["trained_tokens"],
        "steps": about["plan"]["steps"],
        "holdout_loss": (about.get("holdout") or {}).get("after"),
    }
    if recipe.lora is None:
        return merge.export_full(recipe, run_dir / "model", tokenizer, encoder, out, card, device=device, dtype=dtype)
    return merge.merge_adapter(recipe, run_dir / "adapter", tokenizer, encoder, out, card, device=device, dtype=dtype)
