"""Models: loaded or built, in the recipe's types, with an embedding that fits the tokenizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sft.errors import ModelError
from sft.model import int8
from sft.model.attention import choose, register
from sft.model.extending import row_origins
from sft.model.tokenizer import load_tokenizer
from sft.recipe import ModelSection, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Else transformers takes the weights of a bot's pull request where a repository holds no safetensors and no revision is named: the
# commit that is recorded would not be the one that was loaded.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

# Rows of many lengths leave gaps that fixed segments cannot join: 5 GiB of 78 under a 7B model. Read when CUDA is first used.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready for training.

    Attributes:
        model: in training mode, caches off.
        repairs: what was changed, one sentence each.
        new_rows: embedding rows that the base model did not have; they need training.
        attention: implementation in use.
        commit: of the Hub, resolved from the recipe's revision; None for a folder or a scratch model.
    """

    model: PreTrainedModel
    repairs: list[str]
    new_rows: tuple[int, ...]
    attention: str
    commit: str | None = None


def device_for_run() -> torch.device:
    """The device of this process: its own GPU under torchrun, else the first one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def compute_dtype(section: ModelSection) -> torch.dtype:
    """Type of the matrix products."""
    return DTYPES[section.compute_dtype or section.dtype]


def product_type(recipe: Recipe) -> str:
    """Type of the matrix products under autocast; ``float32`` means that autocast does not run."""
    compute = recipe.model.compute_dtype or recipe.model.dtype
    return compute if compute != recipe.model.dtype or recipe.lora is not None else "float32"


def load_config(section: ModelSection) -> PreTrainedConfig:
    """Configuration of the base model, with the recipe's RoPE scaling in it.

    Raises:
        ModelError: not loadable natively, or RoPE scaling for a model without RoPE.
    """
    from huggingface_hub.errors import StrictDataclassError

    from sft.model.native import AutoConfig

    if section.scratch is not None:
        fields: dict[str, Any] = dict(section.scratch.config)
        try:
            return AutoConfig.for_model(str(fields.pop("model_type")), vocab_size=section.scratch.vocab_size, **fields)
        except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
            raise ModelError(f"model.scratch.config: {' '.join(str(error).split())}") from None
    try:
        config = AutoConfig.from_pretrained(section.name_or_path, revision=section.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(
            f"model.name_or_path: {section.name_or_path!r} cannot be loaded by transformers itself "
            f"(remote code is never run): {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None
    if section.rope_scaling is not None:
        _scale_rope(config, section)
    return config


def _scale_rope(config: PreTrainedConfig, section: ModelSection) -> None:
    assert section.rope_scaling is not None
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        raise ModelError(f"model.rope_scaling: {config.model_type} has no plain RoPE to scale; remove it")
    if parameters.get("rope_type", "default") != "default":
        raise ModelError(
            f"model.rope_scaling: the base model already scales its positions ({parameters['rope_type']}); remove it"
        )
    old = config.max_position_embeddings
    scaled = {**parameters, "rope_type": section.rope_scaling.type, "factor": section.rope_scaling.factor}
    if section.rope_scaling.type == "yarn":
        scaled["original_max_position_embeddings"] = old
    config.rope_parameters = scaled
    config.max_position_embeddings = int(old * section.rope_scaling.factor)


def check_length(config: PreTrainedConfig, max_length: int) -> None:
    """Refuse rows longer than the positions that the model knows.

    Raises:
        ModelError: with the factor that would be needed.
    """
    known = getattr(config, "max_position_embeddings", None)
    if known is not None and max_length > known:
        raise ModelError(
            f"data.max_length = {max_length}, but the model knows {known} positions; lower it, or set "
            f"model.rope_scaling.factor to at least {max_length / known:.3g}"
        )


def quantization_config(section: ModelSection) -> Any:
    """The bitsandbytes configuration of a recipe, or None.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if section.quantization in ("none", "float8"):
        return None
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"model.quantization: {section.quantization} needs bitsandbytes: pip install 'vicugna[bnb]'")
    from transformers import BitsAndBytesConfig

    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.quantization,
        bnb_4bit_use_double_quant=section.double_quantization,
        bnb_4bit_compute_dtype=compute_dtype(section),
    )


def load_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Loaded:
    """Load or build the model of a recipe on one device.

    Raises:
        ModelError: anything about it that cannot be used, with what to change.
    """
    from sft.model.native import AutoModelForCausalLM

    section = recipe.model
    register()
    config = load_config(section)
    check_length(config, recipe.data.max_length)
    attention = choose(section.attention, recipe.train.batching == "flat", compute_dtype(section), device)
    dtype = DTYPES[section.dtype]
    if section.scratch is not None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        config.vocab_size = len(tokenizer)
        torch.manual_seed(recipe.train.seed)
        with device:  # built where it will live: a large one would take minutes on the CPU
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    else:
        options: dict[str, Any] = {}
        if section.quantization not in ("none", "float8"):
            options = {"quantization_config": quantization_config(section), "device_map": {"": device}}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                section.name_or_path,
                revision=section.revision,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,  # a pickle is a program
                **options,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"model.name_or_path: {section.name_or_path!r} cannot be loaded (weights are read as safetensors only): "
                f"{(str(error) or repr(error)).splitlines()[0]}. Where it holds .bin files only, write it once as safetensors "
                "(transformers: from_pretrained, then save_pretrained, model and tokenizer) and name that folder"
            ) from None
        if not options and section.quantization != "float8":
            model = model.to(device)
    made_of = {} if recipe.tokenizer.extend is None else row_origins(load_tokenizer(section)[0], tokenizer)
    repairs, new_rows = fit_embedding(model, tokenizer, section.pad_to_multiple_of, made_of)
    if section.quantization == "float8":
        from sft.model.float8 import freeze_in_float8  # brings torch's compiler along, a second that others need not wait

        freeze_in_float8(model, device)
    if section.quantization == "int8":
        int8.keep_nothing(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes repacks 4-bit weights on such CPUs at the first look in eval mode: their scales are rounded once more, and
            # layers narrower than a block of 64 fail.
            module.support_avx512bf16_for_cpu = False
    model.config.use_cache = False
    return Loaded(model, repairs, new_rows, attention, getattr(config, "_commit_hash", None))


def freeze_head(model: PreTrainedModel, asked: bool | str) -> list[str]:
    """Leave the output matrix out of full tuning, in place, if the recipe says so or (``auto``) if its rows were normalised.

    Baichuan2 trains rows that are scaled to length 1 at every step. Tuned as plain ones they would move away from that.

    Returns:
        What was done, one sentence, if anything was.

    Raises:
        ModelError: the output matrix is the embedding.
    """
    normalised = bool(getattr(model.config, "norm_head", False))
    if asked is False or (asked == "auto" and not normalised):
        return []
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight:
        raise ModelError("train.freeze_head: the output matrix of this model is its embedding; set false")
    head.requires_grad_(False)
    return ["the output matrix is frozen" + (": its rows have length 1, as in Baichuan2's own code" if normalised else "")]


def fit_embedding(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    multiple: int,
    made_of: Mapping[int, tuple[int, ...]] | None = None,
) -> tuple[list[str], tuple[int, ...]]:
    """Make sure that every token id has an embedding row, and that the configured ids agree with the tokenizer.

    New rows are the mean of the old ones (Hewitt 2021), as Alpaca did it, or of those that spelt the token before. In place.

    Args:
        model: as it was loaded.
        tokenizer: of the run.
        multiple: a grown embedding has a multiple of this many rows.
        made_of: ids that the recipe added, each with the ids of the base that spelt it before. Those that have a spare row are new as well.

    Returns:
        Repairs, and the ids whose rows are new.

    Raises:
        ModelError: the tokenizer is larger than the model by more than added special tokens explain.
    """
    repairs: list[str] = []
    made_of = made_of or {}
    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        beyond = set(range(rows, needed))
        if not beyond <= added | set(made_of):
            raise ModelError(
                f"the tokenizer has {needed} entries, the model's embedding only {rows} rows, and these are not just added special "
                "tokens: tokenizer and model do not belong together"
            )
        _refuse_quantised_rows(model, needed - rows)
        # transformers' own mean_resizing draws from a normal around the mean; the exact mean can be made again when merging
        model.resize_token_embeddings(needed, pad_to_multiple_of=multiple, mean_resizing=False)
        now = model.get_input_embeddings().weight.shape[0]
        what = "mean of the old rows" if not made_of else "mean of the rows that spelt them"
        repairs.append(f"embedding grown from {rows} to {now} rows for {needed - rows} new tokens ({what})")
    _fill_with_means(model, rows, made_of)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        wanted, have = getattr(tokenizer, name), getattr(model.config, name, None)
        if wanted is not None and have != wanted and not (isinstance(have, list) and wanted in have):
            setattr(model.config, name, wanted)
            repairs.append(f"config.{name} was {have}: set to the tokenizer's {wanted}")
    return repairs, tuple(sorted({*range(rows, needed), *made_of}))


def _refuse_quantised_rows(model: PreTrainedModel, count: int) -> None:
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(table is not None and not table.weight.is_floating_point() for table in tables):
        raise ModelError(
            f"{count} tokens must be added, which a quantised embedding or head cannot take; choose another template"
        )


@torch.no_grad()
def _fill_with_means(model: PreTrainedModel, old_rows: int, made_of: Mapping[int, tuple[int, ...]]) -> None:
    """Set rows behind ``old_rows`` of embedding and head to the mean of the old rows, those of ``made_of`` to that of their parts. In place."""
    tables = {id(m.weight): m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    for module in tables.values():
        for values in (module.weight, getattr(module, "bias", None)):
            if values is None:
                continue
            if len(values) > old_rows:
                values[old_rows:] = values[:old_rows].float().mean(dim=0).to(values.dtype)
            if made_of:
                ids, parts = list(made_of), list(made_of.values())
                flat = torch.tensor([i for some in parts for i in some], device=values.device)
                owner = torch.tensor([n for n, some in enumerate(parts) for _ in some], device=values.device)
                count = torch.tensor([len(some) for some in parts], device=values.device).view(-1, *[1] * (values.dim() - 1))
                sums = torch.zeros(len(ids), *values.shape[1:], device=values.device).index_add_(0, owner, values[flat].float())
                values[torch.tensor(ids, device=values.device)] = (sums / count).to(values.dtype)
