"""Splitting by rendered length: every exchange comes out in one row or is listed, and every row fits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.curate.chat import Chat, Message, read_chat
from sft.curate.parts import PartReport
from sft.curate.split import SplitSection, Splitter
from sft.data.conversation import Conversation, Turn
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder, Tokenized
from sft.errors import DataError
from tests.builders import sentencepiece_like
from tests.data.talks import letters

Pair = tuple[str, str]
TEXT = st.text(st.sampled_from("ab 你\n<"), min_size=1, max_size=30).filter(lambda text: bool(text.strip()))
CHATS = st.lists(
    st.tuples(st.none() | TEXT, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), st.none() | TEXT),
    min_size=1,
    max_size=5,
)
ENCODERS = {
    "chatml": RowEncoder(letters(), load_template("chatml")),
    "vicuna_v1.1": RowEncoder(sentencepiece_like(), load_template("vicuna_v1.1")),
}


def section(template: str, max_length: int, overflow: str = "keep") -> SplitSection:
    values = {"model": {"name_or_path": "x"}, "template": {"name": template}, "max_length": max_length, "overflow": overflow}
    return SplitSection.model_validate(values)


def chat(name: str, system: str | None, pairs: list[Pair], tail: str | None = None) -> Chat:
    head = () if system is None else (Message("system", system),)
    messages = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return Chat(name, (*head, *messages, *(() if tail is None else (Message("user", tail),))))


def pairs_of(found: Chat) -> list[Pair]:
    rest = [m for m in found.messages if m.role != "system"]
    return [(q.text, a.text) for q, a in zip(rest[::2], rest[1::2], strict=False)]


def length(encoder: RowEncoder, found: Chat) -> int:
    turns = tuple(Turn(m.role, m.text) for m in found.messages)  # type: ignore[arg-type]  # a Chat's role is any text
    row = encoder.encode([Conversation(found.id, turns, "")])[0]
    assert isinstance(row, Tokenized)
    return len(row.ids)


@pytest.mark.parametrize("template", ["chatml", "vicuna_v1.1"])
@settings(max_examples=60)
@given(rows=CHATS, max_length=st.integers(60, 200), overflow=st.sampled_from(["keep", "drop"]))
def test_no_exchange_is_lost_silently(
    template: str, rows: list[tuple[str | None, list[Pair], str | None]], max_length: int, overflow: str
) -> None:
    encoder = ENCODERS[template]
    chats = [chat(f"c{i}", *row) for i, row in enumerate(rows)]
    report = PartReport("", 0, "s")
    out = list(Splitter(encoder, section(template, max_length, overflow)).split(chats, report))
    listed: Counter[Pair] = Counter()
    for place, reason, _ in report.dropped:
        name, _, number = place.partition("#")
        owner = next(c for c in chats if c.id == name)
        assert reason in ("exchange_too_long", "nothing_trained", "prompt_not_prefix", "decode_mismatch", "trailing_user")
        listed.update(pairs_of(owner)[int(number) : int(number) + 1] if number else pairs_of(owner))
    came = Counter(pair for c in chats for pair in pairs_of(c))
    went = Counter(pair for c in out for pair in pairs_of(c))
    assert came == went + listed
    for part in out:
        whole = next(c for c in chats if c.id == part.id.partition("#")[0])
        assert [m for m in part.messages if m.role == "system"] == [m for m in whole.messages if m.role == "system"]
        assert length(encoder, part) <= max_length or (overflow == "keep" and len(pairs_of(part)) == 1)


def test_parts_are_filled_from_the_front_and_numbered_by_their_first_exchange() -> None:
    # <|im_start|>user\n...<|im_end|>\n and the same of the answer, one token per byte: 8 + 10, 13 + 10
    pairs = [(f"question {i}"[:10], f"answer   {i}") for i in range(5)]
    report = PartReport("", 0, "s")
    out = list(Splitter(ENCODERS["chatml"], section("chatml", 2 * 41 + 5)).split([chat("c", None, pairs)], report))
    assert [(c.id, len(pairs_of(c))) for c in out] == [("c#0", 2), ("c#2", 2), ("c#4", 1)]
    assert (report.changed, report.dropped) == ({"split": 1}, [])


def test_what_is_too_long_alone_follows_the_section() -> None:
    chats = [chat("c", None, [("short", "yes"), ("long", "x" * 200), ("short", "no")])]
    encoder, report = ENCODERS["chatml"], PartReport("", 0, "s")
    kept = list(Splitter(encoder, section("chatml", 80)).split(chats, report))
    assert [pair for c in kept for pair in pairs_of(c)] == pairs_of(chats[0])
    assert report.changed["exchange_too_long_kept"] == 1
    report = PartReport("", 0, "s")
    assert [c.id for c in Splitter(encoder, section("chatml", 80, "drop")).split(chats, report)] == ["c#0", "c#2"]
    assert report.dropped == [["c#1", "exchange_too_long", "225 tokens alone; split.max_length is 80"]]
    with pytest.raises(DataError, match=r"^c#1: 225 tokens alone; split\.max_length is 80; raise it, or set split\.overflow"):
        list(Splitter(encoder, section("chatml", 80, "error")).split(chats, PartReport("", 0, "s")))


def test_roles_out_of_order_are_listed_with_the_reason_of_the_reader() -> None:
    bad = Chat("c", (Message("assistant", "Hi"), Message("user", "Hello")))
    report = PartReport("", 0, "s")
    assert list(Splitter(ENCODERS["chatml"], section("chatml", 80)).split([bad], report)) == []
    assert [entry[:2] for entry in report.dropped] == [["c", "role_order"]]


def test_the_system_field_of_a_row_is_its_first_message_once() -> None:
    row = {"id": "a", "system": "Be brief.", "lang": "en", "conversations": [{"from": "human", "value": "Hi"}]}
    found = read_chat(row, "f:1")
    assert found.messages[0] == Message("system", "Be brief.")
    assert read_chat(found.to_row(), "f:1") == found
    assert found.to_row()["lang"] == "en"
