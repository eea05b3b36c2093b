"""vLLM as what answers: its batching and kernels, our ids and stops.

Prompts are rendered and encoded here, so they are the ids of training whatever vLLM's own chat code would write; the answer's text is
decoded here from the ids that it gives back. Written against its ``LLM.generate`` with ``prompt_token_ids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sft.data.template import RenderRefused
from sft.errors import InputError, RunError, VerificationError
from sft.run.answer import Asked, Said
from sft.run.chat import find_model, load_words
from sft.run.generate import cut_off, room_of
from sft.run.local import weights_of
from sft.run.streaming import answer_text

HOTTEST = 2.0
"""The highest temperature that it takes."""


class VllmAnswerer:
    """A run directory, an exported folder or a Hub name.

    Args:
        name: as of ``sft chat``.

    Raises:
        InputError: vLLM is not installed, nothing there, no chat template, or an adapter that is not merged.
    """

    batch = 1024
    """Questions at once: it makes its own batches of them, and what is answered is written when all of these are."""

    def __init__(self, name: str) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise InputError(
                f"--engine vllm needs vLLM ({error}): pip install 'vicugna[vllm]', or leave --engine out"
            ) from None
        from sft.model.native import OWN_MODEL_TYPES, AutoConfig

        where, adapter = find_model(name)
        if adapter is not None:
            raise InputError(f"{name}: vLLM takes a whole model, and this adapter is not merged yet: sft merge {name}")
        self.name = name
        self.tokenizer, self.encoder, self.about = load_words(name)
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        if config.model_type in OWN_MODEL_TYPES:
            raise InputError(f"{name}: vLLM does not know models of type {config.model_type}; leave --engine out")
        self._config = config
        self.known: int | None = getattr(config, "max_position_embeddings", None)
        dtype = str(getattr(config, "dtype", None) or "auto").removeprefix("torch.")
        self._sampling: Any = SamplingParams
        # "auto" would answer with a float32 model in 16 bits; the stops of the folder are ours in any case.
        self._llm: Any = LLM(
            model=where,
            tokenizer=where,
            trust_remote_code=False,
            dtype=dtype,
            max_model_len=self.known,
            generation_config="vllm",
            seed=0,
        )

    @property
    def template(self) -> str:
        """Fingerprint of the chat template."""
        return self.encoder.template.fingerprint

    def weights(self) -> str:
        """Fingerprint of the weights."""
        return weights_of(self.name, self._config)

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """Answer some turns, in order.

        Raises:
            InputError: a prompt that leaves no room for an answer, or that the template cannot write; a temperature above 2.
            VerificationError: vLLM answered other ids than it was given.
            RunError: vLLM ended an answer for another reason than a stop or its length.
        """
        prompts, params = [], []
        for one in asked:
            if one.temperature > HOTTEST:
                raise InputError(f"--temperature {one.temperature:g}: vLLM takes at most {HOTTEST:g}")
            try:
                ids = self.encoder.prompt_ids(one.conversation)
            except RenderRefused as refusal:
                raise InputError(f"{one.conversation.id}: {refusal.detail}") from None
            prompts.append(ids)
            params.append(self._params(one, room_of(ids, one, self.known)))
        made = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [self._said(*pair) for pair in zip(asked, prompts, made, strict=True)]

    def _params(self, one: Asked, room: int) -> Any:
        stop_ids, stop_strings = self.encoder.stops()
        return self._sampling(
            temperature=one.temperature,
            seed=one.seed if one.temperature > 0 else None,
            max_tokens=room,
            stop=stop_strings,
            stop_token_ids=stop_ids,
            ignore_eos=True,  # the ids above are all that end an answer
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
        )

    def _said(self, one: Asked, prompt: Sequence[int], made: Any) -> Said:
        if list(made.prompt_token_ids) != list(prompt):
            raise VerificationError(
                f"{one.conversation.id}: vLLM read other ids than those of the training template; report its version"
            )
        out = made.outputs[0]
        if out.finish_reason not in ("stop", "length"):
            raise RunError(
                f"{one.conversation.id}: vLLM ended the answer by {out.finish_reason!r}; what was answered before is kept"
            )
        text = answer_text(self.tokenizer, list(out.token_ids), *self.encoder.stops())
        return Said(text, "stop") if out.finish_reason == "stop" else cut_off(text, "length")
