"""LoRA adapters: attached by the recipe, saved, and re-opened to see that what was saved is what was trained."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft.errors import ModelError, VerificationError
from sft.model import fast_lora
from sft.recipe import LoraSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def attach(
    model: PreTrainedModel, section: LoraSection, new_rows: tuple[int, ...], *, seed: int, whole_embedding: bool = False
) -> nn.Module:
    """Freeze the base and put adapters on it.

    Adapters are float32 whatever the base is: at 1e-4 a bfloat16 adapter loses most updates to rounding.

    Args:
        model: the base, possibly quantised.
        section: the recipe's ``lora``.
        new_rows: embedding rows that must be trained too.
        seed: draws the initial A.
        whole_embedding: train a float32 copy of the whole embedding and head, as Chinese-LLaMA did (Cui et al. 2023), not only those rows.

    Raises:
        ModelError: unknown target modules, new tokens that ``train_new_tokens: false`` would leave untrained, or a head that is the
            embedding and would become another one.
    """
    from peft import LoraConfig, get_peft_model

    if new_rows and not section.train_new_tokens:
        raise ModelError(
            f"the template adds {len(new_rows)} tokens whose embedding would stay untrained; "
            "set lora.train_new_tokens: true or choose a template that needs no new tokens"
        )
    # peft's preparation of a quantised base would turn what is not quantised (norms, embeddings, head) and all that flows between the
    # layers into float32, for bases in float16. Here they keep the recipe's model.dtype; only the adapters are float32.
    model.requires_grad_(False)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    options = _for_new_rows(model, new_rows, tied, whole=whole_embedding)
    targets = "all-linear" if section.targets == "all_linear" else list(section.targets)
    _check_targets(model, section)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=targets,
        use_rslora=section.rslora,
        use_dora=section.dora,
        bias="none",
        task_type="CAUSAL_LM",
        **options,
    )
    torch.manual_seed(seed)  # A is drawn at random: without this, equal recipes would give different runs
    kept = model.get_input_embeddings().weight.dtype
    adapted = get_peft_model(model, config)
    keep_float32(adapted)
    if whole_embedding:
        _keep_stream(model, kept)
    if section.dropout == 0 and not section.dora:
        fast_lora.speed_up(adapted)
    # The grown embedding is made again from the base (the exact mean), the trained rows are in the adapter: saving the whole
    # embedding too would only make the file large, and asking the Hub whether it should be saved fails offline.
    adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def _for_new_rows(model: PreTrainedModel, new_rows: tuple[int, ...], tied: bool, *, whole: bool) -> dict[str, Any]:
    """What peft must be told so that rows of the embedding and the head are trained."""
    names = _embedding_names(model)
    if not whole:
        return (
            {"trainable_token_indices": {name: list(new_rows) for name in (names[:1] if tied else names)}} if new_rows else {}
        )
    if tied:
        raise ModelError(
            "tokenizer.extend.train: this model's output matrix is its embedding, which copies of both would part; set rows"
        )
    return {"modules_to_save": names}


def _keep_stream(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let what flows between the layers stay as narrow as it was where embedding and head are float32 copies, autocast or not."""

    def widen(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return inputs if torch.is_autocast_enabled(inputs[0].device.type) else (inputs[0].float(), *inputs[1:])

    if dtype != torch.float32:
        model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.to(dtype))
        model.get_output_embeddings().register_forward_pre_hook(widen)


def keep_float32(model: nn.Module) -> None:
    """Cast every trainable parameter to float32, in place. trl casts adapters on quantised bases to bfloat16; this undoes it."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _embedding_names(model: PreTrainedModel) -> list[str]:
    wanted = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = {id(module): name for name, module in model.named_modules()}
    return [found[id(module)].rsplit(".", 1)[-1] for module in wanted if module is not None]


def _check_targets(model: PreTrainedModel, section: LoraSection) -> None:
    if section.targets == "all_linear":
        return
    leaves = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
    unknown = [target for target in section.targets if target not in leaves]
    if unknown:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(f"lora.targets: this model has no module {unknown[0]!r}; its linear layers are {', '.join(linear)}")


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that belong into the adapter file, by the names they have there. Under FSDP every rank must call this."""
    return {key: _whole(tensor) for key, tensor in live_adapter(model).items()}


def live_adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    """The same tensors as they lie in the model, sharded or not."""
    from peft import get_peft_model_state_dict

    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is, a sharded one gathered from all ranks (over the GPUs, wherever the shards lie)."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    shards = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(shards, DTensor)
    return shards.full_tensor()


def verify_saved(folder: Path, live: Mapping[str, torch.Tensor]) -> int:
    """Re-open ``adapter_model.safetensors`` and compare it with the live adapter key by key.

    An adapter file of 443 bytes is this field's best-known lost training run.

    Returns:
        The number of tensors compared, all of them equal.

    Raises:
        VerificationError: a missing or foreign key, another shape, or another value.
    """
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise VerificationError(f"{path}: the adapter was not written")
    with safe_open(path, framework="pt") as saved:
        keys = set(saved.keys())
        missing, foreign = set(live) - keys, keys - set(live)
        if not live or missing or foreign:
            raise VerificationError(
                f"{path}: holds {len(keys)} tensors, the trained adapter has {len(live)}; "
                f"missing {sorted(missing)[:3]}, foreign {sorted(foreign)[:3]}"
            )
        for key, tensor in live.items():
            stored = saved.get_tensor(key)
            if stored.shape != tensor.shape or not torch.equal(stored, tensor.detach().cpu().to(stored.dtype)):
                raise VerificationError(f"{path}: {key} differs from the trained adapter")
    return len(live)


def open_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedModel:
    """Put a saved adapter on its base, the embedding grown as in training.

    Raises:
        ModelError: adapter and base do not belong together.
    """
    from peft import PeftModel

    from sft.model.load import fit_embedding

    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: no adapter_model.safetensors here (pickled adapters are not read)")
    fit_embedding(model, tokenizer, 8)
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: this adapter does not fit its base: {str(error).splitlines()[0]}") from None
