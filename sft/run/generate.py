"""Answers from a model, through the training template and its stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft.data.conversation import Conversation
from sft.data.tokenize import RowEncoder
from sft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to pick tokens.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: nucleus.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0


@contextmanager
def _generating(model: Any) -> Iterator[Any]:
    """A transformers model set up to generate (cache, plain SDPA, eval mode), and put back afterwards.

    The flat-row backends build no mask, which a batch with a cache needs.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    implementation, training = base.config._attn_implementation, model.training
    base.set_attn_implementation("sdpa" if implementation.startswith("vicugna") else implementation)
    model.eval()
    try:
        yield model
    finally:
        base.set_attn_implementation(implementation)
        model.train(training)


@torch.no_grad()
def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    conversation: Conversation,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The model's next answer, without its stop token.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer.
        encoder: its template.
        conversation: ends with a user (or input) turn.
        sampling: how to pick tokens.
        on_text: called with each new piece of text as it comes.

    Raises:
        InputError: the prompt leaves no room for an answer.
    """
    ids = encoder.prompt_ids(conversation)
    known = getattr(model.config, "max_position_embeddings", None)
    room = sampling.max_tokens if known is None else min(sampling.max_tokens, known - len(ids))
    if room <= 0:
        raise InputError(f"the conversation is {len(ids)} tokens long and the model knows {known} positions; start a new one")
    stop_ids, stop_strings = encoder.stops()
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    options: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if stop_strings:
        options |= {"stop_strings": stop_strings, "tokenizer": tokenizer}
    streamer = _Streamer(tokenizer, stop_strings, on_text) if on_text is not None else None
    with _generating(model) as ready:
        out = ready.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=room,
            eos_token_id=stop_ids,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            streamer=streamer,
            **options,
        )
    return _text(tokenizer, out[0, len(ids) :].tolist(), stop_ids, stop_strings)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int], stop_strings: Sequence[str]) -> str:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    text = str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    for stop in stop_strings:
        text = text.split(stop, 1)[0]
    return text.removeprefix(" ")


class _Streamer:
    """Hands out text as it becomes certain: whole characters, nothing that may still become a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.stops, self.on_text = tokenizer, stops, on_text
        self.ids: list[int] = []
        self.shown = ""
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.reshape(-1).tolist()
        self._show(hold=max((len(s) for s in self.stops), default=0))

    def end(self) -> None:
        self._show(hold=0)

    def _show(self, hold: int) -> None:
        text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for stop in self.stops:
            text = text.split(stop, 1)[0]
        text = text.removeprefix(" ")
        if text.endswith("\ufffd"):  # the next token completes this character
            return
        text = text[: len(text) - hold] if hold else text
        if len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text


def sample_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, prompts: Sequence[str], max_tokens: int
) -> list[str]:
    """Greedy answers to single questions, for before-and-after samples."""
    from sft.data.conversation import Turn

    return [
        answer(model, tokenizer, encoder, Conversation("sample", (Turn("user", text),), "sample"), Sampling(max_tokens))
        for text in prompts
    ]
