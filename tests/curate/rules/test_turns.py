"""Roles in order, turns that say something, conversations that are long enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.curate.chat import ROLES, Chat, Message
from sft.data.conversation import Drop
from sft.data.formats import FORMATS
from tests.curate.rules.talks import check_drop, rule, talk, turns

NOT_TEXT = "\0\ud800"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["u Hi", "a Hello."], None),
        (["s Be brief.", "u Hi", "a Hello.", "u Bye", "a See you."], None),
        (["a Welcome!", "u Hi", "a Hello."], ["u Hi", "a Hello."]),
        (["a One", "a Two", "u Hi", "a Hello.", "u Still there?"], ["u Hi", "a Hello."]),
        (["u Hi", "u Anyone?", "a Hello."], ["u Hi\n\nAnyone?", "a Hello."]),
        (["u Hi", "a Hel", "a lo.", "a Sorry.", "u Bye", "a Bye."], ["u Hi", "a Hel\n\nlo.\n\nSorry.", "u Bye", "a Bye."]),
        (["a Welcome!", "s Be brief.", "u Hi", "a Hello."], ["s Be brief.", "u Hi", "a Hello."]),
        (["s Be brief.", "s Be kind.", "u Hi", "a Hello."], ["s Be brief.\n\nBe kind.", "u Hi", "a Hello."]),
        (["u Hi", "s Be brief.", "a Hello."], ["s Be brief.", "u Hi", "a Hello."]),
        (["s A", "u Hi", "a Hello.", "s B", "u Bye", "a Bye."], ["s A\n\nB", "u Hi", "a Hello.", "u Bye", "a Bye."]),
        (["u Hi", "s Be brief.", "u Anyone?", "a Hello."], ["s Be brief.", "u Hi\n\nAnyone?", "a Hello."]),
        (["u Hi", "a Hello.", "s Be brief."], ["u Hi", "a Hello."]),
        (["u 你好", "u 在吗", "a 在的。"], ["u 你好\n\n在吗", "a 在的。"]),
    ],
)
def test_roles_are_repaired(before: list[str], after: list[str] | None) -> None:
    chat = talk(*before, lang="en", model="m")
    found = rule("role_repair").apply(chat)
    if after is None:
        assert found is chat
    else:
        assert turns(found) == after
        assert isinstance(found, Chat)
        assert (found.id, found.model, found.extra) == (chat.id, chat.model, chat.extra)


@pytest.mark.parametrize(
    "before", [[], ["u Hi"], ["a Hello."], ["s Be brief."], ["a Hello.", "u Hi"], ["s A", "a B", "s C", "u D"]]
)
@pytest.mark.parametrize("doubled", ["merge", "keep_last", "drop_chat"])
def test_nothing_left_is_a_drop(before: list[str], doubled: str) -> None:
    check_drop(rule("role_repair", doubled=doubled).apply(talk(*before)), "no_exchange", "no question with an answer is left")


def test_a_doubled_turn_may_be_replaced_or_refused() -> None:
    doubled = talk("u Hi", "u Anyone?", "a Hel", "a Hello.")
    assert turns(rule("role_repair", doubled="keep_last").apply(doubled)) == ["u Anyone?", "a Hello."]
    assert turns(rule("role_repair", separator=" ").apply(doubled)) == ["u Hi Anyone?", "a Hel Hello."]
    check_drop(rule("role_repair", doubled="drop_chat").apply(doubled), "role_order", r"twice in a row; 'doubled: merge' would")
    late = talk("u Hi", "a Hello.", "s Be brief.", "u Bye", "a Bye.")
    check_drop(rule("role_repair", doubled="drop_chat").apply(late), "role_order", "system message stands in the middle")
    ends = talk("a Welcome!", "u Hi", "a Hello.", "u Bye")
    assert turns(rule("role_repair", doubled="drop_chat").apply(ends)) == ["u Hi", "a Hello."]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
CHATS = st.builds(
    lambda pairs: Chat("t", tuple(Message(role, text) for role, text in pairs)),
    st.lists(st.tuples(st.sampled_from(sorted(set(ROLES.values()))), TEXTS), max_size=9),
)


@given(CHATS, st.sampled_from(["merge", "keep_last", "drop_chat"]))
def test_what_is_repaired_can_be_trained_on(chat: Chat, doubled: str) -> None:
    found = rule("role_repair", doubled=doubled).apply(chat)
    if isinstance(found, Chat):
        parsed = FORMATS["sharegpt"](found.to_row(), {})
        assert [(t.role, t.content) for t in parsed.conversations[0]] == [(m.role, m.text) for m in found.messages]
    else:
        assert found.reason == ("role_order" if doubled == "drop_chat" and found.reason == "role_order" else "no_exchange")


@given(CHATS)
def test_merging_loses_no_text_between_the_first_question_and_the_last_answer(chat: Chat) -> None:
    found = rule("role_repair", separator="").apply(chat)
    roles = [message.role for message in chat.messages]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        assert isinstance(found, Drop)
        return
    assert isinstance(found, Chat)
    first, last = roles.index("user"), len(roles) - 1 - roles[::-1].index("assistant")
    for role in ("user", "assistant"):
        said = [m.text for m in chat.messages[first : last + 1] if m.role == role]
        assert "".join(m.text for m in found.messages if m.role == role) == "".join(said)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["u Hi", "a Hello."], None),
        (["u Hi", "a \u200f\u0645\u0631\u062d\u0628\u0627"], None),  # a right-to-left mark at the start is no damage
        (["u Hi", "a \ufeffHello."], None),
        (["u Hi", "a 🎉"], None),
        (["u Hi", "a \U0001fae8"], None),  # an emoji younger than the tables of some interpreters
        (["u Hi", "a Hello.", "u More", "a  \n\t"], ["u Hi", "a Hello."]),
        (["u Hi", "a Hello.", "u \u200b\u200b", "a What?"], ["u Hi", "a Hello."]),
        (["u Hi", "a Hello.", "u More", "a \x07beep", "u Bye", "a Bye."], ["u Hi", "a Hello."]),
        (["u Hi", "a Hello.", "u More", "a \ue000 icon"], ["u Hi", "a Hello."]),
        (["u Hi", "a Hello.", "u More", "a half \ud83d of it"], ["u Hi", "a Hello."]),
        (["u Hi", "a Hello.", "u More", "a nul\0"], ["u Hi", "a Hello."]),
        (["s  ", "u Hi", "a Hello."], ["u Hi", "a Hello."]),
    ],
)
def test_empty_turns_end_a_conversation(before: list[str], after: list[str] | None) -> None:
    chat = talk(*before)
    found = rule("empty_turn").apply(chat)
    if after is None:
        assert found is chat
    else:
        assert turns(found) == after


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", r"turn 2 \(assistant\) is empty"),
        ("\u200b \u200b", "shows nothing but white space"),
        ("\ue000x", r"begins with U\+E000"),
        ("a\0", r"holds U\+0000"),
    ],
)
def test_the_first_answer_takes_the_conversation_with_it(text: str, detail: str) -> None:
    for action in ("cut", "drop_chat"):
        check_drop(rule("empty_turn", action=action).apply(talk("u Hi", f"a {text}")), "empty_turn", detail)
    later = talk("u Hi", "a Hello.", "u More", f"a {text}")
    check_drop(rule("empty_turn", action="drop_chat").apply(later), "empty_turn", detail.replace("turn 2", "turn 4"))


@pytest.mark.parametrize(
    ("keys", "before", "reason", "detail"),
    [
        ({}, ["u Hello there", "a How are you?"], None, ""),
        ({}, ["u Hi", "a Hi."], "too_short", "5 characters in all turns; the least is 16"),
        ({}, ["u  H  i  ", "a x" + " " * 40], "too_short", "3 characters"),
        ({}, ["u 你好", "a 你好！有什么事？"], None, ""),  # eight characters of two, and two marks
        ({}, ["u 你好", "a 你好"], "too_short", "8 characters"),
        ({}, ["s Be brief, be kind and be good.", "u Hi"], "too_few_turns", "1 turns; the least is 2"),
        ({"turns": 4}, ["u Hello there", "a How are you?"], "too_few_turns", "2 turns; the least is 4"),
        ({"characters": 0, "turns": 0}, [], None, ""),
    ],
)
def test_least_length(keys: dict[str, int], before: list[str], reason: str | None, detail: str) -> None:
    chat = talk(*before)
    found = rule("min_length", **keys).apply(chat)
    if reason is None:
        assert found is chat
    else:
        check_drop(found, reason, detail)


def test_the_first_round_alone() -> None:
    single = rule("single_round")
    assert turns(single.apply(talk("s Be brief.", "u Hi", "a Hello.", "u Bye", "a Bye."))) == [
        "s Be brief.",
        "u Hi",
        "a Hello.",
    ]
    assert turns(single.apply(talk("a Welcome!", "u Hi", "a Hello.", "a More."))) == ["u Hi", "a Hello.", "a More."]
    one = talk("u Hi", "a Hello.")
    assert single.apply(one) is one
    for unanswered in (talk("u Hi", "u Anyone?", "a Yes."), talk("a Hello."), talk()):
        check_drop(single.apply(unanswered), "no_exchange", "role_repair before this rule may mend it")
