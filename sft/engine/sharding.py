"""How a run is spread over processes: the trainer's arguments for FSDP2 and ZeRO-3, and the trainer's saving and loading of shards.

Which rows make a step does not depend on the processes (:mod:`sft.data.packing`), so a run may go on with another number of them, or
without shards: states are read exactly, and what follows differs by the order of float32 sums alone. Random numbers (dropout, NEFTune)
are drawn anew from seed, step and rank where the number of processes changed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from sft.engine import checkpoints, optimizers, shards
from sft.errors import InputError, ModelError, ResumeError, RunError
from sft.model import adapters
from sft.recipe import Recipe

log = logging.getLogger(__name__)


def refuse_alone(recipe: Recipe, world: int, device: torch.device) -> None:
    """Refuse to shard among one, to offload from nowhere, and to scale what is not scaled.

    Raises:
        InputError: with what to change.
    """
    if recipe.train.cpu_offload and device.type != "cuda":
        raise InputError("train.cpu_offload: there is no GPU to offload from; set it to false (--set train.cpu_offload=false)")
    if recipe.train.loss_scale is not None and device.type != "cuda":
        raise InputError("train.loss_scale: only GPUs scale losses, and there is none; remove it (--set train.loss_scale=null)")
    if recipe.train.sharding != "none" and world == 1:
        raise InputError(
            f"train.sharding: {recipe.train.sharding} needs several processes and this is one; start with "
            "torchrun --nproc-per-node N -m sft train RECIPE, or set train.sharding: none (--set train.sharding=none)"
        )


def refuse_tied_adapters(recipe: Recipe, model: Any) -> None:
    """Refuse what accelerate cannot shard: it takes a weight that is embedding and head for two of them where adapters are on the model.

    Raises:
        ModelError: with what to change.
    """
    if recipe.train.sharding != "fsdp" or recipe.lora is None:
        return
    base = model.get_base_model()
    head = base.get_output_embeddings()
    if head is not None and head.weight is base.get_input_embeddings().weight:
        raise ModelError(
            "train.sharding: fsdp cannot shard adapters on a model whose output matrix is its embedding; set sharding: none "
            "(--set train.sharding=none): each GPU then holds the base"
        )


def trainer_options(recipe: Recipe, accumulation: int) -> dict[str, Any]:
    """Arguments of the trainer that spread a run; none for DDP and one process."""
    train = recipe.train
    if train.sharding == "deepspeed":
        return {"deepspeed": deepspeed_config(recipe, accumulation)}
    if train.sharding != "fsdp":
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "cpu_offload": train.cpu_offload,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "SHARDED_STATE_DICT",
        },
        # Reduced after every micro-batch, gradients add up in shards; left to the step's end, each rank would hold all of them.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def deepspeed_config(recipe: Recipe, accumulation: int) -> dict[str, Any]:
    """ZeRO-3 as a recipe means it: float32 weights, products under autocast, gradients summed in float32.

    DeepSpeed's own ``bf16`` would round the weights before it makes its float32 copy of them; its ``torch_autocast`` gathers float32
    weights in the type of the products.
    """
    products = recipe.model.compute_dtype or recipe.model.dtype
    config: dict[str, Any] = {
        "zero_optimization": {"stage": 3, "overlap_comm": True, "contiguous_gradients": True},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.train.max_grad_norm,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }
    if products != "float32":
        config["torch_autocast"] = {"enabled": True, "dtype": products}
    return config


def set_precision(arguments: Any, products: torch.dtype | None) -> None:
    """Products in a type of their own under FSDP (None: that of the weights), the gradients of the ranks summed in float32.

    accelerate's own policy would also sum in the type of the products.
    """
    policy = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=torch.float32, output_dtype=products)
    arguments.fsdp_plugin_args["mixed_precision_policy"] = policy


class Sharded:
    """What a trainer does otherwise where weights are shards. Goes before the trainer's class.

    Checkpoints hold shards (:mod:`sft.engine.shards`), or the adapter whole, which is small. An export is gathered file by file.
    """

    recipe: Recipe
    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    state: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    _partial: Path | None

    def create_accelerator_and_postprocess(self) -> None:
        """Let accelerate shard on CPUs too, where it would fall back to DDP without a word."""
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        state = self.accelerator.state
        if self.args.fsdp_plugin_args is not None and state.distributed_type == DistributedType.MULTI_CPU:
            state._shared_state["distributed_type"] = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def check_sharding(self) -> None:
        """Refuse to call a run sharded that is not.

        Raises:
            RunError: the recipe asks for shards and a parameter is whole.
        """
        wanted, parameters = self.recipe.train.sharding, list(self.model.parameters())
        sharded = {
            "none": True,
            "fsdp": all(isinstance(p, DTensor) for p in parameters),
            "deepspeed": all(getattr(p, "ds_tensor", None) is not None for p in parameters),
        }
        if not sharded[wanted]:
            raise RunError(
                f"train.sharding: {wanted}, but the parameters were not sharded: accelerate fell back to another way; "
                "set train.sharding: none, or report this with the versions in run.json"
            )

    # -- saving -----------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """An ordinary model or adapter folder; in a checkpoint of a sharded model its shards. Every rank must call it."""
        folder = Path(output_dir or self.args.output_dir)
        if self.is_deepspeed_enabled:
            shards.export_weights(self.model, folder, main=self.args.should_save)
        elif not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        elif self.recipe.lora is not None:
            trained = {name: shards.whole(p) for name, p in self.model.named_parameters() if p.requires_grad}
            self._save(str(folder), state_dict=trained)  # type: ignore[attr-defined]
        elif self._partial is not None:
            shards.write(folder / shards.WEIGHTS, shards.named_weights(self.model))
        elif _converted_on_loading(self.model):
            # transformers renames or joins weights of this family on loading; only with all of them can it take that back.
            self._save(str(folder), state_dict=self.accelerator.get_state_dict(self.model))  # type: ignore[attr-defined]
        else:
            shards.export_weights(self.model, folder, main=self.args.should_save)

    def verify_saved_model(self, folder: Path) -> int:
        """Compare what :meth:`save_model` wrote with the live model. Every rank must call it; returns the tensors compared.

        None are of a sharded family that transformers converts on loading: what is written has other names than what is live.

        Raises:
            VerificationError: a tensor that is missing, or differs.
        """
        live = self.adapter_state()  # type: ignore[attr-defined]
        self.accelerator.wait_for_everyone()
        if live is None and self.is_fsdp_enabled:
            return 0 if _converted_on_loading(self.model) else shards.verify_export(self.model, folder)
        if self.is_deepspeed_enabled:
            return shards.verify_gathered(self.model, folder, main=self.args.should_save)
        if not self.args.should_save:
            return 0
        if live is not None:
            return adapters.verify_saved(folder, live)
        return checkpoints.verify_weights(folder, self.accelerator.unwrap_model(self.model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        shards.write_optimizer(Path(output_dir) / shards.OPTIMIZER, self.model, optimizers.innermost(self.optimizer))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    # -- resuming ---------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        if (folder / shards.WEIGHTS).is_dir():
            shards.read(folder / shards.WEIGHTS, shards.named_weights(target))
        elif not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        elif self.recipe.lora is not None:
            shards.read(folder, adapters.live_adapter(target))
        else:
            shards.read(folder, shards.named_weights(target))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, model = Path(checkpoint), self.accelerator.unwrap_model(self.model)
        if (folder / shards.OPTIMIZER).is_dir():
            shards.read_optimizer(folder / shards.OPTIMIZER, model, optimizers.innermost(self.optimizer))
        elif self.is_fsdp_enabled and (folder / "optimizer.pt").is_file():
            shards.spread_optimizer(folder / "optimizer.pt", model, optimizers.innermost(self.optimizer))
        elif self.is_fsdp_enabled:
            raise ResumeError(
                f"{folder}: holds neither {shards.OPTIMIZER}/ nor optimizer.pt: an earlier version wrote it, which gathered its states; "
                "go on with that version, or start a new output.dir"
            )
        else:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        self.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
        for group, rate in zip(optimizers.innermost(self.optimizer).param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or checkpoints.world_of(Path(checkpoint)) == self.args.world_size:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]
            return
        from transformers import set_seed

        drawn = np.random.SeedSequence([self.args.seed, self.state.global_step, self.args.process_index]).generate_state(1)
        set_seed(int(drawn[0]))


def _converted_on_loading(model: Any) -> bool:
    """Whether transformers renames or joins weights of this model when it loads them."""
    found = getattr(model, "_weight_conversions", None)  # set by from_pretrained, also if there are none
    if found is None:
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping

            found = get_model_conversion_mapping(model, add_legacy=False)
        except (ImportError, TypeError):  # moved since: take the way that is right for all
            return True
    return bool(found)


def forget_deepspeed() -> None:
    """A model that is loaded from here on is an ordinary one: transformers would shard every model while it knows of ZeRO-3."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
