"""trl's SFTTrainer, fed finished batches. The only module that imports trl.

trl keeps what it is good at (optimisers, schedules, mixed precision, DDP and FSDP through accelerate, checkpoints, trackers). What
decides correctness is ours: which rows make a step, the loss, when a run must stop, and when a checkpoint counts as written.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sft import files
from sft.data.dataset import running_numbers
from sft.data.packing import StepPlan
from sft.data.store import RowStore
from sft.engine import checkpoints, finite, optimizers, regional, sharding
from sft.engine.batches import PlannedBatches
from sft.engine.checkpointing import checkpoint_as_asked
from sft.engine.loss import plain_head, step_loss
from sft.engine.loss_scale import LossScale
from sft.engine.metrics import read_metrics
from sft.engine.records import Record, Recorded
from sft.engine.stochastic_adamw import StochasticAdamW
from sft.errors import RunError
from sft.model import adapters
from sft.model.load import DTYPES, compute_dtype, product_type
from sft.recipe import LossScaleSection, Recipe

log = logging.getLogger(__name__)


def training_arguments(recipe: Recipe, plan: StepPlan, device: torch.device) -> SFTConfig:
    """Translate a recipe into the trainer's arguments; every value that matters is given, none is inherited."""
    train, output = recipe.train, recipe.output
    total = len(plan.steps)
    warmup = train.warmup_steps if train.warmup_steps is not None else math.ceil((train.warmup_ratio or 0.0) * total)
    mixed = product_type(recipe)
    schedules = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    on_gpu = device.type == "cuda"
    # A fused step that a scaler leaves out looks taken to accelerate, and the schedule would go on.
    fused = on_gpu and mixed != "float16"
    # Layers are recomputed by sft.engine.recompute; transformers renamed this knob in 5.20, and trl turns it on by itself.
    renamed = "activation_checkpointing" in SFTConfig.__dataclass_fields__
    options: dict[str, Any] = {"activation_checkpointing" if renamed else "gradient_checkpointing": False}
    options |= sharding.trainer_options(recipe, plan.accumulation)
    # Batches are copied from pinned memory without waiting for what the GPU has queued, so the next ones are built while it works.
    options["accelerator_config"] = options.get("accelerator_config", {}) | {"non_blocking": on_gpu}
    arguments = SFTConfig(
        output_dir=output.dir,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.accumulation,
        max_steps=total,
        num_train_epochs=1,
        learning_rate=train.learning_rate,
        lr_scheduler_type=schedules[train.schedule],
        warmup_steps=warmup,
        weight_decay=train.weight_decay,
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        adam_epsilon=train.epsilon,
        max_grad_norm=train.max_grad_norm,
        optim=optimizers.trainer_name(train.optimizer, fused=fused),
        bf16=mixed == "bfloat16" and train.sharding != "deepspeed",  # which has an autocast of its own
        fp16=mixed == "float16",
        tf32=train.tf32 if on_gpu and torch.cuda.get_device_capability(device) >= (8, 0) else None,
        neftune_noise_alpha=train.neftune_alpha,
        seed=train.seed,
        data_seed=train.seed,
        logging_steps=output.log_every,
        logging_nan_inf_filter=False,  # a NaN stops the run; it is never replaced by an average
        save_strategy="steps" if output.save_every else "no",
        save_steps=output.save_every or 500,
        report_to=list(output.report_to) or "none",
        disable_tqdm=True,  # our own bar reads metrics.jsonl's records
        remove_unused_columns=False,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,  # the step's token count is known before it starts
        max_length=None,
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **options,
    )
    # One process drives one GPU. Where a host has more and torchrun did not start us, the trainer would wrap the model in DataParallel.
    assert arguments.device is not None  # finding the device counts the GPUs
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if train.sharding == "fsdp":
        sharding.set_precision(arguments, DTYPES[mixed] if mixed != "float32" else None)
    return arguments


class PlannedTrainer(Recorded, sharding.Sharded, SFTTrainer):
    """An SFTTrainer whose steps, loss and checkpoints follow a :class:`~sft.data.packing.StepPlan`."""

    # compute_loss divides by the tokens of the whole step, so the trainer must not divide by A again.
    loss_is_scaled_for_ga = True

    def __init__(self, recipe: Recipe, store: RowStore, plan: StepPlan, record: Record, **kwargs: Any) -> None:
        self.recipe, self.plan, self.record, self.store = recipe, plan, record, store
        self._partial: Path | None = None
        self._evaluated = -1
        self._finite: finite.Finite | None = None
        self.first_eval: float | None = None
        self.last_eval: float | None = None
        padded = recipe.train.batching == "padded"
        tokenizer = kwargs["processing_class"]
        self._head = None if padded else plain_head(kwargs["model"], compute_dtype(recipe.model))
        if recipe.train.float8:
            from sft.engine import float8_training  # brings torch's compiler along, a second that others need not wait

            float8_training.convert(kwargs["model"])
        compiled = regional.wanted(recipe, len(plan.steps), kwargs["args"].device)
        checkpoint_as_asked(kwargs["model"], recipe.train)
        if compiled:
            regional.compile_layers(kwargs["model"])
        batches = PlannedBatches(store, plan, tokenizer.pad_token_id if padded else None, compiled=compiled)
        super().__init__(train_dataset=running_numbers(len(batches)), data_collator=batches, **kwargs)
        if (own := optimizers.own(recipe)) is not None:
            self.optimizer_cls_and_kwargs = own
        scaler = self.accelerator.scaler
        self.scale = None if scaler is None else LossScale(scaler, recipe.train.loss_scale or LossScaleSection())
        self.remove_callback(PrinterCallback)  # our bar shows the records
        if recipe.lora is not None:
            adapters.keep_float32(self.model)

    def _send_telemetry(self) -> None:
        """No telemetry, ever."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # the plan has shuffled already

    # -- the step ---------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Fetch the micro-batches of a step, timing the wait. Their token count travels with them."""
        start = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.record.waited += time.perf_counter() - start
        return batches, None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This micro-batch's share of the step's loss, times the ranks (DDP and FSDP average gradients over them)."""
        return step_loss(model, inputs, self._head) * self.accelerator.num_processes

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clipping costs a pass over all gradients; an optimiser of ours does it while it reads them."""
        optimizer = optimizers.innermost(self.optimizer)
        if isinstance(optimizer, StochasticAdamW):
            return optimizer.clip(self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called with the gradients of a whole step, before the optimiser: the place to refuse what is not finite."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if self._finite is None:
            scaled, taken = self.accelerator.scaler is not None, bool(self.is_deepspeed_enabled)
            self._finite = finite.Finite(optimizers.innermost(self.optimizer), scaled=scaled, taken=taken)
        bad = self._finite.note(self.state.global_step, self._tr_loss, grad_norm)
        if bad is not None:
            self._stop_non_finite(*bad)
        return grad_norm

    def _refuse_non_finite(self) -> None:
        """Where the GPU is waited for anyway: before a record, an evaluation, a checkpoint, and at the end."""
        control, step, every = self.control, self.state.global_step, self.recipe.output.eval_every
        due = control.should_log or control.should_save or control.should_training_stop or (every and step % every == 0)
        if self._finite is not None and (due or step == len(self.plan.steps)) and (bad := self._finite.first_bad()) is not None:
            self._stop_non_finite(*bad)

    def _stop_non_finite(self, step: int, loss: float, grad_norm: float) -> None:
        rows = self.store.select(self.plan.steps[step])
        folder = Path(self.args.output_dir) / f"nonfinite-step-{step + 1}"
        if self.is_world_process_zero():
            finite.write_rows(folder, rows, {"step": step + 1, "loss": loss, "grad_norm": grad_norm})
        spoilt = self.is_deepspeed_enabled  # it has stepped by now
        raise finite.refusal(step, loss, grad_norm, rows.names, folder, spoilt=spoilt)

    # -- after a step ------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, then evaluate if the recipe says so, then save; the epoch's end brings no second turn."""
        self._refuse_non_finite()
        if self.scale is not None:
            self.scale.after_step(self.state.global_step)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        every, step = self.recipe.output.eval_every, self.state.global_step
        if every and step % every == 0 and step < len(self.plan.steps) and step != self._evaluated:
            self._evaluated = step
            self.evaluate_now()

    # -- checkpoints ------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._partial or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save weights and tokenizer without the trainer's pickled arguments: run.json and recipe.yaml say more, as text."""
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, check an adapter by re-opening it, then rename. A kill leaves the last one."""
        run_dir, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        self._partial = run_dir / f"{files.PARTIAL}{name}"
        main = self.is_world_process_zero()
        if main:
            shutil.rmtree(self._partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            Trainer._save_checkpoint(self, model, trial)  # past trl's, which writes a model card for its own website
            self.accelerator.wait_for_everyone()
            live = self.adapter_state()
            if main:
                written = self._partial / name
                if live is not None:
                    adapters.verify_saved(written, live)
                files.write_json(written / "vicugna.json", self.record.manifest)
                files.publish(written, run_dir / name)
                shutil.rmtree(self._partial)
                checkpoints.rotate(run_dir, self.recipe.output.keep_checkpoints)
            self.accelerator.wait_for_everyone()
        finally:
            self._partial = None
        self.restart_clock()

    def adapter_state(self) -> dict[str, Tensor] | None:
        """What an adapter file must hold, None without adapters. Every rank must call it: sharded tensors are gathered."""
        if self.recipe.lora is None:
            return None
        return adapters.adapter_state(self.accelerator.unwrap_model(self.model))

    # -- start ------------------------------------------------------------------------------------------------

    def train_planned(self, start: Path | None, *, drill: bool) -> None:
        """Run every step of the plan, from a checkpoint if one is given, evaluating before the first and after the last.

        Args:
            start: complete checkpoint to resume from.
            drill: save and reload the weights before the first step, so that a run that cannot be saved fails at once.
        """
        self.add_callback(_AtStart(self, drill))
        self.train(resume_from_checkpoint=None if start is None else str(start))
        last = self.evaluate_now()
        self.last_eval = None if last is None else float(last["loss"])

    def at_start(self, drill: bool) -> None:
        """Everything that needs the prepared model and must happen before the first step."""
        self.check_sharding()
        if drill:
            self._drill()
        if self.state.global_step == 0:
            first = self.evaluate_now()
            self.first_eval = None if first is None else float(first["loss"])
        else:
            self._after_resuming()
        self.restart_clock()

    def _after_resuming(self) -> None:
        """What the record of the earlier run says goes on."""
        lines = [] if self.record.metrics is None else read_metrics(self.record.metrics.path)
        before = [line for line in lines if "eval" in line]
        self.first_eval = float(before[0]["eval"]["loss"]) if before else None
        if self.scale is not None:
            self.scale.resumed(max((int(line.get("steps_skipped", 0)) for line in lines), default=0))

    def _drill(self) -> None:
        """Save what training will save, read it back, compare every tensor, remove it."""
        folder = Path(self.args.output_dir) / f"{files.PARTIAL}drill"
        needed = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        free = files.free_bytes(Path(self.args.output_dir))
        if free < 4 * needed:  # weights, two moments, and the merged model
            raise RunError(
                f"{self.args.output_dir}: {free / 2**30:.1f} GiB are free, checkpoints and the merged model need about "
                f"{4 * needed / 2**30:.1f} GiB; free some space or move output.dir"
            )
        self.save_model(str(folder), _internal_call=True)
        log.info("save-and-reload drill: %d tensors equal", self.verify_saved_model(folder))
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()


class _AtStart(TrainerCallback):
    """Calls back into the trainer once the model is prepared and a checkpoint is loaded."""

    def __init__(self, trainer: PlannedTrainer, drill: bool) -> None:
        self.trainer, self.drill = trainer, drill

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.at_start(self.drill)
