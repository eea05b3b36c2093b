"""Before a row may be trained on: its answers begin and end between tokens, its prompts have the ids of inference, its ids are its text.

::

    row      ... USER: Hi ASSISTANT: | Hello.</s>        ids of the row
    prompt   ... USER: Hi ASSISTANT:                     must have the same ids: the row's first ones
    compared                 ASSISTANT:                  from the last place on from where the two cannot differ
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sft.data.marks import PRIVATE_FIRST
from sft.data.template import RenderRefused
from sft.data.text_encoder import Encoded, TextEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST_ENDS = 1 << 14


_CURE = (
    "; the ids of the inference prompt are not the first ids of this row, so training on it would teach what inference never "
    "meets. Choose a template whose prompt ends where this tokenizer always cuts, such as behind a special token or in the newline "
    "of chatml, or the tokenizer that the template was made for"
)


def token_bounds(encoding: Encoded, text: str, start: int, end: int) -> tuple[int, int]:
    """Tokens ``[first, stop)`` that cover exactly the characters ``[start, end)``.

    The end is found from the character behind the span: a last character of several byte tokens keeps all of them.

    Raises:
        RenderRefused: no such tokens.
    """
    if start == end:
        raise RenderRefused("span_mismatch", "an answer rendered to nothing")
    first = encoding.char_to_token(start)
    stop = len(encoding) if end >= len(text) else encoding.char_to_token(end)
    if first is None or stop is None:
        raise RenderRefused("decode_mismatch", "the tokenizer removes a character at the edge of the answer")
    span = encoding.token_to_chars(first)
    if span is not None and span[0] < start:
        before, inside = text[span[0] : start], text[start : span[1]]
        detail = f"one token holds {before!r}, the end of the prompt, and {inside!r}, the start of the answer"
        raise RenderRefused("prompt_not_prefix", detail + _CURE)
    if end < len(text):
        after = encoding.token_to_chars(stop)
        if after is not None and after[0] < end:
            raise RenderRefused("stop_straddles", "one token holds the end of the answer and the text behind it")
    return first, stop


class Verifier:
    """Checks the answers of many rows together: :meth:`add` each, then ask :meth:`failures` once.

    Args:
        backend: the tokenizer that knows special tokens by stand-ins.
        encoder: what encodes with it. As long as that does not know the tokenizer's rules, checks are the same, but slower.
    """

    def __init__(self, backend: Tokenizer, encoder: TextEncoder) -> None:
        self._backend, self._encoder = backend, encoder
        self._ends: dict[str, list[int]] = {}
        self._prompts: list[tuple[int, str, list[int]]] = []
        self._answers: list[tuple[int, str, Sequence[int]]] = []

    def restart(self, text: str, marks: Sequence[int], start: int) -> tuple[int, int]:
        """Where the prompt that ends at ``start`` is compared from, and how many characters are left out of its text there.

        What stands before a special token (``marks``) cannot change the ids behind it. If the tokenizer's rules are known, neither
        can what stands before a space that follows a printable character, since no word and no token holds both.
        """
        at = bisect_left(marks, start)
        begin = marks[at - 1] if at else 0
        vocabulary = self._encoder.vocabulary
        if vocabulary is not None:
            space = text.rfind(" ", begin + 1, start - 1)
            if space > begin and text[space - 1] < PRIVATE_FIRST and vocabulary.cuts_before_space(text[space - 1]):
                return space, int(vocabulary.lead == "always")  # the tokenizer puts that space in front again
        return begin, 0

    def add(self, row: int, prompt: str, expected: list[int], answer: str, ids: Sequence[int] | None) -> None:
        """Take in one learnt answer.

        Args:
            row: number to report it under.
            prompt: the end of the prompt before it.
            expected: the ids that the row has there.
            answer: text of the answer.
            ids: its ids; None if they are known to spell it.
        """
        self._prompts.append((row, prompt, expected))
        if ids is not None and not self._spells(ids, answer):
            self._answers.append((row, answer, ids))

    def failures(self) -> dict[int, tuple[str, str]]:
        """Row -> reason and detail, for those that failed since the last call."""
        prompts, answers = self._prompts, self._answers
        self._prompts, self._answers = [], []
        if len(self._ends) > _MOST_ENDS:
            self._ends.clear()
        new = list({end for _, end, _ in prompts if end not in self._ends})
        for end, encoding in zip(new, self._backend.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self._ends[end] = encoding.ids
        detail = "the end of the prompt has other ids where an answer follows" + _CURE
        found = {row: ("prompt_not_prefix", detail) for row, end, expected in prompts if self._ends[end] != expected}
        decoded = self._backend.decode_batch([ids for _, _, ids in answers], skip_special_tokens=False)
        for (row, expected_text, _), said in zip(answers, decoded, strict=True):
            if row not in found and not _same_text(said, expected_text):
                found[row] = "decode_mismatch", f"the trained ids decode to {said[:60]!r}, not to the answer"
        return found

    def _spells(self, ids: Sequence[int], text: str) -> bool:
        if self._encoder.vocabulary is None:
            return False
        spelled, wanted = b"".join(map(self._encoder.vocabulary.spelled.__getitem__, ids)), text.encode()
        return spelled in (wanted, b" " + wanted)


def _same_text(decoded: str, expected: str) -> bool:
    """Equal up to what tokenizers do on purpose: one leading space (SentencePiece) and Unicode normalisation."""
    if decoded == expected or " " + decoded == expected:
        return True
    forms: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
    return any(
        unicodedata.normalize(form, decoded).lstrip(" ") == unicodedata.normalize(form, expected).lstrip(" ") for form in forms
    )
