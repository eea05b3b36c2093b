"""More pieces for a tokenizer that spells a language badly: joined behind everything that it does today.

::

    LLaMA       春天来了        ▁ 春 天 来 了             no piece of two characters
                鑫              <0xE9> <0x91> <0xAB>      not even this one
    extended    春天 来了 鑫    new ids, the rest as before

Byte-pair encoding goes on where it was left (continued training, as Purason et al. 2025 compare it with appended vocabularies): words are
spelt with the old tokenizer, and the most frequent pairs of its pieces become new pieces. Their merges stand behind all old ones, so:

    the old ids that each new id is made of, in its place, are what the old tokenizer gives; for every text.

A text without new pieces keeps its ids, none is decoded otherwise, and the row of a new id can start as the mean of rows that meant the same.
To keep this, a pair is passed over if what it makes is a piece already, or if the old tokenizer spells that alone in another way.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import regex

from sft.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE = "▁"
_WORDS = regex.compile(r"\p{Han}+|▁?(?:(?!\p{Han})[\p{L}\p{M}])+")
"""Runs of Chinese characters, and of other letters with the mark of a space before them. Digits and punctuation are not joined."""
_LETTERS = regex.compile(r"\s?[\p{L}\p{M}]+")
_PRIVATE = 0x10000
"""Every old id is one character from here on where pairs are counted: tokenizers' trainer knows characters."""


@dataclass(frozen=True, slots=True)
class Extension:
    """What is added to a tokenizer.

    Attributes:
        characters: entries that no merge makes: letters which were spelt as bytes.
        merges: pairs of pieces, the first to be joined first; each makes one new entry.
    """

    characters: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    @property
    def pieces(self) -> tuple[str, ...]:
        """All new entries, in the order of their ids."""
        return (*self.characters, *(left + right for left, right in self.merges))


class Base:
    """The BPE of a tokenizer, as far as it is extended.

    Args:
        backend: of the tokenizers library.

    Raises:
        TokenizerError: no BPE in which every character can be spelt.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.spec: dict[str, Any] = json.loads(backend.to_str())
        self.backend = backend
        model = self.spec["model"]
        self.byte_level = '"ByteLevel"' in json.dumps(self.spec.get("pre_tokenizer"))
        plain = not (model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        if model["type"] != "BPE" or not plain or not (self.byte_level or model.get("byte_fallback")):
            raise TokenizerError(
                f"tokenizer.extend: this tokenizer is {model['type']}"
                f"{'' if model['type'] != 'BPE' else ' without bytes for what has no piece'}; only a BPE over bytes, or with byte "
                "pieces (LLaMA), can be extended: remove tokenizer.extend"
            )

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> id, added tokens among them.

        Raises:
            TokenizerError: ids that nothing has.
        """
        found = {**self.spec["model"]["vocab"], **{token["content"]: token["id"] for token in self.spec["added_tokens"]}}
        if len(set(found.values())) != max(found.values()) + 1:
            missing = sorted(set(range(max(found.values()))) - set(found.values()))
            raise TokenizerError(
                f"tokenizer.extend: nothing has the ids {missing[:5]} of this tokenizer, so none can follow them"
            )
        return found

    @property
    def first_new(self) -> int:
        """The first id of an extension."""
        return len(self.vocabulary)

    def with_(self, extension: Extension) -> Tokenizer:
        """The tokenizer with an extension."""
        from tokenizers import Tokenizer

        vocabulary = {**self.vocabulary, **{piece: self.first_new + i for i, piece in enumerate(extension.pieces)}}
        model = {**self.spec["model"], "vocab": vocabulary}
        model["merges"] = [*(_pair(merge) for merge in model["merges"]), *map(list, extension.merges)]
        return Tokenizer.from_str(json.dumps({**self.spec, "model": model}, ensure_ascii=False))

    def normal(self, text: str) -> str:
        """A text as the model sees it, spaces marked (LLaMA); without the space that goes before it."""
        normalizer = self.backend.normalizer
        return (text if normalizer is None else normalizer.normalize_str(text)).replace(" ", _SPACE)

    def is_one(self, token: str) -> bool:
        """Whether a token has one id already."""
        if self.byte_level:
            return len(self.backend.encode(token, add_special_tokens=False).ids) == 1
        return token in self.vocabulary and len(self.backend.model.tokenize(token)) == 1

    def words(self, texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
        """Words as the model gets them, and characters, each with how often they occur."""
        words, characters = Counter[str](), Counter[str]()
        for text in texts:
            if self.byte_level:
                normalizer = self.backend.normalizer
                plain = text if normalizer is None else normalizer.normalize_str(text)
                pieces = self.backend.pre_tokenizer.pre_tokenize_str(plain)
                words.update(piece for piece, (a, b) in pieces if _LETTERS.fullmatch(plain[a:b]))
            else:
                plain = self.normal(text)
                words.update(_WORDS.findall(plain))
                characters.update(plain)
        return words, characters


def _pair(merge: str | Sequence[str]) -> list[str]:
    """A merge of a tokenizer.json: a list of two, in older files a text with a space between them."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


class _Speller:
    """How the old tokenizer, with more characters, spells a word."""

    def __init__(self, base: Base, characters: Sequence[str]) -> None:
        self.model = base.with_(Extension(tuple(characters), ())).model

    def ids(self, word: str) -> tuple[int, ...]:
        return tuple(token.id for token in self.model.tokenize(word))

    def pieces(self, word: str) -> list[str]:
        return [token.value for token in self.model.tokenize(word)]


def learn(base: Base, texts: Iterable[str], size: int, min_count: int) -> Extension:
    """The pieces that shorten some texts most, greedily: first letters that were bytes, then pairs.

    Args:
        base: to be extended.
        texts: to learn from; the same texts give the same pieces.
        size: most new entries.
        min_count: occurrences that a new entry needs at least.
    """
    words, seen = base.words(texts)
    characters: list[str] = []
    if not base.byte_level:
        rare = [c for c, count in seen.items() if count >= min_count and c not in base.vocabulary and c.isprintable()]
        characters = sorted(rare, key=lambda c: (-seen[c], c))[:size]
    speller = _Speller(base, characters)
    merges = _merges(speller, words, {*base.vocabulary, *characters}, size - len(characters), min_count)
    return Extension(tuple(characters), tuple(merges))


def _merges(speller: _Speller, words: Counter[str], taken: set[str], wanted: int, least: int) -> list[tuple[str, str]]:
    """The most frequent pairs of pieces, of the pieces that these make, and so on. ``taken`` grows by what they make."""
    if wanted < 1:
        return []
    surface: dict[str, str] = {}
    spelt: dict[str, int] = {}
    for word, count in sorted(words.items()):
        tokens = speller.model.tokenize(word)
        if len(tokens) > 1:
            surface.update((chr(_PRIVATE + token.id), token.value) for token in tokens)
            key = "".join(chr(_PRIVATE + token.id) for token in tokens)
            spelt[key] = spelt.get(key, 0) + count
    found: list[tuple[str, str]] = []
    for left, right in _trained(spelt, len(surface) + 2 * wanted, least):
        if left not in surface or right not in surface:
            continue  # a part that was passed over
        piece = surface[left] + surface[right]
        if piece in taken or speller.ids(piece) != tuple(ord(c) - _PRIVATE for c in left + right):
            continue
        found.append((surface[left], surface[right]))
        surface[left + right] = piece
        taken.add(piece)
        if len(found) == wanted:
            break
    return found


def _trained(words: Mapping[str, int], entries: int, least: int) -> list[tuple[str, str]]:
    """Merges of a BPE over words that occur so often, in the order in which it learnt them."""
    from tokenizers import Tokenizer, models, trainers

    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=entries, min_frequency=least, show_progress=False)
    backend.train_from_iterator(itertools.chain.from_iterable(itertools.repeat(w, n) for w, n in words.items()), trainer)
    merges = [_pair(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    return [(left, right) for left, right in merges]


def listed(base: Base, tokens: Sequence[tuple[str, str]]) -> Extension:
    """An extension in which every one of some tokens is one id. Pieces that lead to them come along.

    Args:
        base: to be extended.
        tokens: each with its place (``file:line``), for messages. ``▁`` stands for a space before a word (LLaMA).

    Raises:
        TokenizerError: tokens that cannot be one id, with their places.
    """
    wanted = {(_as_bytes(base, token, place) if base.byte_level else token): place for token, place in tokens}
    missing = [] if base.byte_level else [c for token in wanted for c in token if c not in base.vocabulary]
    characters = tuple(dict.fromkeys(missing))
    speller = _Speller(base, characters)
    taken, ranks = {*base.vocabulary, *characters}, dict[tuple[str, str], int]()
    made_for: dict[str, str] = {}
    for token in sorted(wanted, key=len):  # what is shorter may be a part of what is longer
        parts = _joined(speller.pieces(token), ranks)
        while len(parts) > 1:
            if parts[0] + parts[1] in taken:
                raise TokenizerError(
                    f"{wanted[token]}: {token!r} cannot be one id: {parts[0] + parts[1]!r} on the way to it is a piece already, which "
                    "the tokenizer does not use there; remove the line"
                )
            ranks[parts[0], parts[1]] = len(ranks)
            taken.add(parts[0] + parts[1])
            parts[:2] = [parts[0] + parts[1]]
            made_for.setdefault(parts[0], wanted[token])
    for piece, place in {**made_for, **wanted}.items():
        if _joined(speller.pieces(piece), ranks) != [piece]:
            raise TokenizerError(
                f"{place}: {piece!r} is no longer one id once the others are there; remove it, or those inside of it"
            )
    return Extension(characters, tuple(ranks))


def _as_bytes(base: Base, token: str, place: str) -> str:
    pieces = base.backend.pre_tokenizer.pre_tokenize_str(token)
    if len(pieces) != 1:
        raise TokenizerError(
            f"{place}: {token!r} cannot be one id: the tokenizer cuts it into {len(pieces)} words first; remove the line"
        )
    piece: str = pieces[0][0]
    return piece


def _joined(parts: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Pieces after merges, the first-ranked ones first."""
    while True:
        pairs = [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def origins(backend: Tokenizer, first_new: int) -> dict[int, tuple[int, ...]]:
    """The old ids that each new one is made of, from what a saved tokenizer.json says.

    Args:
        backend: extended.
        first_new: ids below are old.

    Raises:
        TokenizerError: an id that is neither.
    """
    model = json.loads(backend.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    made = {}
    for left, right in map(_pair, model["merges"]):
        if ids[left + right] >= first_new:
            made[ids[left + right]] = (ids[left], ids[right])
    found: dict[int, tuple[int, ...]] = {}

    def of(index: int) -> tuple[int, ...]:
        return (index,) if index < first_new else found[index]

    for piece, index in sorted(ids.items(), key=lambda item: item[1]):  # parts have lower ids
        if index < first_new:
            continue
        if index in made:
            found[index] = tuple(itertools.chain.from_iterable(of(part) for part in made[index]))
        elif all(byte in ids for byte in _byte_pieces(piece)):
            found[index] = tuple(ids[byte] for byte in _byte_pieces(piece))
        else:
            raise TokenizerError(
                f"the tokenizer's piece {piece!r} is made of nothing that its base has: they do not belong together"
            )
    return found


def _byte_pieces(piece: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in piece.encode()]


def tokens_per_character(backend: Tokenizer, texts: Sequence[str]) -> float:
    """Of some texts, without what a tokenizer puts around them; 0 if they are empty."""
    ids = sum(len(one.ids) for one in backend.encode_batch(list(texts), add_special_tokens=False))
    return ids / max(1, sum(map(len, texts)))
