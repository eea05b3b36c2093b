"""Ids and masks: those of the tokenizer on the whole text, for every template and every kind of tokenizer."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sft.data.conversation import Conversation, Drop, Turn
from sft.data.template import builtin_names, load_template
from sft.data.tokenize import RowEncoder, Tokenized, stand_in_tokenizer
from sft.errors import TokenizerError
from tests.builders import TOKENIZERS, byte_level, sentencepiece_like

CROSSING = ("vicuna_v1.1", "vicuna_v0", "llama2")


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", builtin_names())
def test_ids_and_mask(name: str, kind: str) -> None:
    template, tokenizer = load_template(name), copy.deepcopy(TOKENIZERS[kind]())
    tokenizer.add_tokens(list(template.tokens), special_tokens=True)
    encoder = RowEncoder(tokenizer, template, "last" if template.only_last else "assistant")
    row = Conversation("row", (Turn("user", "Hello there"), Turn("assistant", "Red, green")), "source")
    got = encoder.encode([row])[0]
    if kind == "colon_crossing" and name in CROSSING:
        assert isinstance(got, Drop)
        assert got.reason == "prompt_not_prefix"
        return
    assert isinstance(got, Tokenized), got
    rendered = encoder.renderer.render(row)
    assert got.ids.tolist() == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    ((start, end),) = rendered.spans
    assert tokenizer.decode(got.ids[got.mask].tolist()).strip() == rendered.text[start:end].strip()
    prompt = encoder.prompt_ids(Conversation("row", row.turns[:1], "source"))
    assert got.ids[: len(prompt)].tolist() == prompt


def test_all_leaves_out_what_is_marked() -> None:
    turns = (Turn("user", "a"), Turn("assistant", "b", False), Turn("user", "c"), Turn("assistant", "d"))
    row = RowEncoder(byte_level(), load_template("chatml"), "all").encode([Conversation("row", turns, "source")])[0]
    assert isinstance(row, Tokenized)
    start, stop = row.turns[0]
    assert [i for i, learnt in enumerate(row.mask) if not learnt] == [0, *range(start, stop)]


def test_missing_template_tokens_are_named() -> None:
    with pytest.raises(TokenizerError, match=r"<\|im_start\|>, <\|im_end\|>"):
        RowEncoder(sentencepiece_like(), load_template("chatml"))


def test_a_control_token_that_merges_need_is_refused() -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    backend.add_special_tokens(["ab"])
    with pytest.raises(TokenizerError, match="'ab'"):
        stand_in_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), ["ab"])


def test_nothing_trained_says_why_under_last() -> None:
    row = Conversation("row", (Turn("user", "a"), Turn("assistant", "b", False)), "source")
    drop = RowEncoder(byte_level(), load_template("chatml"), "last").encode([row])[0]
    assert isinstance(drop, Drop)
    assert drop.reason == "nothing_trained"
    assert "last" in drop.detail
