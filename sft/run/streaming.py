"""From ids to text: the answer that ids are, and its text piece by piece while they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    behind: Sequence[int] | None = None,
) -> str:
    """The text of an answer up to its stop, without the blank that some templates put before it (kept ``behind`` a raw text)."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    text = text_behind(tokenizer, ids[:end], behind)
    for stop in stop_strings:
        text = text.split(stop, 1)[0]
    return text.removeprefix(" ") if behind is None else text


def text_behind(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], behind: Sequence[int] | None) -> str:
    """The text that ids add to that of the ids before them."""
    if not behind:
        return decoded(tokenizer, ids)
    return decoded(tokenizer, [*behind, *ids])[len(decoded(tokenizer, behind)) :]


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class Streamer:
    """Hands out text as it becomes certain: whole characters, nothing that may still become a stop string.

    Only the tokens since the last certain character are decoded, with those of the piece before them, since some tokenizers write a token
    otherwise at the start: time grows with the length of an answer, not with its square.

    Args:
        tokenizer: of the model.
        stop_ids: ids that end the answer.
        stops: strings that end it.
        on_text: called with each piece.
        behind: ids of a raw text that is continued, whose blanks are kept; None for an answer, which has none before it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        stops: Sequence[str],
        on_text: Callable[[str], None],
        behind: Sequence[int] | None = None,
    ) -> None:
        self.tokenizer, self.stop_ids, self.stops, self.on_text = tokenizer, frozenset(stop_ids), stops, on_text
        self.blank = " " if behind is None else ""
        self.ids: list[int] = list(behind or ())
        self.begin, self.read = 0, len(self.ids)  # what lies between was decoded before, and is again for what stands behind it
        self.text, self.shown = "", 0
        self.prompt_seen = self.closed = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then token by token."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            self.closed = self.closed or token in self.stop_ids
            if not self.closed:
                self.ids.append(token)
        if self.closed:
            return
        known = decoded(self.tokenizer, self.ids[self.begin : self.read])
        text = decoded(self.tokenizer, self.ids[self.begin :])
        if text.endswith("\ufffd") or len(text) <= len(known):  # the next token completes this character
            return
        self.text += text[len(known) :]
        self.begin, self.read = self.read, len(self.ids)
        self._show()

    def end(self) -> None:
        """Nothing: what the whole answer is, :meth:`finish` is told."""

    def finish(self, answer: str) -> None:
        """Hand out what is left of the answer."""
        if len(answer) > self.shown:
            self.on_text(answer[self.shown :])
            self.shown = len(answer)

    def _show(self) -> None:
        at = self.text.find
        cut = min((found for stop in self.stops if (found := at(stop)) >= 0), default=None)
        if cut is not None:
            self.text, self.closed = self.text[:cut], True
        text = self.text.removeprefix(self.blank)
        certain = len(text) if self.closed else len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
        if certain > self.shown:
            self.on_text(text[self.shown : certain])
            self.shown = certain


def _overlap(text: str, stop: str) -> int:
    """How much of the end of a text may be the beginning of a stop."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
