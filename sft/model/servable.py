"""A folder that transformers, vLLM and others serve exactly as it was trained: weights, tokenizer, template, stops, card.

The exported tokenizer carries the training template (its ``{% generation %}`` marks taken out, which changes no rendered byte) and
``generation_config.json`` the ids that end an answer. Both are checked by loading the folder again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.data.conversation import Conversation, Turn
from sft.data.template import RenderRefused, load_template
from sft.data.tokenize import RowEncoder
from sft.errors import VerificationError
from sft.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBES = (
    Conversation("probe-1", (Turn("user", "Hello there."),), "probe"),
    Conversation("probe-2", (Turn("system", "Be brief."), Turn("user", "用中文回答：二加三等于几？")), "probe"),
    Conversation("probe-3", (Turn("user", "Sort these."), Turn("input", "pear, apple, fig")), "probe"),
    Conversation(
        "probe-4", (Turn("user", "Hi"), Turn("assistant", "Hello!"), Turn("user", "def f(x):\n    return x")), "probe"
    ),
)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, folder: Path) -> None:
    """Save a tokenizer that carries the training template, and pads on the left, as generation of several prompts needs it."""
    served = copy.deepcopy(tokenizer)
    served.padding_side = served.init_kwargs["padding_side"] = "left"  # saving reads the second, and knows nothing of the first
    served.chat_template = encoder.template.served_source()
    served.save_pretrained(folder)


def write_generation_config(encoder: RowEncoder, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write ``generation_config.json``: the stops that were trained, greedy unless the caller samples."""
    from transformers import GenerationConfig

    ids, _ = encoder.stops()
    config = GenerationConfig(eos_token_id=ids, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id)
    config.save_pretrained(folder)


def write_servable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    folder: Path,
    about: Mapping[str, Any],
    *,
    max_shard_size: str = "5GB",
) -> None:
    """Write everything but the check: weights as safetensors, tokenizer, generation config, record, model card."""
    ids, _ = encoder.stops()
    model.config.use_cache = True
    model.config.eos_token_id = ids if len(ids) > 1 else ids[0]
    if model.generation_config is not None:  # sampling flags of the base would contradict the greedy default
        model.generation_config = type(model.generation_config)()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(tokenizer, encoder, folder)
    write_generation_config(encoder, tokenizer, folder)
    write_json(folder / "vicugna.json", {**serving_record(encoder), **about})
    (folder / "README.md").write_text(model_card(about, encoder), encoding="utf-8")


def serving_record(encoder: RowEncoder) -> dict[str, Any]:
    """What a server must know of the template beyond its text."""
    ids, strings = encoder.stops()
    template = encoder.template
    return {
        "template": template.name,
        "template_fingerprint": template.fingerprint,
        "multi_turn": template.multi_turn,
        "roles": list(template.roles),
        "stop_ids": ids,
        "stop_strings": strings,
    }


def check_served_ids(folder: Path, encoder: RowEncoder) -> int:
    """Load the exported tokenizer and compare its prompts with the training prompts, id by id, two ways.

    Through transformers' own ``apply_chat_template`` (what vLLM calls), and through our encoder over the exported template.

    Returns:
        The number of prompts that the template can write and that were compared.

    Raises:
        VerificationError: with the first prompt that differs.
    """
    from transformers import AutoTokenizer

    served = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    own = RowEncoder(served, load_template("tokenizer", tokenizer_source=served.chat_template), "all")
    compared = 0
    for probe in PROBES:
        try:
            wanted = encoder.prompt_ids(probe)
        except RenderRefused:
            continue
        turns = encoder.renderer.turns_of(probe)  # folded as in training
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        theirs = served.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        ours = own.prompt_ids(Conversation(probe.id, turns, probe.source))
        for name, got in (("transformers", list(theirs)), ("vicugna", ours)):
            if got != wanted:
                raise VerificationError(
                    f"{folder}: {probe.id} has the ids {wanted[:16]}... in training and {got[:16]}... when served by {name}"
                )
        compared += 1
    if compared == 0:
        raise VerificationError(f"{folder}: the template {encoder.template.name} wrote none of the probe prompts")
    return compared


def model_card(about: Mapping[str, Any], encoder: RowEncoder) -> str:
    """README.md of an exported model: lineage, template, stops, how to talk to it."""
    ids, strings = encoder.stops()
    lines = [
        "---",
        "library_name: transformers",
        "tags: [vicugna, sft]",
        f"base_model: {json.dumps(str(about.get('base', 'from scratch')))}",
        "---",
        f"# {about.get('name', 'Tuned model')}",
        "",
        f"Tuned with Vicugna {about.get('versions', {}).get('vicugna', '')} ({about.get('method', 'full')}).",
        "",
        "| | |",
        "|---|---|",
        f"| base | {about.get('base', 'from scratch')} @ {about.get('revision') or '-'} |",
        f"| template | {encoder.template.name} (`{encoder.template.fingerprint[:12]}`) |",
        f"| stop ids | {ids} {strings or ''} |",
        f"| data | `{about.get('data', '')}` |",
        f"| rows, learnt tokens | {about.get('train_rows', '?')}, {about.get('trained_tokens', '?')} |",
        f"| steps | {about.get('steps', '?')} |",
        f"| held-out loss | {about.get('holdout_loss', '-')} |",
        f"| export check | {about.get('difference', '-')} |",
        "",
        "Talk to it: `sft chat .`",
        "",
    ]
    return "\n".join(lines)
