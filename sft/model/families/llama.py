"""LLaMA as the first conversions wrote it: the class is called ``LLaMAForCausalLM``, the rotary table is saved in every layer.

The weights are today's, name by name; three things around them are not:

- ``rotary_emb.inv_freq``: computed today. Old files hold it in float16, too coarse for long positions.
- ``bos_token_id`` 0, ``eos_token_id`` 1, ``pad_token_id`` -1 of many such folders are no tokens of LLaMA's: 1 and 2 are, and there is no pad
  token (an id of -1 means the last row of the embedding, which would then never be trained).
- the tokenizer class ``LLaMATokenizer`` is in no library; ``tokenizer.model`` is read as it is.

A folder whose class is ``LlamaForCausalLM`` is left alone: transformers has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sft.errors import TokenizerError
from sft.model.families.family import Config, Facts, Family, Renamed, expect, need
from sft.model.families.legacy import Legacy
from sft.model.sentencepiece_bpe import PROBES, read_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def recognises(config: Config) -> bool:
    """By the old name of the class, which no library has."""
    return "LLaMAForCausalLM" in (config.get("architectures") or ())


def config_of(config: Config) -> dict[str, Any]:
    """LLaMA's configuration with the ids that its tokenizer has."""
    expect(config, hidden_act="silu", rope_scaling=None, attention_bias=False, mlp_bias=False, tie_word_embeddings=False)
    hidden, inner, layers, heads, vocabulary = need(
        config, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"
    )
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": config.get("max_position_embeddings") or config.get("max_sequence_length") or 2048,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10_000.0))},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }


def tensors_of(name: str, value: Tensor, config: Config) -> Renamed:
    """See the module."""
    if not name.endswith("rotary_emb.inv_freq"):
        yield name, value


def tokenizer_of(legacy: Legacy) -> PreTrainedTokenizerBase:
    """``tokenizer.model`` as a plain tokenizer that writes BOS first.

    Raises:
        TokenizerError: no sentencepiece model, other ids of BOS and EOS than LLaMA's, or ids that differ from sentencepiece's.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    model = read_model(legacy.file("tokenizer.model"))
    if (ids := (model.reference.bos_id(), model.reference.eos_id())) != (1, 2):
        raise TokenizerError(
            f"{model.path}: BOS and EOS have the ids {ids[0]} and {ids[1]}, LLaMA's are 1 and 2; is this another model's file?"
        )
    bos, eos, unknown = (model.reference.id_to_piece(index) for index in (1, 2, model.reference.unk_id()))
    backend = model.backend()
    if differing := model.differing(backend, [*PROBES, *model.vocabulary()]):
        raise TokenizerError(
            f"{model.path}: {differing[0][0]!r} has the ids {differing[0][1]} here and {differing[0][2]} in sentencepiece"
        )
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unknown, clean_up_tokenization_spaces=False
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama_legacy",
        native="llama",
        # a base model: no chat format of its own
        template="alpaca",
        recognises=recognises,
        config=config_of,
        tensors=tensors_of,
        tokenizer=tokenizer_of,
        facts=Facts(
            ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            "2,048",
            "flat",
            "6e-6",
        ),
    ),
)
