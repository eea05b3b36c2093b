"""Answers: the trained prompt, the trained stops, and a model that is put back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sft.data.conversation import Conversation, Turn
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError
from sft.model.attention import register
from sft.run.generate import Sampling, answer, sample_answers
from sft.run.streaming import Streamer, answer_text
from tests.builders import LLAMA, byte_level, colon_crossing, sentencepiece_like, tiny_model

QUESTION = Conversation("q", (Turn("user", "Hello there"),), "q")


class Scripted(torch.nn.Module):
    """A model that has one thing to say, token by token, whatever it is asked."""

    def __init__(self, model: PreTrainedModel, says: list[int]) -> None:
        super().__init__()
        self.model, self.says, self.seen = model, says, 0
        self.config = model.config
        self.asked: list[int] = []
        self.options: dict[str, Any] = {}

    def get_base_model(self) -> PreTrainedModel:
        return self.model

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, streamer: Any = None, **options: Any) -> torch.Tensor:
        self.asked, self.options = input_ids[0].tolist(), options
        out: list[int] = []
        if streamer is not None:
            streamer.put(input_ids)
        for token in self.says[:max_new_tokens]:
            out.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            if token in options["eos_token_id"]:
                break
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, torch.tensor([out], dtype=torch.long)], dim=1)


def scripted(tokenizer: Any, template: str, says: str, stop: bool = True) -> tuple[Scripted, RowEncoder]:
    encoder = RowEncoder(tokenizer, load_template(template), "last")
    ids = tokenizer(says, add_special_tokens=False)["input_ids"]
    stops = encoder.stops()[0]
    return Scripted(tiny_model(len(tokenizer)), [*ids, *(stops[:1] if stop else []), 5, 6, 7]), encoder


TEXTS = ["Red, green and blue.", "中文，🎉 café", "line one\n\nline two  ", "x"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [sentencepiece_like, byte_level, colon_crossing])
def test_what_is_streamed_is_the_answer(tokenizer: Any, text: str) -> None:
    """No half character, no stop token, nothing after it; one string whether streamed or not."""
    model, encoder = scripted(tokenizer(), "alpaca_short", text)
    pieces: list[str] = []
    said = answer(model, tokenizer(), encoder, QUESTION, Sampling(200), on_text=pieces.append)
    assert said == "".join(pieces) == text
    assert "�" not in said
    assert model.asked == encoder.prompt_ids(QUESTION)
    assert model.options["eos_token_id"] == encoder.stops()[0]
    assert model.options["do_sample"] is False


def test_a_stop_string_ends_the_answer_and_is_never_shown() -> None:
    tokenizer = sentencepiece_like()
    model, encoder = scripted(tokenizer, "vicuna_v0", "Fine.\n### Human: and you?", stop=False)
    stops = encoder.stops()[1]
    if not stops:
        pytest.fail("vicuna_v0 ends its turns by text; if that changed, choose another template here")
    pieces: list[str] = []
    said = answer(model, tokenizer, encoder, QUESTION, Sampling(60), on_text=pieces.append)
    assert "###" not in said
    assert "".join(pieces) == said
    assert said.startswith("Fine.")
    assert model.options["stop_strings"] == stops


@pytest.mark.parametrize("text", ["a\n##b \n# c\n\n", "x\n##\n###", "### \n###", "<|im_end|> 诗\n"])
def test_what_may_become_a_stop_is_held_back_and_no_more(text: str) -> None:
    """What was shown at any time begins the answer, and falls short of what is known by less than a stop."""
    tokenizer = byte_level()
    _, encoder = scripted(tokenizer, "vicuna_v0", text, stop=False)
    stop_ids, stops = encoder.stops()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    wanted = answer_text(tokenizer, ids, stop_ids, stops)
    shown: list[str] = []
    streamer = Streamer(tokenizer, stop_ids, stops, shown.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for count, token in enumerate(ids, 1):
        streamer.put(torch.tensor([token]))
        now = "".join(shown)
        assert wanted.startswith(now)
        sure = answer_text(tokenizer, ids[:count], stop_ids, stops).rstrip("\ufffd")
        assert len(sure) - len(now) < len(stops[0]) or not wanted.startswith(sure)
    streamer.end()
    streamer.finish(wanted)
    assert "".join(shown) == wanted


def test_a_stream_decodes_each_token_a_few_times_only() -> None:
    tokenizer, decoded = byte_level(), 0

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(tokenizer.decode(ids, **options))

    ids = tokenizer("Ein Satz, 诗 und mehr. " * 40, add_special_tokens=False)["input_ids"]
    shown: list[str] = []
    streamer = Streamer(Counting(), [0], [], shown.append)
    streamer.put(torch.tensor([[1]]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    assert "".join(shown) == tokenizer.decode(ids)
    assert decoded < 8 * len(ids)


def test_the_answer_ends_where_the_model_does() -> None:
    """Only as many tokens as positions are left, and no question that leaves none."""
    tokenizer = sentencepiece_like()
    encoder = RowEncoder(tokenizer, load_template("alpaca_short"))
    prompt = len(encoder.prompt_ids(QUESTION))
    model = Scripted(tiny_model(len(tokenizer), LLAMA | {"max_position_embeddings": prompt + 3}), [300] * 50)
    answer(model, tokenizer, encoder, QUESTION, Sampling(50))
    assert len(model.asked) == prompt
    full = Scripted(tiny_model(len(tokenizer), LLAMA | {"max_position_embeddings": prompt}), [300])
    with pytest.raises(
        InputError, match=rf"the conversation is {prompt} tokens long and the model knows {prompt} positions; start a new one"
    ):
        answer(full, tokenizer, encoder, QUESTION, Sampling(50))


def test_sampling_is_asked_for_only_when_wanted() -> None:
    model, encoder = scripted(sentencepiece_like(), "alpaca_short", "x")
    answer(model, sentencepiece_like(), encoder, QUESTION, Sampling(5, temperature=0.7, top_p=0.9))
    assert (model.options["do_sample"], model.options["temperature"], model.options["top_p"]) == (True, 0.7, 0.9)


@pytest.mark.parametrize("training", [True, False])
def test_a_training_model_answers_and_goes_on(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat-row backend and mode are put back, also when generation fails; greedy answers repeat."""
    register()
    tokenizer = sentencepiece_like()
    encoder = RowEncoder(tokenizer, load_template("alpaca_short"))
    model = tiny_model(len(tokenizer))
    model.set_attn_implementation("vicugna_sdpa")
    model.train(training)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (sample_answers(model, tokenizer, encoder, ["Hi", "Say 3"], 8) for _ in range(2))
    assert first == second
    assert len(first) == 2
    assert (model.config._attn_implementation, model.training) == ("vicugna_sdpa", training)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    monkeypatch.setattr(model, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample_answers(model, tokenizer, encoder, ["Hi"], 8)
    assert (model.config._attn_implementation, model.training) == ("vicugna_sdpa", training)


def test_greedy_is_argmax_over_the_trained_prompt() -> None:
    """Against the model run by hand without a cache."""
    tokenizer = sentencepiece_like()
    encoder = RowEncoder(tokenizer, load_template("alpaca_short"))
    model = tiny_model(len(tokenizer), seed=4).eval()
    ids = encoder.prompt_ids(QUESTION)
    wanted: list[int] = []
    with torch.no_grad():
        for _ in range(8):
            token = int(model(input_ids=torch.tensor([ids + wanted]), use_cache=False).logits[0, -1].argmax())
            if token in encoder.stops()[0]:
                break
            wanted.append(token)
    said = answer(model, tokenizer, encoder, QUESTION, Sampling(8))
    assert said == tokenizer.decode(wanted).removeprefix(" ")
