"""Ids of text faster than the tokenizer gives them: each distinct word is merged once, and copied from then on.

::

    text     ... the cat and the dog ...       words repeat: 1.6 million of real chats are 48,000 distinct ones
    words    ... | the| cat| and| the| dog     cut only where the tokenizer can make no token over the cut
    ids      ... 278 6635 322 278 11203 ...

The ids are those of the tokenizer on the whole text, not an approximation of them. A BPE builds a token by merging two neighbours, so
where no merge joins a piece that ends in ``a`` to one that begins with ``b``, no token can hold ``ab``, and the text on both sides
has the ids that it has alone. For byte-level BPE the words are those of the tokenizer's own regular expression. Words are
compared by their characters; a hash only finds them. What is not understood is left to the tokenizer: a whole tokenizer
(:class:`~sft.data.vocabulary.NotUnderstood`), or single rows. On the first use the two are compared, over the whole vocabulary.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sft.data import interning_kernels as kernels
from sft.data import interning_words as words
from sft.data.vocabulary import NotUnderstood, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_CHUNK = 1 << 17  # characters of one call, so that what a call may need at most stays small
_MOST_WORDS = 1 << 20  # remembered; then they are forgotten and learnt again
_PLANE_2 = 0x20000


@dataclass(slots=True, eq=False)
class Words:
    """One encoded text. It answers as ``tokenizers.Encoding`` does.

    Attributes:
        ids: int32 ``[T]``.
        starts, ends: int32 ``[T]``: the characters that a token covers, whole or in part.
        at: for each edge that was asked for, the token that begins there, ``T`` at the end, -1 if the edge is inside a token.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    at: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def offsets(self) -> npt.NDArray[np.int32]:
        """int32 ``[T, 2]``."""
        return np.stack([self.starts, self.ends], axis=1)

    def char_to_token(self, char: int) -> int | None:
        """The first token that covers a character."""
        token = int(self.starts.searchsorted(np.int32(char)))
        while token and self.ends[token - 1] > char:
            token -= 1
        return token if token < len(self.ids) and self.starts[token] <= char else None

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """The characters that a token covers."""
        return (int(self.starts[token]), int(self.ends[token])) if token < len(self.ids) else None


class WordEncoder:
    """Encodes texts as a tokenizer does, word by word. Not for use by several threads at once.

    Args:
        backend: the tokenizer that knows special tokens by stand-ins (:mod:`sft.data.stand_in`).
        vocabulary: what was read from it.
        trials: texts to be tried first, besides every piece of the vocabulary.

    Attributes:
        texts: encoded so far.
        left: of them, left to the tokenizer.

    Raises:
        NotUnderstood: this tokenizer cannot be followed, or gives other ids when tried.
    """

    def __init__(self, backend: Tokenizer, vocabulary: Vocabulary, trials: Sequence[str] = ()) -> None:
        self.vocabulary = vocabulary
        self._backend = backend
        self._rules = _rules(self.vocabulary)
        self.texts = self.left = 0
        other = "|".join(map(re.escape, vocabulary.other))
        self._other = re.compile(other) if other else None
        self._picky = vocabulary.nfc or bool(other)
        self.forget()
        self._try_out([*_trials(self.vocabulary), *trials])
        self.texts = self.left = 0

    @property
    def words(self) -> int:
        """Words remembered."""
        return int(self._memory.used[0])

    def encode(self, texts: Sequence[str], edges: Sequence[Sequence[int]] = ()) -> list[Words | Encoding]:
        """Encode texts, in order. A text that is left to the tokenizer comes as the tokenizer gives it.

        Args:
            edges: per text, positions in it, for :attr:`Words.at`.
        """
        out: list[Words | Encoding | None] = []
        for begin, end in _chunks(texts):
            out += self._encode(texts[begin:end], edges[begin:end])
        left = [i for i, found in enumerate(out) if found is None or (self._picky and self._is_left(texts[i]))]
        for i, encoding in zip(
            left, self._backend.encode_batch([texts[i] for i in left], add_special_tokens=False), strict=True
        ):
            out[i] = encoding
        self.texts, self.left = self.texts + len(texts), self.left + len(left)
        return [words for words in out if words is not None]

    def _is_left(self, text: str) -> bool:
        """Whether a text spells an added token, or changes when it is normalised."""
        if self._other is not None and self._other.search(text):
            return True
        return self.vocabulary.nfc and not text.isascii() and not unicodedata.is_normalized("NFC", text)

    def _encode(self, texts: Sequence[str], edges: Sequence[Sequence[int]]) -> list[Words | None]:
        text = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        ends = np.fromiter(accumulate(map(len, texts)), np.int64, len(texts))
        out, whole = np.empty((5 * len(text) + len(texts), 3), np.int32), np.zeros(len(texts), np.bool_)
        out_ends = np.zeros(len(texts), np.int64)
        segment = np.empty(len(text) + 1, np.uint32)
        row = 0
        while (row := kernels.encode(text, ends, self._rules, self._memory, segment, out, out_ends, whole, row)) < len(texts):
            self._reserve(len(texts[row]))
        bounds = [0, *out_ends.tolist()]
        ids, starts, to = np.ascontiguousarray(out[: bounds[-1]].T)
        kept = zip(bounds[:-1], bounds[1:], whole.tolist(), strict=True)
        found = [Words(ids[a:b], starts[a:b], to[a:b]) if is_whole else None for a, b, is_whole in kept]
        if edges:
            counts = np.fromiter(map(len, edges), np.int64, len(texts))
            wanted = np.fromiter(chain.from_iterable(edges), np.int64, int(counts.sum()))
            tokens, begin = kernels.locate(starts, to, out_ends, wanted, counts).tolist(), 0
            for words, count in zip(found, counts.tolist(), strict=True):
                if words is not None:
                    words.at = tokens[begin : begin + count]
                begin += count
        return found

    def forget(self) -> None:
        """Empty the memory, but for words that are one token by rule."""
        self._memory = kernels.Memory(np.zeros(1 << 16, np.uint64), np.empty(1 << 19, np.int32), np.array([0, 1], np.int64))
        if self.vocabulary.whole:
            whole = {_text(spelled): i for i, spelled in enumerate(self.vocabulary.spelled)}
            whole.pop("", None)
            ends = np.fromiter(accumulate(map(len, whole)), np.int64, len(whole))
            self._reserve(int(ends[-1]))
            text = np.frombuffer("".join(whole).encode("utf-32-le"), np.uint32)
            kernels.learn(text, ends, np.fromiter(whole.values(), np.int32, len(whole)), self._memory)

    def _reserve(self, chars: int) -> None:
        """Make room for the words of so many new characters, and for as many words again as there are."""
        if self._memory.used[0] > _MOST_WORDS:
            self.forget()
        (slots, records, used), (more_words, more_records) = self._memory, kernels.most(chars)
        words = 2 * (int(used[0]) + more_words)
        wider = np.empty(max(2 * len(records), int(used[1]) + more_records), np.int32)
        wider[: used[1]] = records[: used[1]]
        self._memory = kernels.Memory(slots, wider, used)
        if words > len(slots):
            slots = np.zeros(1 << words.bit_length(), np.uint64)
            kernels.rehash(self._memory, slots)
            self._memory = kernels.Memory(slots, wider, used)

    def _try_out(self, texts: Sequence[str]) -> None:
        """Compare with the tokenizer.

        Raises:
            NotUnderstood: with the first text that differs.
        """
        ours = self.encode(texts)
        if 2 * self.left > len(texts):
            raise NotUnderstood("most of its pieces would be left to it")
        for text, mine, theirs in zip(texts, ours, self._backend.encode_batch(texts, add_special_tokens=False), strict=True):
            if list(mine.ids) != theirs.ids or [tuple(span) for span in np.asarray(mine.offsets).tolist()] != theirs.offsets:
                raise NotUnderstood(f"it was not followed exactly, first in {text[:40]!r}")


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    begin, size = 0, 0
    for i, text in enumerate(texts):
        if i > begin and size + len(text) > _CHUNK:
            yield begin, i
            begin, size = i, 0
        size += len(text)
    if begin < len(texts):
        yield begin, len(texts)


def _text(spelled: bytes) -> str:
    """The text of a piece; "" if it is no whole characters."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return ""


# --- a vocabulary as arrays ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _classes() -> npt.NDArray[np.uint8]:
    r"""Class of each code point: asked of the regular expressions that the tokenizers run, whose Unicode version may not be Python's.

    Rare ones (planes 2 and above, unassigned ones) are left to the tokenizer.
    """
    from tokenizers import Regex, pre_tokenizers

    table = np.full(sys.maxunicode + 1, words.UNKNOWN, np.uint8)
    asked = [i for i in range(_PLANE_2) if unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs")]
    text, points = "".join(map(chr, asked)), np.asarray(asked)
    table[points] = words.OTHER
    rules = (
        (words.LETTER, pre_tokenizers.Split(Regex(r"\P{L}+"), "removed")),
        (words.NUMBER, pre_tokenizers.Split(Regex(r"\P{N}+"), "removed")),
        (words.BLANK, pre_tokenizers.Split(Regex(r"\S+"), "removed")),
    )
    for kind, rule in rules:
        for _, (begin, end) in rule.pre_tokenize_str(text):
            table[points[begin:end]] = words.UNKNOWN if (table[points[begin:end]] != words.OTHER).any() else kind
    # GPT-2's rule behind a cut at every digit: the two have tables of their own.
    digits = np.zeros(len(text), np.bool_)
    for _, (begin, end) in pre_tokenizers.Digits(individual_digits=False).pre_tokenize_str(text):
        digits[begin:end] = text[begin].isnumeric()
    table[points[digits != (table[points] == words.NUMBER)]] = words.UNKNOWN
    return table


def _rules(vocabulary: Vocabulary) -> kernels.Rules:
    letters = np.full(sys.maxunicode + 1, -1, np.int32)
    joined: list[tuple[int, int]] = []
    if vocabulary.byte_level:
        classes = _classes()
    else:
        classes = np.zeros(len(letters), np.uint8)
        for piece, index in vocabulary.ids.items():
            if len(piece) == 1:
                letters[ord(" " if piece == "▁" else piece)] = index
        joined = [(ord(a), ord(b)) for a, b in vocabulary.joined()]
        for a, b in joined:
            classes[a] |= words.JOINS_NEXT
            classes[b] |= words.JOINS_LAST
        classes[ord("▁")] = words.UNKNOWN  # a space and this are one to the tokenizer
    dense = np.zeros((128, 128), np.bool_)
    for a, b in joined:
        if a < 128 and b < 128:
            dense[a, b] = True
    far = np.array([a << 32 | b for a, b in joined if a >= 128 or b >= 128], np.uint64)
    merges = np.asarray(vocabulary.merges, np.uint64).reshape(-1, 3)
    pairs = (merges[:, 0] << np.uint64(32) | merges[:, 1]) + np.uint64(1)
    ranked = np.arange(len(merges), dtype=np.int64) << 32 | merges[:, 2].astype(np.int64)
    specials = np.full(max((ord(char) - kernels.FIRST_SPECIAL for char in vocabulary.specials), default=0) + 1, -1, np.int32)
    for char, index in vocabulary.specials.items():
        specials[ord(char) - kernels.FIRST_SPECIAL] = index
    rule = {"none": words.NO_WORDS, "gpt2": words.GPT2, "qwen2": words.QWEN2}[vocabulary.words]
    lead = {"never": kernels.NEVER, "always": kernels.ALWAYS, "missing": kernels.MISSING, "first": kernels.FIRST}
    how = np.array([rule, vocabulary.digits, vocabulary.split, lead[vocabulary.lead]], np.int64)
    byte_ids = np.array(vocabulary.byte_ids, np.int32)
    joins, _ = _table(far, np.zeros(len(far), np.int64))
    return kernels.Rules(how, classes, letters, byte_ids, specials, dense, joins, *_table(pairs, ranked))


def _table(keys: npt.NDArray[np.uint64], values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """An open-addressing table, at most half full."""
    size = 1 << (2 * len(keys) + 2).bit_length()
    out = np.zeros(size, np.uint64), np.zeros(size, np.int64)
    kernels.fill(*out, keys, values)
    return out


# --- what is tried before it is trusted ---------------------------------------------------------------------------------

_TOGETHER = 32
_PROBES = (
    "Hello, world!  It's we'll THEY'RE I'D 'S 'ſ don't\u2019s x' 'v",
    "def f(x):\n    return x + 1\n\n\tprint(f(2))  \n   \r\n \n",
    "    four  leading   spaces \u3000\u00a0 \u2028 and trailing   ",
    "中文分词：春天来了。１２３ 3.14 1234567890 Ⅷ ½ ٣",
    "naïve café — “quotes” e\u0301 ﬁ Å Å 한국어 가 हिन्दी ไทย עברית",
    "🎉🚀👩‍👩‍👧‍👦 🏳️‍🌈 \x00\x01\x7f\ufeff\u200d",
    "<s></s><unk><0x0A><|im_end|> </p> https://a.b/c?d=e&f=g#h {[(x)]} a_b-c ==== ....",
)


def _trials(vocabulary: Vocabulary) -> Iterator[str]:
    """Texts that hold every piece, behind a space and behind another piece, and what tokenizers are known to differ on."""
    pieces = [text for text in map(_text, vocabulary.spelled) if text]
    yield from _PROBES
    for begin in range(0, len(pieces), _TOGETHER):  # few, since one rare character leaves all of them to the tokenizer
        some = pieces[begin : begin + _TOGETHER]
        yield "".join(some)
        yield " ".join(some)
    specials = list(vocabulary.specials)
    yield "a".join([*specials, ""]) + " ".join(specials) + "".join(specials)
