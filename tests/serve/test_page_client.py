"""The client of the page against the real server: what it asks is answered, and each refusal gets its right name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import pytest

from sft.data.conversation import Conversation, Turn
from sft.run.answer import Asked
from sft.run.generate import answer_batch
from sft.serve.engine import Engine
from sft.web.servers import Fault, Piece, Sampling, Servers
from tests.serve.server import exported, served

pytest.importorskip("fastapi")
KEY = "sesame-open"
HI = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(str(exported(tmp_path_factory.mktemp("page") / "m")))


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with served(engine, key=KEY) as (url, _):
        yield url


def asked(address: str, messages: Sequence[Mapping[str, str]], most: int = 12) -> list[Piece]:
    async def go() -> list[Piece]:
        servers = Servers([address], KEY)
        try:
            assert await servers.refresh() == []
            assert servers.names == ["tiny"]
            return [piece async for piece in servers.answer("tiny", messages, Sampling(0.0, most))]
        finally:
            await servers.close()

    return asyncio.run(go())


def test_the_page_gets_the_answer_of_sft_answer(address: str, engine: Engine) -> None:
    conversation = Conversation("q", (Turn("system", "Be brief."), Turn("user", "Hi")), "q")
    wanted = answer_batch(engine.model, engine.tokenizer, engine.encoder, [Asked(conversation, 0.0, 12, 0)])[0]
    pieces = asked(address, [{"role": "system", "content": "Be brief."}, HI])
    assert ("".join(piece.text for piece in pieces), pieces[-1].finish) == (wanted.text, wanted.finish)


def test_what_does_not_fit_is_told_as_such(address: str, engine: Engine) -> None:
    assert engine.known is not None
    with pytest.raises(Fault, match=rf"the model's limit is {engine.known} tokens in all") as found:
        asked(address, [HI], most=engine.known)
    assert found.value.kind == "too_long"


def test_a_wrong_key_is_told_as_such(address: str) -> None:
    async def go() -> list[Fault]:
        servers = Servers([address], "another")
        try:
            return await servers.refresh()
        finally:
            await servers.close()

    (fault,) = asyncio.run(go())
    assert (fault.kind, fault.detail) == ("key", "no or a wrong API key: Authorization: Bearer KEY")
