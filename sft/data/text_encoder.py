"""Texts to ids: by the tokenizer itself at first, word by word once there is enough text for it to pay. The ids are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sft.data.vocabulary import NotUnderstood, Vocabulary, read

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sft.data.interning import WordEncoder

INTERNED_FROM = 4_000_000
"""Characters from which on interning pays: starting it takes about as long as the tokenizer takes for so much text."""
_TRIALS = 16
_READ_FROM = 200_000  # characters; the rules of a large tokenizer take some tenths of a second to read


class Encoded(Protocol):
    """An encoded text, as the tokenizers library or :class:`~sft.data.interning.Words` gives it."""

    @property
    def ids(self) -> Any:
        """Ids, ``[T]``."""

    @property
    def offsets(self) -> Any:
        """Characters that each token covers, ``[T, 2]``."""

    def __len__(self) -> int: ...

    def char_to_token(self, char: int, /) -> int | None:
        """The first token that covers a character."""

    def token_to_chars(self, token: int, /) -> tuple[int, int] | None:
        """The characters that a token covers."""


class Progress(NamedTuple):
    """How far an encoder has come, as plain data: another one that goes on from here tells of its work as this one would.

    Attributes:
        characters: encoded so far.
        texts: encoded word by word.
        left: of them, left to the tokenizer.
        interned: whether words are interned.
        not_understood: why they will never be; empty if nothing speaks against it.
    """

    characters: int = 0
    texts: int = 0
    left: int = 0
    interned: bool = False
    not_understood: str = ""


class TextEncoder:
    """Encodes texts in which stand-ins are written for special tokens.

    Args:
        backend: the tokenizer that knows its special tokens by stand-ins.
        stand_ins: special token -> stand-in.
        interned_from: characters to encode before words are interned, by default :data:`INTERNED_FROM`.

    Attributes:
        vocabulary: the tokenizer's rules; None if they are not known, or not read yet.
        words: what interns words; None if nothing does, or not yet.
    """

    def __init__(self, backend: Tokenizer, stand_ins: Mapping[str, str], interned_from: int | None = None) -> None:
        self.vocabulary: Vocabulary | None = None
        self.words: WordEncoder | None = None
        self._backend, self._stand_ins = backend, stand_ins
        self._interned_from = INTERNED_FROM if interned_from is None else interned_from
        self._earlier = Progress()  # of which the counts of words are added to ours
        self._characters = 0
        self._not_understood = ""

    def encode(self, texts: Sequence[str], edges: Sequence[Sequence[int]] = ()) -> Sequence[Encoded]:
        """Encode texts, in order.

        Args:
            edges: per text the positions whose tokens will be asked for.
        """
        self._characters += sum(map(len, texts))
        if self.words is None and not self._not_understood:
            try:
                self._follow(texts[:_TRIALS])
            except NotUnderstood as reason:
                self._not_understood = str(reason)
        if self.words is not None:
            return self.words.encode(texts, edges)
        return self._backend.encode_batch(texts, add_special_tokens=False)

    def _follow(self, texts: Sequence[str]) -> None:
        """Read the tokenizer's rules, and begin to intern words, each when there is enough text.

        Args:
            texts: to be tried first.

        Raises:
            NotUnderstood: rules that are not known, or ids that differ.
        """
        if self.vocabulary is None and self._characters >= min(_READ_FROM, self._interned_from):
            self.vocabulary = read(self._backend, self._stand_ins)
        if self.vocabulary is not None and self._characters >= self._interned_from:
            from sft.data.interning import WordEncoder  # brings numba

            self.words = WordEncoder(self._backend, self.vocabulary, texts)

    @property
    def progress(self) -> Progress:
        """How far this encoder has come, what it went on from included."""
        texts, left = (self.words.texts, self.words.left) if self.words is not None else (0, 0)
        before, interned = self._earlier, self.words is not None or self._earlier.interned
        return Progress(self._characters, before.texts + texts, before.left + left, interned, self._not_understood)

    def go_on(self, progress: Progress) -> None:
        """Continue where another encoder of the same tokenizer stood; words are interned from the next text on if it did so."""
        texts, left = (self.words.texts, self.words.left) if self.words is not None else (0, 0)
        self._earlier = progress._replace(texts=progress.texts - texts, left=progress.left - left)
        self._characters, self._not_understood = progress.characters, progress.not_understood

    def how(self) -> str:
        """By what the texts so far were encoded, and why, for the run record."""
        done = self.progress
        if done.interned:
            return f"words interned; {done.left:,} of {done.texts:,} texts left to the tokenizer"
        if done.not_understood:
            return f"by the tokenizer: {done.not_understood}"
        return f"by the tokenizer: no more than {self._interned_from:,} characters"
