"""A copy of a tokenizer that knows its special tokens under private names only.

::

    tokenizer      <s> </s> <|im_end|> ...     a message that spells </s> would become its id
    copy            A    B      C      ...     private characters (plane 16): </s> in a message is plain text

What the template writes is put in as the private character, so ids are those of the tokenizer on the whole rendered text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from sft.data.marks import PRIVATE_FIRST
from sft.data.template import ChatTemplate, SpecialTokens
from sft.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> SpecialTokens:
    """The control strings of a tokenizer, and the variables that its templates use.

    Tokens count as control if they are marked special, or if the template itself writes them (``<think>``, ``<tool_call>``).
    Other added tokens (runs of spaces, HTML tags) are ordinary vocabulary.
    """
    control = [
        str(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template.source)
    ]
    named = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    bos = str(tokenizer.bos_token or "")
    eos = str(tokenizer.eos_token or "")
    return SpecialTokens(bos=bos, eos=eos, control=tuple(sorted(set(control))), named=tuple(sorted(named.items())))


def writes_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts its BOS token before a text (LLaMA and OPT do, GPT-2 and Qwen do not)."""
    if not tokenizer.bos_token:
        return False
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def stand_in_tokenizer(tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> tuple[Tokenizer, dict[str, str]]:
    """Copy the tokenizer's backend with each control token renamed to one private character.

    Returns:
        The copy (no post-processor, no padding, no truncation) and the map from token to stand-in.

    Raises:
        TokenizerError: no Rust backend, a control token that ordinary text needs as a piece, or a copy that does not keep the ids.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no tokenizers backend, so offsets are unknown; "
            "save it once as tokenizer.json (AutoTokenizer with the tokenizers package) and point the recipe there"
        )
    spec = json.loads(backend.to_str())
    spec["post_processor"] = spec["padding"] = spec["truncation"] = None
    names = {token: chr(ord(PRIVATE_FIRST) + i) for i, token in enumerate(control)}
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    _refuse_needed_pieces(model, names)
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    try:
        copy = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    except Exception as error:  # the bindings raise nothing more specific
        raise TokenizerError(
            f"the tokenizer cannot be copied with its special tokens ({', '.join(control)}) renamed: {error}; "
            "re-save it, or take those that are ordinary text out of its special tokens"
        ) from None
    for token, stand_in in names.items():
        if copy.token_to_id(stand_in) != backend.token_to_id(token):
            raise TokenizerError(f"the special token {token!r} has no stable id in tokenizer.json; re-save the tokenizer")
    return copy, names


def _refuse_needed_pieces(model: dict[str, Any], control: Collection[str]) -> None:
    """Ordinary text must not need a control token as a piece: renaming it would take that text out of the vocabulary."""
    if model.get("type") != "BPE":
        return
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    used = {piece for left, right in merges for piece in (left, right, left + right)}
    byte_fallback = bool(model.get("byte_fallback"))
    for token in control:
        # A letter, or one of the byte pieces that stand in for letters, is needed without any merge.
        letter = len(token) == 1 and token in model["vocab"] and not byte_fallback
        byte = byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", token)
        if token in used or letter or byte:
            raise TokenizerError(
                f"the special token {token!r} is also a piece that ordinary text is made of (a letter, or a step of a merge), so the "
                "two cannot be told apart; choose another string for it, or take it out of the tokenizer's special tokens"
            )
