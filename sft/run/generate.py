"""Answers from a model, through the training template and its stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft.data.conversation import Conversation
from sft.data.template import RenderRefused
from sft.data.tokenize import RowEncoder
from sft.errors import InputError
from sft.run.answer import Asked, Said
from sft.run.streaming import Streamer, answer_text, text_behind

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

    def options(self) -> dict[str, Any]:
        """As ``generate`` takes them; ``top_k`` is off, which transformers would set."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


class ContextFull(InputError):
    """A prompt that leaves no room for an answer.

    Attributes:
        fact: how long it is, and how long it may be.
    """

    def __init__(self, tokens: int, known: int) -> None:
        self.fact = f"the conversation is {tokens} tokens long and the model knows {known} positions"
        super().__init__(f"{self.fact}; start a new one")


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


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    conversation: Conversation,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The text of :func:`reply`."""
    return reply(model, tokenizer, encoder, conversation, sampling, on_text=on_text).text


@torch.no_grad()
def reply(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    conversation: Conversation,
    sampling: Sampling,
    *,
    on_text: Callable[[str], None] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Said:
    """The model's next answer, without its stop token.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer.
        encoder: its template.
        conversation: ends with a user (or input) turn.
        sampling: how to pick tokens.
        on_text: called with each new piece of text as it comes: whole characters, no part of a stop. The pieces make up the answer.
        stopped: asked after each token; True ends the answer there.

    Returns:
        The answer; ``finish`` is ``stop``, ``length``, or ``stopped`` where ``stopped`` ended it.

    Raises:
        ContextFull: the prompt leaves no room for an answer.
        InputError: the template cannot write it.
    """
    try:
        ids = encoder.prompt_ids(conversation)
    except RenderRefused as refusal:
        raise InputError(refusal.detail) from None
    known = getattr(model.config, "max_position_embeddings", None)
    room = sampling.max_tokens if known is None else min(sampling.max_tokens, known - len(ids))
    if room <= 0:
        raise ContextFull(len(ids), int(known or 0))
    stop_ids, stop_strings = encoder.stops()
    return continued(
        model, tokenizer, ids, room, sampling, Stops(stop_ids, stop_strings), on_text=on_text, stopped=stopped
    ).said


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer.

    Attributes:
        ids: tokens.
        strings: of the template, for stops that are plain text.
        extra: strings of one request.
    """

    ids: Sequence[int]
    strings: Sequence[str] = ()
    extra: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Continued:
    """An answer, and how many tokens the model wrote for it, its stop among them."""

    said: Said
    tokens: int


@torch.no_grad()
def continued(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    room: int,
    sampling: Sampling,
    stops: Stops,
    *,
    on_text: Callable[[str], None] | None = None,
    stopped: Callable[[], bool] | None = None,
    raw: bool = False,
) -> Continued:
    """What a model writes behind some ids; arguments as of :func:`reply`.

    Args:
        ids: of the prompt.
        room: most tokens to write.
        stops: what ends it.
        raw: the ids are a text that goes on, not the prompt of a template: a blank at the start is kept.
    """
    prompt = torch.tensor([list(ids)], device=next(model.parameters()).device)
    strings, behind = (*stops.strings, *stops.extra), list(ids) if raw else None
    options = sampling.options() | ({"stop_strings": list(stops.strings), "tokenizer": tokenizer} if stops.strings else {})
    streamer = None
    if on_text is not None or stops.extra:
        streamer = Streamer(tokenizer, stops.ids, strings, on_text or (lambda text: None), behind)
    if stopped is not None or stops.extra:
        options |= {
            "stopping_criteria": _criteria(lambda: (streamer is not None and streamer.closed) or bool(stopped and stopped()))
        }
    with _generating(model) as ready:
        out = ready.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=room,
            eos_token_id=list(stops.ids),
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            streamer=streamer,
            **options,
        )
    made = out[0, len(ids) :].tolist()
    said = _said(tokenizer, made, room, stops.ids, strings, behind)
    if stopped is not None and stopped() and not _ended(tokenizer, made, stops.ids, strings, behind):
        said = cut_off(said.text, "stopped")
    if streamer is not None:
        streamer.finish(said.text)
    return Continued(said, len(made))


def _criteria(stopped: Callable[[], bool]) -> Any:
    from transformers import StoppingCriteriaList

    def ask(input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), stopped(), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([ask])


@torch.no_grad()
def answer_batch(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, asked: Sequence[Asked], most: int = 16
) -> list[Said]:
    """Answers to several conversations, in batches padded on the left.

    An answer does not depend on what stands beside it in a batch, but for rounding: noise is drawn for each by its own seed (the largest of
    ``logits / temperature`` plus Gumbel noise is a sample of the softmax).

    Args:
        model, tokenizer, encoder: as of :func:`answer`.
        asked: each ends with a user turn.
        most: conversations of a batch; halved where memory runs out.

    Raises:
        InputError: a prompt that leaves no room for an answer, or that the template cannot write.
    """
    prompts = [_prompt(model, encoder, one) for one in asked]
    out: dict[int, Said] = {}
    order = sorted(range(len(asked)), key=lambda i: (prompts[i][1], len(prompts[i][0])))  # the same room in a batch
    with _generating(model) as ready:
        while order:
            room = prompts[order[0]][1]
            some = [i for i in order[:most] if prompts[i][1] == room]
            try:
                texts = _generate(ready, tokenizer, encoder, [prompts[i][0] for i in some], [asked[i] for i in some], room)
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
                most = max(1, most // 2)
                torch.cuda.empty_cache()
                continue
            out.update(zip(some, texts, strict=True))
            order = order[len(some) :]
    return [out[i] for i in range(len(asked))]


def _prompt(model: Any, encoder: RowEncoder, asked: Asked) -> tuple[list[int], int]:
    """Ids of a prompt, and the most tokens that may follow."""
    try:
        ids = encoder.prompt_ids(asked.conversation)
    except RenderRefused as refusal:
        raise InputError(f"{asked.conversation.id}: {refusal.detail}") from None
    return ids, room_of(ids, asked, getattr(model.config, "max_position_embeddings", None))


def room_of(ids: Sequence[int], asked: Asked, known: int | None) -> int:
    """The most tokens that an answer to a prompt may have, of a model that knows so many positions.

    Raises:
        InputError: there is no room for one.
    """
    room = asked.max_tokens if known is None else min(asked.max_tokens, known - len(ids))
    if room <= 0:
        raise InputError(
            f"{asked.conversation.id}: its prompt of {len(ids)} tokens fills the {known} positions of the model; shorten it"
        )
    return room


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    prompts: Sequence[list[int]],
    asked: Sequence[Asked],
    room: int,
) -> list[Said]:
    stop_ids, stop_strings = encoder.stops()
    device, width = next(model.parameters()).device, max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
    if pad >= model.get_input_embeddings().weight.shape[0]:  # a base without the token that its tuned model pads with
        pad = 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    options: dict[str, Any] = {"stop_strings": stop_strings, "tokenizer": tokenizer} if stop_strings else {}
    if any(one.temperature > 0 for one in asked):
        from transformers import LogitsProcessorList

        options["logits_processor"] = LogitsProcessorList([_Noise(asked, device)])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=room,
        eos_token_id=stop_ids,
        pad_token_id=pad,
        use_cache=True,
        do_sample=False,
        **options,
    )
    return [_said(tokenizer, row[width:].tolist(), room, stop_ids, stop_strings) for row in made]


def _said(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    room: int,
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    behind: Sequence[int] | None = None,
) -> Said:
    text = answer_text(tokenizer, ids, stop_ids, stop_strings, behind)
    if len(ids) < room or _ended(tokenizer, ids, stop_ids, stop_strings, behind):
        return Said(text, "stop")
    return cut_off(text, "length")


def cut_off(text: str, finish: str) -> Said:
    """An answer that did not come to its end: half a character there is none."""
    return Said(text.rstrip("\ufffd"), finish)


def _ended(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    behind: Sequence[int] | None = None,
) -> bool:
    """Whether the model wrote a stop."""
    if any(token in stop_ids for token in ids):
        return True
    return bool(stop_strings) and any(stop in text_behind(tokenizer, ids, behind) for stop in stop_strings)


class _Noise:
    """Sampling as the largest of logits with noise, each row at its own temperature and by its own seed."""

    def __init__(self, asked: Sequence[Asked], device: torch.device) -> None:
        self.temperatures = torch.tensor([one.temperature or 1.0 for one in asked], device=device)[:, None]
        self.generators = [torch.Generator(device).manual_seed(one.seed) if one.temperature > 0 else None for one in asked]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        out = scores.float() / self.temperatures
        for row, generator in zip(out, self.generators, strict=True):
            if generator is not None:
                row -= torch.empty_like(row).exponential_(generator=generator).log()
        return out


def sample_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, encoder: RowEncoder, prompts: Sequence[str], max_tokens: int
) -> list[str]:
    """Greedy answers to single questions, for before-and-after samples."""
    from sft.data.conversation import Turn

    return [
        answer(model, tokenizer, encoder, Conversation("sample", (Turn("user", text),), "sample"), Sampling(max_tokens))
        for text in prompts
    ]
