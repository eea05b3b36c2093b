"""Vocabularies that were extended: old ids stay as they were, and what cannot be extended is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.errors import TokenizerError
from sft.model.extend import Base, Extension, learn, listed, origins
from tests.builders import byte_level, colon_crossing, sentencepiece_like
from tests.extended import CHINESE
from tests.model.families.test_tokenizers import texts

MAKERS = {"sentencepiece_like": sentencepiece_like, "byte_level": byte_level, "colon_crossing": colon_crossing}


def whole_words() -> PreTrainedTokenizerFast:
    """A byte-level BPE that looks a word up before it merges (``ignore_merges``), as Llama 3 does."""
    spec = json.loads(byte_level(chatml=False).backend_tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token="<|endoftext|>")


def spelt_as_before(base: Base, new: Tokenizer, many: list[str]) -> int:
    """Hold the law for some texts, special tokens read as words or not. Returns how many have other ids than before."""
    made, changed = origins(new, base.first_new), 0
    for special in (False, True):
        base.backend.encode_special_tokens = new.encode_special_tokens = special
        for text in many:
            old, ids = (one.encode(text, add_special_tokens=False).ids for one in (base.backend, new))
            assert [part for i in ids for part in made.get(i, (i,))] == old, text
            assert new.decode(ids, skip_special_tokens=False) == base.backend.decode(old, skip_special_tokens=False)
            changed += ids != old
    base.backend.encode_special_tokens = False
    return changed


# -- the law --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*MAKERS.values(), whole_words], ids=[*MAKERS, "whole_words"])
def test_new_ids_stand_for_the_old_ones(make: Any) -> None:
    base, many = Base(copy.deepcopy(make().backend_tokenizer)), texts()
    extension = learn(base, many, 60, 3)
    assert len(extension.pieces) >= 15
    new = base.with_(extension)
    assert spelt_as_before(base, new, [*many, *CHINESE]) > len(many) / 2
    assert [new.token_to_id(piece) for piece in extension.pieces] == list(
        range(base.first_new, base.first_new + len(extension.pieces))
    )


def test_what_is_learnt_is_the_most_frequent_and_the_same_each_time() -> None:
    base = Base(sentencepiece_like().backend_tokenizer)
    given = [*CHINESE * 5, "学习 " * 100]
    first = learn(base, given, 40, 3)
    assert first == learn(base, given, 40, 3)
    assert first.characters[:2] == ("学", "习")  # they were bytes
    assert first.merges[0] == ("学", "习")
    assert learn(base, given, 10, 3) == Extension(first.characters[:10], ())
    assert learn(base, given, 40, 10**6) == Extension((), ())
    assert not any(c.isspace() or "，" in c for piece in first.pieces for c in piece if piece not in first.characters)


def test_a_word_is_not_joined_with_digits_or_another_script() -> None:
    base = Base(sentencepiece_like().backend_tokenizer)
    found = learn(base, ["数学abc123数学abc123 ..数学"] * 50, 60, 2)
    assert "数学" in found.pieces
    assert not any({"学a", "c1", "3数"} & {piece[i : i + 2] for i in range(len(piece))} for piece in found.pieces)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_listed_token_is_one_id(make: Any) -> None:
    base = Base(make().backend_tokenizer)
    tokens = ["人工智能", "机器学习", "人工", "学习", "kilowatt", "龘"]
    extension = listed(base, [(token, f"list:{i}") for i, token in enumerate(tokens)])
    new = base.with_(extension)
    spelt_as_before(base, new, [*texts()[:300], *CHINESE])
    for token in tokens:
        ids = (
            [t.id for t in new.model.tokenize(token)]
            if not base.byte_level
            else new.encode(token, add_special_tokens=False).ids
        )
        assert len(ids) == 1, token
        assert ids[0] >= base.first_new, token


def test_ids_follow_added_tokens() -> None:
    tokenizer = copy.deepcopy(sentencepiece_like())
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    base = Base(tokenizer.backend_tokenizer)
    assert base.first_new == len(tokenizer)
    new = base.with_(learn(base, CHINESE * 5, 20, 3))
    assert new.token_to_id("<pad>") == base.first_new - 1
    assert new.add_special_tokens([AddedToken("<later>", special=True)]) == 1
    assert new.token_to_id("<later>") == base.first_new + 20
    assert set(origins(new, base.first_new)) == set(range(base.first_new, base.first_new + 20))
    spelt_as_before(base, new, [*texts()[:300], "a<pad>b"])


# -- refusals -------------------------------------------------------------------------------------------------------


def bare(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Base:
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    return Base(backend)


def test_tokens_that_stand_in_each_others_way() -> None:
    letters = {c: i for i, c in enumerate("abcd")}
    with pytest.raises(TokenizerError, match=r"x:2: 'abc' cannot be one id: 'ab' on the way to it is a piece already"):
        listed(bare({**letters, "ab": 4}, []), [("cd", "x:1"), ("abc", "x:2")])
    crossed = [
        ("accd", "x:1"),
        ("ca", "x:2"),
        ("bdbd", "x:3"),
    ]  # bd and bdb are made on the way to bdbd, then "bd" "bd" are made first
    with pytest.raises(TokenizerError, match=r"x:3: 'bdbd' is no longer one id once the others are there; remove it, or those"):
        listed(bare(letters, []), crossed)


def test_tokenizers_that_cannot_be_extended() -> None:
    word = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.extend: this tokenizer is WordPiece; only a BPE over bytes"):
        Base(word)
    with pytest.raises(TokenizerError, match=r"this tokenizer is BPE without bytes for what has no piece"):
        Base(Tokenizer(models.BPE({"a": 0}, [])))
    gap = Tokenizer(models.BPE({"a": 0, "b": 5}, []))
    gap.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(TokenizerError, match=r"nothing has the ids \[1, 2, 3, 4\] of this tokenizer, so none can follow them"):
        _ = Base(gap).first_new
