"""Tiny tokenizers of every shape whose rules are known, and what is known to trip tokenizers up."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sft.data.stand_in import stand_in_tokenizer
from tests.builders import CORPUS, byte_level, sentencepiece_like

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPACES = ["a    b\n\n\n  c \t d  ", "don't we'll THEY'RE I'D 'S it'sfine 123 4567", "{[()]} ---- ==== http://a.b/c ::"] * 4


def changed(tokenizer: PreTrainedTokenizerFast, change: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerFast:
    """A copy with another description."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    change(spec)
    backend = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokenizer.special_tokens_map)


def _split(rule: str | None, nfc: bool = False, digits: bool = False, whole: bool = False) -> PreTrainedTokenizerFast:
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)
    first: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated")] if rule else []
    first += [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, own]) if first else own
    backend.normalizer = normalizers.NFC() if nfc else None
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS + SPACES, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, eos_token="<|endoftext|>")
    return changed(made, lambda spec: spec["model"].update(ignore_merges=True)) if whole else made


def _metaspace(scheme: str, split: bool) -> PreTrainedTokenizerFast:
    def change(spec: dict[str, Any]) -> None:
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}

    return changed(crossing_spaces(), change)


@lru_cache
def crossing_spaces() -> PreTrainedTokenizerFast:
    """SentencePiece whose pieces cross spaces, and hold runs of them, as a model trained without splitting at spaces."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False, max_token_length=6
    )
    backend.train_from_iterator(CORPUS + SPACES, trainer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


FOLLOWED: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama": sentencepiece_like,
    "llama, pieces over spaces": crossing_spaces,
    "no space in front": lambda: changed(
        crossing_spaces(), lambda spec: spec.update(normalizer=spec["normalizer"]["normalizers"][1])
    ),
    "metaspace always": lambda: _metaspace("always", False),
    "metaspace first": lambda: _metaspace("first", False),
    "metaspace never, split": lambda: _metaspace("never", True),
    "gpt2": byte_level,
    "smollm2": lambda: _split(None, digits=True),
    "qwen2": lambda: _split(QWEN2, nfc=True),
    "llama3": lambda: _split(LLAMA3, whole=True),
}


@lru_cache
def copied(name: str) -> tuple[Tokenizer, dict[str, str]]:
    """The copy with stand-ins that texts are encoded with."""
    tokenizer = FOLLOWED[name]()
    return stand_in_tokenizer(tokenizer, sorted(token.content for token in tokenizer.added_tokens_decoder.values()))


PIECES = [
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\u200b", "\ufeff"),
    *("'s", "'S", "'ll", "'LL", "'Re", "'ve", "'d", "'", "'x", "'ſ", "\u2019s", "don't", "K", "ſ"),
    *("the", " the", "The", "Hello", " response", "###", " ### ", "User:", "def f(x):", "return x + 1", "==", "http://"),
    *("1", "12", "123", "1234567", "٣", "Ⅷ", "½", "²", "１２", "3.14"),
    *("中", "春天", "请写一首诗", "。", "，", "カタカナ", "한국어", "가", "กำ", "हिन्दी", "עִבְרִית", "العربية"),
    *("é", "e\u0301", "\u0301", "\u0327\u0301", "Å", "Å", "ﬁ", "ǆ", "İ", "ß", "\u1100\u1161\u11a8", "\u0958"),
    *("🎉", "👩‍👩‍👧", "🏳️‍🌈", "\u200d", "\ufe0f", "𝔘", "𠀀", "\U000323af", "\U0001fac8", "\ue000"),
    *("\x00", "\x01", "\x7f", "\ufffd", "\uffff", "▁", "▁▁", "Ġ", "<s>", "</s>", "<0x0A>", "<unk>", "<|im_end|>"),
]


def texts(stand_ins: dict[str, str]) -> st.SearchStrategy[str]:
    """Pieces, stand-ins and arbitrary characters (none of the plane that rows may not use), joined."""
    anything = st.characters(max_codepoint=0xFFFFF, exclude_categories=["Cs"])
    part = st.sampled_from(PIECES) | st.sampled_from(sorted(stand_ins.values())) | anything
    return st.lists(part, max_size=24).map("".join)
