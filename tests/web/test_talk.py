"""Dialogues as the page holds them: what may be asked when, what is undone, and that no text is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sft.web.servers import Fault, Piece
from sft.web.talk import Answer, Refused, Talk


async def _say(*pieces: Piece | Fault | Exception) -> AsyncIterator[Piece]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


def written(talk: Talk, *pieces: Piece | Fault | Exception) -> None:
    async def go() -> None:
        async for _ in talk.write(lambda answer, messages: _say(*pieces)):
            pass

    asyncio.run(go())


def asked(*questions: str, strict: bool = False, models: tuple[str, ...] = ("m",)) -> Talk:
    talk = Talk(strict=strict, models=models)
    for question in questions:
        talk.ask(question, "")
        written(talk, Piece(f"re {question}"), Piece("", "stop"))
    return talk


def shown(talk: Talk) -> list[tuple[str, list[str]]]:
    return [(exchange.question, [answer.text for answer in exchange.answers]) for exchange in talk.exchanges]


def test_a_dialogue_is_told_under_the_system_prompt_of_its_last_question() -> None:
    talk = asked("a")
    talk.ask("b", " Be brief.\n")
    wanted = [("system", " Be brief.\n"), ("user", "a"), ("assistant", "re a"), ("user", "b")]
    assert [(one["role"], one["content"]) for one in talk.messages(0)] == wanted
    assert [one["content"] for one in talk.messages(0, 0)] == ["a", "re a"]


@pytest.mark.parametrize(
    ("pieces", "state", "text", "goes_on", "votable"),
    [
        ((Piece("x"), Piece("", "stop")), "whole", "x", True, True),
        ((Piece("", "stop"),), "whole", "", True, True),
        ((Piece("x"), Piece("y", "length")), "length", "xy", True, True),
        ((Piece("x"), Fault("broke_off", "s")), "broken", "x", True, False),
        ((Fault("busy", "s"),), "broken", "", False, False),
    ],
)
def test_how_an_answer_ends(pieces: tuple[Piece | Fault, ...], state: str, text: str, goes_on: bool, votable: bool) -> None:
    for strict, wanted in ((False, goes_on), (True, votable)):
        talk = Talk(strict=strict, models=("m",))
        talk.ask("q", "")
        written(talk, *pieces)
        answer = talk.exchanges[0].answers[0]
        assert (answer.state, answer.text, not talk.unanswered) == (state, text, wanted)
        if not wanted:
            with pytest.raises(Refused, match="unanswered"):
                talk.ask("next", "")
        assert not talk.busy


def test_two_sides_are_written_at_the_same_time_and_stopped_together() -> None:
    talk = Talk(strict=True, models=("left", "right"))
    talk.ask("q", "")
    meeting = asyncio.Barrier(2)
    closed: list[str] = []

    async def stream(answer: Answer) -> AsyncIterator[Piece]:
        await meeting.wait()  # one after the other they would never get past this
        try:
            yield Piece(answer.model)
            await asyncio.sleep(60)
        finally:
            closed.append(answer.model)

    async def go() -> None:
        async for _ in talk.write(lambda answer, messages: stream(answer)):
            if talk.busy and all(answer.text for answer in talk.exchanges[0].answers):
                with pytest.raises(Refused, match="busy"):
                    talk.new()
                talk.stop()

    asyncio.run(go())
    assert sorted(closed) == ["left", "right"]
    assert [(answer.text, answer.state) for answer in talk.exchanges[0].answers] == [("left", "stopped"), ("right", "stopped")]


def test_a_page_that_goes_away_ends_the_requests() -> None:
    talk = Talk(models=("m",))
    talk.ask("q", "")

    async def endless(answer: Answer) -> AsyncIterator[Piece]:
        while True:
            yield Piece(".")
            await asyncio.sleep(0)

    async def go() -> None:
        writing = talk.write(lambda answer, messages: endless(answer))
        await anext(writing)
        await writing.aclose()  # type: ignore[attr-defined]

    asyncio.run(go())
    assert (talk.busy, talk.exchanges[0].answers[0].state) == (False, "stopped")


def test_a_bug_is_no_fault_of_a_server() -> None:
    talk = Talk(models=("m",))
    talk.ask("q", "")
    with pytest.raises(ZeroDivisionError):
        written(talk, Piece("x"), ZeroDivisionError())
    assert (talk.busy, talk.exchanges[0].answers[0].text) == (False, "x")


def test_every_step_is_undone_and_no_text_is_lost() -> None:
    talk = asked("a", "b")
    first = talk.id
    before = [shown(talk)]
    talk.regenerate("")
    written(talk, Piece("anew"), Piece("", "stop"))
    before.append(shown(talk))
    talk.edit_answer(0, "mine")
    before.append(shown(talk))
    talk.edit_question(0, "c", "")
    written(talk, Piece("re c"), Piece("", "stop"))
    assert shown(talk) == [("c", ["re c"])]
    before.append(shown(talk))
    talk.new()
    assert (shown(talk), talk.id != first) == ([], True)
    for wanted in reversed(before):
        assert talk.undo("typed") == "typed"
        assert shown(talk) == wanted
    assert talk.id == first
    assert talk.undo("typed") == "b\ntyped"
    assert talk.undo("") == "a"
    assert shown(talk) == []
    with pytest.raises(Refused, match="nothing_to_undo"):
        talk.undo("typed")


def test_what_cannot_be_done_changes_nothing() -> None:
    talk = Talk()
    for refused, why in ((lambda: talk.ask("q", ""), "no_model"), (lambda: talk.regenerate(""), "no_question")):
        with pytest.raises(Refused, match=why):
            refused()
    talk = asked("a")
    for step in (lambda: talk.ask(" \n", ""), lambda: talk.edit_question(0, " ", ""), lambda: talk.edit_answer(0, "")):
        with pytest.raises(Refused, match="nothing_typed"):
            step()
    assert shown(talk) == [("a", ["re a"])]
    assert talk.undo("") == "a"
    assert not talk.can_undo
