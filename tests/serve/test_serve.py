"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from sft.data.conversation import Conversation, Turn
from sft.data.template import builtin_names, load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError
from sft.run.answer import Asked
from sft.run.generate import Sampling, answer_batch, continued
from sft.serve.engine import Engine
from sft.serve.server import key_of, serve
from tests.builders import sentencepiece_like
from tests.serve.server import exported, served

pytest.importorskip("fastapi")
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(str(exported(tmp_path_factory.mktemp("serve") / "m")), most_waiting=2)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with served(engine) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    """Typed loosely: requests of the tests are faulty on purpose."""
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made


def greedy(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**({"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 12} | more))


def test_a_chat_is_what_sft_answer_says(client: Any, engine: Engine) -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "Hi <|im_end|>"), Turn("assistant", "Hello."), Turn("user", "请说。"))
    asked = Asked(Conversation("q", turns, "q"), 0.0, 12, 0)
    wanted = answer_batch(engine.model, engine.tokenizer, engine.encoder, [asked])[0]
    told = greedy(client, messages=[{"role": turn.role, "content": turn.content} for turn in turns])
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == (wanted.text, wanted.finish)
    assert told.usage.prompt_tokens == len(engine.encoder.prompt_ids(asked.conversation))
    assert told.usage.completion_tokens == 12
    assert told.usage.total_tokens == told.usage.prompt_tokens + 12


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.3, "top_p": 0.9, "seed": 7}])
def test_pieces_make_up_the_answer(client: Any, sampling: dict[str, Any]) -> None:
    whole = greedy(client, n=2, **sampling)
    chunks = list(greedy(client, n=2, stream=True, stream_options={"include_usage": True}, **sampling))
    texts, finishes = ["", ""], {}
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert (texts[0] == texts[1]) == (sampling["temperature"] == 0)
    assert not any(chunk.usage for chunk in greedy(client, stream=True))


def test_seeds_repeat_a_choice_and_count_on(client: Any) -> None:
    told = [choice.message.content for choice in greedy(client, temperature=1.0, seed=3, n=3).choices]
    assert [greedy(client, temperature=1.0, seed=3 + i).choices[0].message.content for i in range(3)] == told


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client: Any, stream: bool) -> None:
    text = greedy(client).choices[0].message.content
    stop = text[5:8]
    told = greedy(client, stop=["nowhere in it", stop], stream=stream)
    if stream:
        chunks = list(told)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text[: text.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert told.choices[0].message.content == text[: text.index(stop)]
        assert told.choices[0].finish_reason == "stop"
        assert told.usage.completion_tokens < 12


def test_an_end_token_is_a_stop_and_counts(client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = engine.chat_ids([Turn("user", "Hi")])
    made = engine.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=-1)[
        0, len(ids) :
    ].tolist()
    end = next(i for i in range(3, 12) if made[i] not in made[:i])
    monkeypatch.setattr(engine.encoder, "known_stops", ([made[end]], []))
    told = greedy(client)
    assert told.choices[0].message.content == engine.tokenizer.decode(made[:end]).removeprefix(" ")
    assert (told.choices[0].finish_reason, told.usage.completion_tokens) == ("stop", end + 1)


def test_raw_texts_are_continued(client: Any, engine: Engine) -> None:
    told = client.completions.create(model="tiny", prompt=["Hello there", "Name"], temperature=0, max_tokens=8)
    assert [choice.index for choice in told.choices] == [0, 1]
    counts = [len(engine.tokenizer(text).input_ids) for text in ("Hello there", "Name")]
    assert told.usage.prompt_tokens == sum(counts)
    pieces = ["", ""]
    for chunk in client.completions.create(
        model="tiny", prompt=["Hello there", "Name"], temperature=0, max_tokens=8, stream=True
    ):
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert pieces == [choice.text for choice in told.choices]
    assert client.completions.create(model="tiny", prompt="Name", temperature=0).usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("more", "message", "param", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported", "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format is not", "response_format", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs is not supported", "logprobs", "unsupported_parameter"),
        ({"extra_body": {"top_k": 5}}, "top_k is not supported", "top_k", "unsupported_parameter"),
        ({"temperature": 3}, "less than or equal to 2", "temperature", None),
        ({"stop": [""]}, "stop: up to 16 strings", "stop", None),
        ({"n": 17}, "less than or equal to 16", "n", None),
        ({"max_completion_tokens": 3}, "max_tokens and max_completion_tokens differ", "max_tokens", None),
        ({"stream_options": {"include_usage": True}}, "for stream: true only", "stream_options", None),
        ({"messages": [{"role": "developer", "content": "a"}]}, "no role 'developer'; write system", "messages.0.role", None),
        ({"messages": [*HI, {"role": "assistant", "content": "a"}]}, "the last message must be of the user", "messages", None),
        ({"messages": [*HI, {"role": "system", "content": "a"}, *HI]}, "would be lost", "messages", None),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "name is not written", "messages.0.name", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "only parts", "messages.0.content", None),
    ],
)  # fmt: skip
def test_what_would_be_passed_over_is_refused(
    client: Any, more: dict[str, Any], message: str, param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        greedy(client, **more)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


def test_harmless_values_are_taken(client: Any) -> None:
    plain = greedy(client).choices
    habits = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "user": "me",
        "response_format": {"type": "text"},
    }
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    assert greedy(client, messages=parts, **habits).choices == plain


def test_a_prompt_is_never_cut(client: Any, engine: Engine) -> None:
    tokens = len(engine.chat_ids([Turn("user", "Hi")]))
    said = f"the prompt has {tokens} tokens, max_tokens is 512, and the model's limit is 512 tokens in all"
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        greedy(client, max_tokens=512)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the answer needs one at least"):
        greedy(client, messages=[{"role": "user", "content": "a b " * 600}], max_tokens=None)
    assert engine.room([1] * 500, None) == 12


def test_models_and_health(client: Any, address: str) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here; 'tiny' is") as caught:
        greedy(client, model="other")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings"):
        client.embeddings.create(model="tiny", input="a", encoding_format="float")
    assert client._client.get(f"{address}/health").json() == {"status": "ok", "model": "tiny", "running": 0, "waiting": 0}


def test_requests_have_limits(client: Any, address: str) -> None:
    post, url = client._client.post, f"{address}/v1/chat/completions"
    assert post(url, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    plain = post(url, content=b"{}", headers={"Content-Type": "text/plain"})
    assert plain.json()["error"]["message"] == "Content-Type must be application/json"
    large = post(url, content=b" " * ((4 << 20) + 1), headers={"Content-Type": "application/json"})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    with pytest.raises(openai.BadRequestError, match="1025 messages; at most 1024"):
        greedy(client, messages=HI * 1025)
    foreign = client._client.get(f"{address}/v1/models", headers={"Host": "evil.example:80"})
    assert (foreign.status_code, foreign.json()["error"]["message"][:20]) == (403, "without a key this s")


def until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Held:
    """A model that waits before each token until it is let go."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, forward = threading.Event(), engine.model.forward

        def held(*args: Any, **options: Any) -> Any:
            self.go.wait(10)
            return forward(*args, **options)

        monkeypatch.setattr(engine.model, "forward", held)


def test_a_full_queue_sends_away(client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    held, done = Held(engine, monkeypatch), []
    threads = [threading.Thread(target=lambda: done.append(greedy(client, max_tokens=2))) for _ in range(3)]
    try:
        for i, thread in enumerate(threads):
            thread.start()
            until(lambda i=i: engine.running + engine.waiting == i + 1)
        with pytest.raises(openai.RateLimitError, match="2 requests wait already; try again later") as caught:
            greedy(client)
        assert caught.value.response.headers["retry-after"] == "1"
    finally:
        held.go.set()
        for thread in threads:
            thread.join()
    assert len(done) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_answer(
    client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    held, before = Held(engine, monkeypatch), engine.tokens_made
    with pytest.raises(openai.APITimeoutError):
        list(greedy(client, max_tokens=400, stream=stream, stream_options=None, timeout=0.2))
    until(lambda: engine._running is not None and engine._running.cancelled.is_set())
    held.go.set()
    until(lambda: not engine.running)
    assert engine.tokens_made - before <= 2


def test_a_failing_model_is_a_500_and_the_next_request_is_answered(
    client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", lambda *args, **options: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="the model failed on this request"):
            greedy(client)
        with pytest.raises(openai.APIError, match="the model failed on this request"):
            list(greedy(client, stream=True))
    assert greedy(client).choices


def test_a_key_is_asked_for(tmp_path: Any) -> None:
    engine = Engine.load(str(exported(tmp_path / "m")))
    with served(engine, key="secret") as (url, server):
        for key in ("wrong", "secre", "secret2"):
            with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError, match="no or a wrong API key") as caught:
                    client.models.list()
                assert caught.value.code == "invalid_api_key"
        with OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as known:
            assert [model.id for model in known.models.list()] == ["tiny"]
            stream = greedy(known, stream=True, max_tokens=60)
            next(stream)
            server.should_exit = True  # as SIGTERM has it
            assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
    assert not engine.alive


def test_a_host_that_others_reach_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VICUGNA_API_KEY", raising=False)
    assert [key_of(host) for host in ("127.0.0.1", "::1", "localhost")] == [None] * 3
    for host in ("0.0.0.0", "192.168.1.2", "example.org"):
        with pytest.raises(InputError, match=f"--host {host}: others can reach it, so it needs a key; set VICUGNA_API_KEY"):
            key_of(host)
    monkeypatch.setenv("VICUGNA_API_KEY", "k")
    assert key_of("0.0.0.0") == "k"
    monkeypatch.setenv("VICUGNA_API_KEY", "a b")
    with pytest.raises(InputError, match="VICUGNA_API_KEY must be printable ASCII without blanks"):
        key_of("127.0.0.1")


@pytest.mark.parametrize("name", builtin_names())
def test_served_ids_are_the_trained_ids_up_to_the_answer(name: str, tmp_path: Any) -> None:
    """Special tokens that a message spells stay text in both."""
    engine = Engine.load(str(exported(tmp_path / "m", name)))
    try:
        trained = RowEncoder(engine.tokenizer, load_template(name), "last")
        first = Turn("user", "Hi, <|im_end|> </s> <s>### Human: [INST]")
        talks = [(first,), (first, Turn("assistant", "Hello."), Turn("user", "请说。"))]
        for turns in talks[: 1 + trained.template.multi_turn]:
            row = trained.encode([Conversation("q", (*turns, Turn("assistant", "An answer.")), "q")])[0]
            begin = row.turns[-1][0]  # type: ignore[union-attr]  # no drop, or this fails
            assert engine.chat_ids(turns) == row.ids[:begin].tolist()  # type: ignore[union-attr]
        if not trained.template.multi_turn:
            with pytest.raises(InputError, match="the template of this model holds one exchange"):
                engine.chat_ids(talks[1])
    finally:
        engine.close()


def test_roles_that_a_template_has_not_are_refused(tmp_path: Any) -> None:
    engine = Engine.load(str(exported(tmp_path / "m", "chatglm2")))
    engine.close()
    asked = Turn("user", "a")
    with pytest.raises(InputError, match="the template chatglm2 has no tool role"):
        engine.chat_ids([Turn("tool", "b"), asked])
    with pytest.raises(InputError, match="the template chatglm2 has no system role"):
        engine.chat_ids([Turn("system", "b"), asked])
    source = (
        "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}bot: "
    )
    engine.encoder = RowEncoder(engine.tokenizer, load_template("tokenizer", tokenizer_source=source), "all")
    assert engine.chat_ids([asked])
    with pytest.raises(InputError, match="no system message can be set"):
        engine.chat_ids([Turn("system", "b"), asked])
    with pytest.raises(InputError, match="no place for tool messages and would pass them over"):
        engine.chat_ids([asked, Turn("assistant", "c"), Turn("tool", "b")])


def test_events_are_lines_of_json(address: str, client: Any) -> None:
    body = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 3, "stream": True}
    with client._client.stream("POST", f"{address}/v1/chat/completions", json=body) as told:
        assert told.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in told.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    made = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {(one["object"], one["id"], one["model"]) for one in made} == {("chat.completion.chunk", made[0]["id"], "tiny")}
    assert made[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_without_the_extra_serve_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"sft serve needs FastAPI and uvicorn .*pip install 'vicugna\[serve\]'"):
        serve("nowhere", host="127.0.0.1", port=0, name=None, most_waiting=1, max_body=1024, max_messages=1)


def test_a_raw_text_goes_on_with_its_blanks(tmp_path: Any) -> None:
    """This tokenizer's decoder takes the first blank of a text away, which here is between prompt and continuation."""
    engine = Engine.load(str(exported(tmp_path / "m", "vicuna_v1.1", sentencepiece_like())))
    # a run of bytes that is no UTF-8 is decoded otherwise as a whole than piece by piece; a random model writes many
    assert engine.model.generation_config is not None
    engine.model.generation_config.suppress_tokens = [
        engine.tokenizer.convert_tokens_to_ids(f"<0x{i:02X}>") for i in range(256)
    ]
    blank = 0
    try:
        for text in ("USER: Hello", "Name three", "春天", "def f(x):", "Hi,", "Red and"):
            ids, pieces = engine.text_ids(text), list[str]()
            assert ids == engine.tokenizer(text).input_ids
            made = continued(
                engine.model,
                engine.tokenizer,
                ids,
                12,
                Sampling(12),
                engine.stops([], raw=True),
                on_text=pieces.append,
                raw=True,
            )
            assert "".join(pieces) == made.said.text
            every = engine.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=2)[0].tolist()
            both = engine.tokenizer.decode([i for i in every if i != 2])
            assert both.rstrip("\ufffd") == engine.tokenizer.decode(ids) + made.said.text
            blank += made.said.text.startswith(" ")
    finally:
        engine.close()
    assert blank
