"""Words that are merged once and then copied give the ids and offsets of the tokenizer, or are left to it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from tokenizers import AddedToken

from sft.data import interning, interning_kernels, text_encoder
from sft.data.conversation import Conversation, Drop, Turn
from sft.data.interning import WordEncoder, Words
from sft.data.stand_in import stand_in_tokenizer
from sft.data.template import builtin_names, load_template
from sft.data.text_encoder import Encoded, TextEncoder
from sft.data.tokenize import RowEncoder
from sft.data.vocabulary import NotUnderstood, Vocabulary, read
from sft.model.tokenizer import repair_tokens
from tests.builders import TOKENIZERS, byte_level, colon_crossing, sentencepiece_like
from tests.data.followed import FOLLOWED, PIECES, changed, copied, texts


@lru_cache
def encoder(name: str) -> WordEncoder:
    backend, stand_ins = copied(name)
    return WordEncoder(backend, read(backend, stand_ins))


def told(encoding: Encoded, text: str) -> tuple[Any, ...]:
    """All that is ever asked of an encoding."""
    spans = [tuple(span) for span in np.asarray(encoding.offsets).tolist()]
    places = [encoding.char_to_token(char) for char in range(len(text) + 1)]
    return list(encoding.ids), spans, len(encoding), places, [encoding.token_to_chars(k) for k in range(len(encoding))]


@pytest.mark.parametrize("name", FOLLOWED)
def test_words_are_the_tokenizers_own_ids_and_offsets(name: str) -> None:
    backend, stand_ins = copied(name)
    ours = encoder(name)

    @settings(max_examples=150, deadline=None, database=None)
    @given(texts(stand_ins))
    @example("".join(PIECES))
    @example("".join(PIECES[::-1]))
    def law(text: str) -> None:
        (found,) = ours.encode([text])
        assert told(found, text) == told(backend.encode(text, add_special_tokens=False), text)

    law()


@pytest.mark.parametrize("name", FOLLOWED)
def test_edges_are_the_tokens_that_begin_there(name: str) -> None:
    _, stand_ins = copied(name)
    ours = encoder(name)

    @settings(max_examples=50, deadline=None, database=None)
    @given(texts(stand_ins))
    def law(text: str) -> None:
        (found,) = ours.encode([text], [range(len(text) + 1)])
        if isinstance(found, Words):
            for edge, at in enumerate(found.at):
                first = len(found) if edge == len(text) else found.char_to_token(edge)
                assert first is not None
                begins = found.token_to_chars(first) or (edge, edge)
                assert at == (first if begins[0] == edge else -1)

    law()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama", "a ▁ b"),
        ("qwen2", "e\u0301"),
        ("qwen2", "\u1100\u1161"),
        ("gpt2", "𠀀"),
        ("gpt2", "\u0378"),
        ("llama", "\U0010abcd"),
        ("gpt2", "a" * 1100),
        ("llama", "x" * 400 + "中" * 400),
    ],
)
def test_what_is_not_sure_is_left_to_the_tokenizer(name: str, text: str) -> None:
    ours, (backend, _) = encoder(name), copied(name)
    before = ours.left
    rows = ours.encode(["a", text, "b"])
    kinds = [isinstance(row, Words) for row in rows]
    expected = backend.encode(text, add_special_tokens=False).ids
    assert list(rows[1].ids) == expected
    assert kinds == ([True, True, True] if text.startswith("x") else [True, False, True])
    assert ours.left - before == kinds.count(False)


def test_added_tokens_in_a_text_leave_it_to_the_tokenizer() -> None:
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<tool_call>", normalized=False)])
    backend, stand_ins = stand_in_tokenizer(tokenizer, ["<|im_end|>"])
    with pytest.raises(NotUnderstood, match="ordinary text"):
        read(stand_in_tokenizer(changed(tokenizer, _spaces), ["<|im_end|>"])[0], stand_ins)
    ours = WordEncoder(backend, read(backend, stand_ins))
    rows = ours.encode(["a <think> b", "a <thin> b"])
    assert [isinstance(row, Words) for row in rows] == [False, True]
    assert backend.token_to_id("<think>") in rows[0].ids
    assert ours.texts == 2
    assert ours.left == 1


def _spaces(spec: dict[str, Any]) -> None:
    spec["added_tokens"][-1]["content"] = "  "


REFUSED = {
    "its model is WordLevel, not BPE": lambda spec: spec.update(
        model={"type": "WordLevel", "vocab": {"a": 0, "<|endoftext|>": 1}, "unk_token": "a"}
    ),
    "its BPE uses dropout": lambda spec: spec["model"].update(dropout=0.5),
    "its BPE uses end_of_word_suffix": lambda spec: spec["model"].update(end_of_word_suffix="</w>"),
    "its normaliser is not known": lambda spec: spec.update(normalizer={"type": "Lowercase"}),
    "its rule that cuts text into words is not known": lambda spec: spec.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, spec["pre_tokenizer"]]}
    ),
    "a special token of it takes in blanks": lambda spec: spec["added_tokens"][1].update(rstrip=True),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_tokenizer_that_is_not_understood_says_why(reason: str) -> None:
    tokenizer = byte_level()
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    backend, stand_ins = stand_in_tokenizer(tokenizer, names)

    class Described:
        def to_str(self) -> str:
            spec = json.loads(backend.to_str())
            REFUSED[reason](spec)
            return json.dumps(spec)

    with pytest.raises(NotUnderstood, match=reason):
        read(Described(), stand_ins)  # type: ignore[arg-type]  # only its description is read


def test_pieces_without_word_rules_or_byte_tokens_are_not_understood() -> None:
    with pytest.raises(NotUnderstood, match="cuts text into words is not known"):
        read(*stand_in_tokenizer(colon_crossing(), ["<s>", "</s>", "<pad>"]))
    no_bytes = changed(sentencepiece_like(), lambda spec: spec["model"].update(byte_fallback=False))
    with pytest.raises(NotUnderstood, match="no byte tokens"):
        read(*stand_in_tokenizer(no_bytes, ["<s>", "</s>", "<unk>"]))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_other_ids_than_the_tokenizers_are_noticed_before_any_row(name: str) -> None:
    backend, stand_ins = copied(name)
    right = read(backend, stand_ins)
    wrong: list[Vocabulary] = [
        replace(right, merges=right.merges[::-1]),
        replace(right, lead="never") if name == "llama" else replace(right, words="gpt2", digits=0),
        replace(right, byte_ids=right.byte_ids[::-1]),
    ]
    for vocabulary in wrong:
        with pytest.raises(NotUnderstood, match="it was not followed exactly, first in "):
            WordEncoder(backend, vocabulary)


def test_a_trial_that_tries_nothing_is_none() -> None:
    backend, stand_ins = copied("gpt2")
    with pytest.raises(NotUnderstood, match="most of its pieces would be left to it"):
        WordEncoder(backend, replace(read(backend, stand_ins), other=("e", "a", "o")))


def test_rows_of_the_data_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, stand_ins = copied("llama")
    right = read(backend, stand_ins)
    monkeypatch.setattr(interning, "_trials", lambda _: iter(["a"]))
    wrong = replace(right, merges=[m for m in right.merges if m[2] != right.ids["▁Hello"]])
    WordEncoder(backend, wrong, ["a b"])
    with pytest.raises(NotUnderstood, match="first in 'oh Hello'"):
        WordEncoder(backend, wrong, ["a b", "oh Hello"])


def test_memory_grows_and_is_given_up_without_a_change_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, stand_ins = copied("llama3")
    ours = WordEncoder(backend, read(backend, stand_ins))
    letters = str.maketrans("0123456789", "abcdefghij")
    many = [" ".join(str(i).translate(letters) for i in range(begin, begin + 3000)) for begin in range(0, 30_000, 3000)]
    expected = [encoding.ids for encoding in backend.encode_batch(many, add_special_tokens=False)]
    assert [list(row.ids) for row in ours.encode(many)] == expected
    assert ours.words > 29_000
    monkeypatch.setattr(interning, "_MOST_WORDS", 20_000)
    assert [list(row.ids) for row in ours.encode([*many, *many])] == [*expected, *expected]
    assert ours.words < 29_000


def test_a_hash_only_finds_a_word() -> None:
    """Two words of one hash are told apart by their characters."""
    memory = interning_kernels.Memory(np.zeros(16, np.uint64), np.zeros(64, np.int32), np.array([0, 1], np.int64))
    text, work, value = np.array([97, 98, 99, 100], np.uint32), np.array([[7], [0], [2]]), np.uint64(5)
    find = interning_kernels._find
    slot = find(text, 0, 2, value, *memory[:2])
    record = interning_kernels._enter(text, 0, 2, value, -1 - slot, memory, work, 1)
    assert find(text, 0, 2, value, *memory[:2]) == record
    assert find(text, 2, 4, value, *memory[:2]) == slot - 1
    assert find(text, 0, 1, value, *memory[:2]) == slot - 1


def test_words_begin_when_there_is_enough_text_and_numba_comes_with_them() -> None:
    backend, stand_ins = copied("gpt2")
    ours = TextEncoder(backend, stand_ins, interned_from=10)
    assert not isinstance(ours.encode(["123456789"])[0], Words)
    assert ours.how() == "by the tokenizer: no more than 10 characters"
    assert isinstance(ours.encode(["1"])[0], Words)
    assert ours.how() == "words interned; 0 of 1 texts left to the tokenizer"
    assert text_encoder.INTERNED_FROM >= 1_000_000
    unknown = TextEncoder(*stand_in_tokenizer(colon_crossing(), ["<s>", "</s>", "<pad>"]), interned_from=0)
    unknown.encode(["a"])
    assert unknown.how() == "by the tokenizer: its rule that cuts text into words is not known"
    code = "import sys, sft.data.dataset; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def rows_of(encoder: RowEncoder, conversations: Sequence[Conversation]) -> list[Any]:
    found = encoder.encode(conversations)
    return [row if isinstance(row, Drop) else (row.id, row.ids.tolist(), row.mask.tolist(), row.turns) for row in found]


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", builtin_names())
def test_rows_are_the_same_with_rules_and_words_and_without(
    name: str, kind: str, train_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a part of rows, so that the tokenizer's path uses its thread."""
    template, tokenizer = load_template(name), copy.deepcopy(TOKENIZERS[kind]())
    if template.only_last and train_on != "last":
        return
    repair_tokens(tokenizer, template)
    answers = [*PIECES, "Red, green", " yes", "\nx", "x ASSISTANT: y", "a  b", "zebra ", ""]
    rows = []
    for i in range(150):
        said = [answers[(i * step + step) % len(answers)] for step in (1, 3, 7, 5)]
        flags = (None, False if i % 7 == 3 else None, False if i % 5 == 1 else None, True if i % 3 == 1 else None)
        turns = [
            Turn("assistant" if k % 2 else "user", text, flag) for k, (text, flag) in enumerate(zip(said, flags, strict=True))
        ]
        rows.append(Conversation(f"r{i}", tuple(turns[: 4 if template.multi_turn else 2]), "s"))
    never = RowEncoder(tokenizer, template, train_on, interned_from=1 << 60)
    monkeypatch.setattr(text_encoder, "_READ_FROM", 1 << 60)
    bare = rows_of(never, rows)
    assert never.texts.vocabulary is None
    monkeypatch.setattr(text_encoder, "_READ_FROM", 0)
    with_rules = RowEncoder(tokenizer, template, train_on, interned_from=1 << 60)
    assert rows_of(with_rules, rows) == bare
    words = RowEncoder(tokenizer, template, train_on, interned_from=0)
    assert rows_of(words, rows) == bare
    assert (words.texts.words is None) == (with_rules.texts.vocabulary is None) == (kind == "colon_crossing")
