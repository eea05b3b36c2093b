"""What a BPE tokenizer does with text, read from its own description, or why that cannot be told.

Two shapes are understood; they cover LLaMA, Mistral and Vicuna, GPT-2, OPT and SmolLM2, Qwen2 and Llama 3::

    SentencePiece   "Hi there"  ->  ▁Hi▁there        merges anywhere, a space is ▁, unknown characters are byte tokens
    byte-level      "Hi there"  ->  Hi | Ġthere      merges inside the words of a regular expression, over bytes

The reading is strict: every field that could change an id is looked at, and a value that is not known is a reason to leave the text
to the tokenizer itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE = "▁"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = {_GPT2: ("gpt2", 0), _QWEN2: ("qwen2", 1), _LLAMA3: ("qwen2", 3)}

Words = Literal["none", "gpt2", "qwen2"]
Lead = Literal["never", "always", "missing", "first"]


class NotUnderstood(ValueError):
    """Why a tokenizer's description does not tell what it does with text; one clause."""


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """A tokenizer whose ids can be told from its description.

    Attributes:
        ids: piece -> id, pieces as the tokenizer writes them.
        spelled: id -> the bytes of text that it stands for (``▁`` is a space).
        merges: ``(left id, right id, joined id)``, first ones first.
        byte_ids: byte -> id of the token for a byte that is no part of a piece.
        words: the rule that cuts text into words before any merge: none, GPT-2's, or that of Qwen2 and Llama 3.
        digits: longest run of digits in one word, 0 for any; with GPT-2's rule 1 means that each digit is cut off first.
        lead: whether a text gets a space in front: never, always, if it begins with none, or so for the first one only.
            What follows a special token is a text of its own.
        split: whether every space begins a new word.
        nfc: whether text is normalised to NFC first.
        whole: whether a word that is a piece is one token whatever the merges say.
        specials: stand-in of a special token -> id.
        other: added tokens that text may spell.
        before_space: characters that a merge may join to a space behind them.
    """

    ids: Mapping[str, int]
    spelled: list[bytes]
    merges: list[tuple[int, int, int]]
    byte_ids: list[int]
    words: Words
    digits: int
    lead: Lead
    split: bool
    nfc: bool
    whole: bool
    specials: Mapping[str, int]
    other: tuple[str, ...]
    before_space: frozenset[str]

    @property
    def byte_level(self) -> bool:
        return self.words != "none"

    def cuts_before_space(self, char: str) -> bool:
        """Whether a space behind this character begins a token, whatever stands around the two."""
        return char.isprintable() and char not in (" ", _SPACE) and char not in self.before_space

    def joined(self) -> set[tuple[str, str]]:
        """Pairs of characters that some merge joins: no token can hold any other pair, so text may be cut between them.

        For SentencePiece only, with a space for ``▁``.
        """
        texts = {index: piece.replace(_SPACE, " ") for piece, index in self.ids.items()}
        return {(texts[left][-1], texts[right][0]) for left, right, _ in self.merges}


def read(backend: Tokenizer, stand_ins: Mapping[str, str]) -> Vocabulary:
    """Read a tokenizer that knows its special tokens by one-character stand-ins (:mod:`sft.data.stand_in`).

    Args:
        backend: the copy.
        stand_ins: special token -> stand-in.

    Raises:
        NotUnderstood: something in it is not known here.
    """
    spec = json.loads(backend.to_str())
    model = spec["model"]
    if model.get("type") != "BPE":
        raise NotUnderstood(f"its model is {model.get('type')}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise NotUnderstood(f"its BPE uses {name}")
    words, digits, lead, split = _before_merges(spec["normalizer"], spec["pre_tokenizer"])
    nfc = (spec["normalizer"] or {}).get("type") == "NFC"
    specials, other = _added(spec["added_tokens"], set(stand_ins.values()), changed=spec["normalizer"] is not None and not nfc)
    ids: dict[str, int] = model["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [(ids[left], ids[right], ids[left + right]) for left, right in pairs]
    if words == "none":
        spelled, byte_ids = _sentencepiece(ids, bool(model.get("byte_fallback")))
    else:
        spelled, byte_ids = _byte_level(ids)
    if not set(byte_ids).isdisjoint(i for left, right, _ in merges for i in (left, right)) and words == "none":
        raise NotUnderstood("its merges join byte tokens")
    size = max([*ids.values(), *specials.values()]) + 1
    texts = [b""] * size
    for piece, index in ids.items():
        texts[index] = spelled[piece]
    for stand_in, index in specials.items():
        texts[index] = stand_in.encode()
    before_space = frozenset(left[-1] for left, right in pairs if words == "none" and right[0] == _SPACE)
    whole = bool(model.get("ignore_merges"))
    if whole and words == "none":
        raise NotUnderstood("it takes whole texts for pieces, whatever the merges say")
    return Vocabulary(ids, texts, merges, byte_ids, words, digits, lead, split, nfc, whole, specials, other, before_space)


def _before_merges(normalizer: Any, splitter: Any) -> tuple[Words, int, Lead, bool]:
    """``words``, ``digits``, ``lead`` and ``split`` of a description."""
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if normalizer == {"type": "Sequence", "normalizers": [prepend, replace]} and splitter is None:
        return "none", 0, "always", False
    if normalizer in (replace, {"type": "Sequence", "normalizers": [replace]}) and splitter is None:
        return "none", 0, "never", False
    if normalizer is None and (splitter or {}).get("type") == "Metaspace" and splitter["replacement"] == _SPACE:
        leads: dict[str, Lead] = {"always": "missing", "first": "first", "never": "never"}
        return "none", 0, leads[splitter["prepend_scheme"]], splitter.get("split", True)
    if normalizer not in (None, {"type": "NFC"}):
        raise NotUnderstood("its normaliser is not known")
    rules = splitter["pretokenizers"] if (splitter or {}).get("type") == "Sequence" else [splitter]
    *first, last = rules
    if (last or {}).get("type") == "ByteLevel" and not last["add_prefix_space"]:
        if first == [{"type": "Digits", "individual_digits": True}] and last["use_regex"]:
            return "gpt2", 1, "never", False
        if not first and last["use_regex"]:
            return "gpt2", 0, "never", False
        if len(first) == 1 and first[0]["type"] == "Split" and not last["use_regex"]:
            rule = first[0]
            known = _SPLITS.get(rule["pattern"].get("Regex", ""))
            if known and rule["behavior"] == "Isolated" and not rule["invert"]:
                words: Words = "gpt2" if known[0] == "gpt2" else "qwen2"
                return words, known[1], "never", False
    raise NotUnderstood("its rule that cuts text into words is not known")


def _added(tokens: list[dict[str, Any]], stand_ins: set[str], changed: bool) -> tuple[dict[str, int], tuple[str, ...]]:
    """Stand-ins with their ids, and the added tokens that text may spell."""
    specials, other = {}, []
    for token in tokens:
        content = token["content"]
        if content not in stand_ins:
            if changed or token["lstrip"] or token["rstrip"] or any(map(str.isspace, content)):
                raise NotUnderstood(f"it has the added token {content!r}, which is ordinary text")
            other.append(content)
        elif token["lstrip"] or token["rstrip"] or token["single_word"] or (token["normalized"] and changed):
            raise NotUnderstood("a special token of it takes in blanks, or is looked for behind the normaliser")
        else:
            specials[content] = token["id"]
    return specials, tuple(other)


def _sentencepiece(ids: Mapping[str, int], byte_fallback: bool) -> tuple[dict[str, bytes], list[int]]:
    """What each piece spells, and the byte tokens."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if not byte_fallback or not all(name in ids for name in names):
        raise NotUnderstood("it has no byte tokens for characters that it does not know")
    spelled = {piece: piece.replace(_SPACE, " ").encode("utf-8", "surrogatepass") for piece in ids}
    spelled.update((name, bytes([byte])) for byte, name in enumerate(names))
    return spelled, [ids[name] for name in names]


def _byte_level(ids: Mapping[str, int]) -> tuple[dict[str, bytes], list[int]]:
    """What each piece spells, and the tokens of single bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [byte for byte in range(256) if re.fullmatch("[!-~¡-¬®-ÿ]", chr(byte))]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}
    if not all(letter in ids for letter in letters):
        raise NotUnderstood("its vocabulary lacks a byte")
    spelled = {
        piece: bytes(map(letters.__getitem__, piece)) if all(map(letters.__contains__, piece)) else piece.encode()
        for piece in ids
    }
    by_byte = {byte: ids[letter] for letter, byte in letters.items()}
    return spelled, [by_byte[byte] for byte in range(256)]
