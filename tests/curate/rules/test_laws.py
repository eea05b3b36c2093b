"""What holds for every rule: pure, idempotent alone and in a chain, the same after a trip through JSON; legal roles stay legal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.curate.chat import Chat, Message, Rule
from sft.curate.rules import RuleBase, RuleSection
from sft.curate.rules.base import refuse
from sft.data.conversation import Drop
from sft.data.formats import FORMATS
from tests.curate.rules.talks import rule

FEW = int(os.environ.get("VICUGNA_RULE_EXAMPLES", "20"))
"""Examples per rule; more of them on demand."""
SECTIONS: list[dict[str, Any]] = [
    {"kind": "role_repair"},
    {"kind": "role_repair", "doubled": "keep_last"},
    {"kind": "role_repair", "doubled": "drop_chat"},
    {"kind": "empty_turn"},
    {"kind": "min_length"},
    {"kind": "single_round"},
    {"kind": "notice"},
    {"kind": "refusal"},
    {"kind": "vendor_names"},
    {"kind": "vendor_names", "action": "drop_round"},
    {"kind": "vendor_names", "action": "replace", "name": "Ada", "organisation": "the Lab"},
    {"kind": "vendor_names", "action": "replace", "scope": "itself", "name": "小助", "organisation": "实验室"},
    {"kind": "repetition", "action": "drop_round"},
    {"kind": "broken_list"},
    {"kind": "broken_list", "action": "drop_round", "items": 2},
    {"kind": "language", "keep": ["en", "zh"]},
    {"kind": "model", "keep": ["gpt*"]},
    {"kind": "field", "field": "plugins", "present": "drop"},
    {"kind": "pii"},
    {"kind": "contamination", "files": ["EVALUATION"], "action": "drop_round"},
]
PIECES = [
    *(
        "Hi",
        "What is the tide?",
        "The moon pulls at the sea.",
        "你好",
        "潮水为什么会涨？",
        "因为月球的引力。",
        " ",
        "\n",
        "\n\n",
        ". ",
        ", ",
        "，",
    ),
    *(
        "I am ChatGPT, made by OpenAI.",
        "Claude",
        "GPT",
        "-4",
        "Chat",
        "文心",
        "一言",
        "Google",
        "import openai\n",
        "`ChatGPT`",
        "```\n",
        "我是",
    ),
    *("I'm sorry, but I can't assist with that.", "As an AI language model, I cannot browse.", "对不起，我无法回答这个问题。"),
    *("Too many requests in 1 hour. Try again later.", "network error", "▌", "\u200b", "\ue000", "\0"),
    *("1. one\n", "2. two\n", "# Head\n", "- dot\n", "1", "11111111111", "a" * 40, "go on " * 30),
    *("bob@corp.io", "13812345679", "203.0.114.77", "sk-Ab3dE5gH7jK9mN1pQ3sT5vX7", "https://", "@"),
    "Describe a quiet harbour town at dawn.",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
CHATS = st.builds(
    lambda turns, model, extra: Chat("t", tuple(Message(role, text) for role, text in turns), model, extra),
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "user", "assistant", "system"]), TEXTS), max_size=8),
    st.sampled_from([None, "gpt-4", "other"]),
    st.sampled_from([{}, {"plugins": ["x"]}]),
)
LEGAL = st.builds(
    lambda pairs: Chat(
        "t", tuple(Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True))
    ),
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("rules") / "evaluation.jsonl"
    path.write_text(json.dumps({"question": "Describe a quiet harbour town at dawn."}) + "\n", encoding="utf-8")
    return str(path)


def made(section: dict[str, Any], evaluation: str) -> RuleBase:
    return rule(**({**section, "files": [evaluation]} if "files" in section else section))


def cleaned(rules: list[RuleBase], chat: Chat) -> Chat | Drop:
    """As the pipeline does it: all rules in order, until none changes anything."""
    for _ in range(8):
        before = chat
        for one in rules:
            found = one.apply(chat)
            if isinstance(found, Drop):
                return found
            chat = found
        if chat is before:
            return chat
    raise AssertionError("the rules undo each other")


def test_every_kind_is_here() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(RuleSection)[0])}
    assert {section["kind"] for section in SECTIONS} == kinds - {"html"}  # which has its own tests


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: "-".join(str(v) for v in s.values() if isinstance(v, str)))
@settings(max_examples=FEW)
@given(chat=CHATS)
def test_a_rule_applied_to_its_own_result_does_nothing(section: dict[str, Any], evaluation: str, chat: Chat) -> None:
    one = made(section, evaluation)
    before = [(message.role, message.text) for message in chat.messages]
    found = one.apply(chat)
    assert [(message.role, message.text) for message in chat.messages] == before
    assert one.apply(chat) == found
    if isinstance(found, Chat):
        assert found is chat or found != chat
        assert one.apply(found) is found
        assert (found.id, found.model, found.extra) == (chat.id, chat.model, chat.extra)
    else:
        assert found.id == "t"
        assert found.detail


@settings(max_examples=3 * FEW)
@given(st.lists(st.sampled_from(SECTIONS), min_size=1, max_size=6), CHATS)
def test_a_chain_settles_and_then_changes_nothing(evaluation: str, sections: list[dict[str, Any]], chat: Chat) -> None:
    rules = [made(section, evaluation) for section in sections]
    found = cleaned(rules, chat)
    if isinstance(found, Chat):
        assert cleaned(rules, found) is found


@settings(max_examples=3 * FEW)
@given(st.lists(st.sampled_from(SECTIONS), max_size=6), CHATS)
def test_what_a_chain_with_repair_lets_pass_can_be_trained_on(
    evaluation: str, sections: list[dict[str, Any]], chat: Chat
) -> None:
    ends: list[dict[str, Any]] = [{"kind": "empty_turn"}, {"kind": "role_repair"}]
    found = cleaned([made(section, evaluation) for section in [*sections, *ends]], chat)
    if isinstance(found, Chat):
        FORMATS["sharegpt"](found.to_row(), {})


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: "-".join(str(v) for v in s.values() if isinstance(v, str)))
@settings(max_examples=FEW)
@given(chat=LEGAL)
def test_legal_roles_stay_legal(section: dict[str, Any], evaluation: str, chat: Chat) -> None:
    found = made(section, evaluation).apply(chat)
    if isinstance(found, Chat):
        roles = [message.role for message in found.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_its_own_plain_data(section: dict[str, Any]) -> None:
    one = rule(**section)
    assert isinstance(one, RuleBase)
    as_rule: Rule = one  # type: ignore[assignment]  # every member of the union has a kind; the base names none
    assert as_rule.kind == section["kind"]
    assert rule(**json.loads(one.model_dump_json())) == one
    assert hash(one) == hash(rule(**section))


def test_rounds_are_taken_out_in_one_pass() -> None:
    """Each message is judged once; after a round is taken out, the one that moved up is judged against the message before it."""
    texts = ["q1", "good", "q2", "bad", "q3", "good", "bad", "q4", "bad", "q5", "good"]
    chat = Chat("c", tuple(Message("user" if text[0] == "q" else "assistant", text) for text in texts))
    judged: list[tuple[str, str]] = []

    def judge(chat: Chat, at: int) -> tuple[str, str] | None:
        judged.append((chat.messages[at - 1].text if at else "", chat.messages[at].text))
        return ("bad", "it is") if chat.messages[at].text == "bad" else None

    left = refuse(chat, "drop_round", judge)
    assert isinstance(left, Chat)
    assert [message.text for message in left.messages] == ["q1", "good", "q5", "good"]
    assert [text for _, text in judged] == texts
    assert [before for before, text in judged if text[0] == "q"] == ["", "good", "good", "good", "good"]
