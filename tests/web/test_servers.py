"""The client of the page against a real socket: names, streams, and what every kind of failure is called."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sft.errors import InputError
from sft.web.desk import fault_words
from sft.web.servers import Fault, Piece, Sampling, Servers, base_url
from sft.web.words import LANGUAGES
from tests.web.stub import Stub

KEY = "sesame-open"


@pytest.fixture(scope="module")
def stubs() -> Iterator[tuple[Stub, Stub]]:
    both = Stub(("alpha", "same"), key=KEY), Stub(("same",), key=KEY)
    yield both
    for stub in both:
        stub.close()


def ask(servers: Servers, name: str, question: str) -> list[Piece]:
    async def go() -> list[Piece]:
        try:
            await servers.refresh()
            return await answered(servers, name, question)
        finally:
            await servers.close()

    return asyncio.run(go())


async def answered(servers: Servers, name: str, question: str) -> list[Piece]:
    return [piece async for piece in servers.answer(name, [{"role": "user", "content": question}], Sampling(0.5, 9))]


def test_models_of_two_servers_have_names_that_differ(stubs: tuple[Stub, Stub]) -> None:
    servers = Servers([stub.url for stub in stubs], KEY)
    places = [stub.url.removeprefix("http://") for stub in stubs]
    pieces = ask(servers, f"same @ {places[1]}", "Hi")
    assert servers.names == ["alpha", f"same @ {places[0]}", f"same @ {places[1]}"]
    assert "".join(piece.text for piece in pieces) == "same says: Hi"
    assert pieces[-1].finish == "stop"
    assert stubs[1].asked[-1] == {
        "model": "same",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "temperature": 0.5,
        "max_tokens": 9,
    }


@pytest.mark.parametrize(
    ("question", "kind", "detail"),
    [
        ("overflow", "too_long", "This model's maximum context length is 64 tokens, the messages are 70"),
        ("busy", "busy", "too many requests"),
        ("wrong", "failed", "500: alpha has a fault"),
        ("break", "broke_off", ""),
    ],
)
def test_each_failure_has_its_kind_and_the_words_of_the_server(
    question: str, kind: str, detail: str, stubs: tuple[Stub, Stub]
) -> None:
    with pytest.raises(Fault) as failed:
        ask(Servers([stubs[0].url], KEY), "alpha", question)
    assert (failed.value.kind, failed.value.detail) == (kind, detail)
    assert failed.value.__context__ is None  # what lies behind holds the key
    for language in LANGUAGES:
        assert detail in fault_words(language, failed.value)
        assert "alpha" not in fault_words(language, failed.value, blind=True)


def test_a_key_that_is_not_taken_is_not_shown(stubs: tuple[Stub, Stub]) -> None:
    servers = Servers([stubs[0].url], "my-secret")

    async def go() -> list[Fault]:
        try:
            return await servers.refresh()
        finally:
            await servers.close()

    (fault,) = asyncio.run(go())
    assert (fault.kind, fault.detail) == ("key", "wrong key: Bearer [key]")
    assert servers.names == []


def test_a_server_that_goes_keeps_its_models_and_says_so() -> None:
    stub = Stub(("alpha",))
    servers = Servers([stub.url])

    async def go() -> None:
        await servers.refresh()
        stub.close()
        (fault,) = await servers.refresh()
        assert (fault.kind, servers.names) == ("unreachable", ["alpha"])
        with pytest.raises(Fault, match="unreachable"):
            await answered(servers, "alpha", "Hi")
        with pytest.raises(Fault, match="no_such_model: beta"):
            await answered(servers, "beta", "Hi")
        await servers.close()

    asyncio.run(go())


def test_addresses() -> None:
    assert base_url("http://127.0.0.1:8000") == base_url("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000/v1"
    assert base_url("https://host/llm") == "https://host/llm/v1"
    for address in ("127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://host:0"):
        with pytest.raises(InputError, match="is no address of a server; write one such as http://127"):
            base_url(address)
    for address in ("http://me:secret@host", "http://host/?key=1"):
        with pytest.raises(InputError, match="--server: host: give the address alone; a key goes into VICUGNA_API_KEY"):
            base_url(address)
    with pytest.raises(InputError, match="http://host/v1 is given twice"):
        Servers(["http://host", "http://host/v1"])
