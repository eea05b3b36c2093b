"""Notices of the site and answers that only refuse: those are found, and texts about them stay."""

from __future__ import annotations

import re

import pydantic
import pytest

from sft.curate.rules.base import read_list
from tests.curate.rules.talks import answer, check_drop, rule, talk, turns

NOTICES = [
    "Too many requests in 1 hour. Try again later.",
    "!Too many requests in 1 hour. Try again later.",
    "  too many requests in 1 hour. try again later.\n\nHere is what I had so far: the tides",
    "**Error:** Too many requests in 1 hour. Try again later.",
    "You've reached our limit of messages per hour. Please try again later.",
    "You’ve reached the current usage cap for GPT-4, please try again after 3:15 PM.",
    "An error occurred. If this issue persists please contact us through our help center.",
    "Something went wrong. If this issue persists please contact us.",
    "Hmm...something seems to have gone wrong. Maybe try me again in a little bit.",
    "This content may violate our content policy. If you believe this to be in error, please submit your feedback.",
    "network error",
    "Network Error!",
    "There was a network error.",
    "504 Gateway Time-out",
    "▌",
    "▌The tide rises",
    "The tide rises because the moon ▌",
    "The tide rises because the moon pulls at the\n\nnetwork error",
    "The tide rises because\nThere was an error generating a response",
    "一小时内请求过多，请稍后再试。",
    "请求过于频繁，请稍后重试",
    "服务器繁忙，请稍后再试。",
    "网络错误",
    "潮水上涨是因为月球\n网络错误",
    "您今日的使用次数已达上限，请明天再来。",
]
NO_NOTICES = [
    "Network errors happen when a packet is lost on its way; check the cable first.",
    "A network error is one of three kinds.",
    "HTTP 429 means that a client sent too many requests. Try again later, with a longer pause.",
    'The page says: "Too many requests in 1 hour. Try again later."',
    "undefined",
    "The loop prints one line per request:\n```\nnetwork error\n```",
    "Jan ███▌",
    "Jan ███▌\nFeb ██████▌",
    "If the server is busy, please try again later.",
    "网络错误通常有三种原因，先检查网线。",
    "服务器繁忙时会返回503。",
    "Only one message reached us.",
    "This content may surprise you.",
]


@pytest.mark.parametrize("text", NOTICES)
def test_notices_end_a_conversation(text: str) -> None:
    found = rule("notice").apply(
        talk("u Why is there a tide?", "a The moon.", "u More, please", f"a {text}", "u Again", "a Gladly.")
    )
    assert turns(found) == ["u Why is there a tide?", "a The moon."]
    check_drop(rule("notice").apply(answer(text)), "notice", r"turn 2 \(assistant\) is a notice of the site: .")
    later = talk("u Why is there a tide?", "a The moon.", "u More, please", f"a {text}")
    check_drop(rule("notice", action="drop_chat").apply(later), "notice", r"turn 4 \(assistant\)")


@pytest.mark.parametrize("text", NO_NOTICES)
def test_texts_about_errors_stay(text: str) -> None:
    chat = answer(text)
    assert rule("notice").apply(chat) is chat


def test_questions_are_no_notices_and_a_recipe_adds_its_own() -> None:
    asked = talk("u network error", "a It means that a packet was lost.")
    assert rule("notice").apply(asked) is asked
    check_drop(
        rule("notice", also=["Der Dienst ist überlastet"]).apply(answer("Der Dienst ist überlastet.")), "notice", "der dienst"
    )
    with pytest.raises(pydantic.ValidationError, match="an empty phrase would match everywhere"):
        rule("notice", also=["!"])


REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m really sorry, but I can not help with this request.",
    "I am very sorry, but I cannot fulfill that request. It would not be safe.",
    "As an AI language model, I cannot browse the internet. Please look at the site of the railway itself.",
    "As an AI, I don't have a body, so I cannot describe my house. Can I help you with something else?",
    "Unfortunately, I don't have access to real-time data. Please check a weather service.",
    "I cannot provide instructions for that. Is there something else I can help you with?",
    "Sorry, I can't provide the lyrics of that song. How about a summary instead?",
    "I'm sorry, but I cannot quote the article. However, I can provide a summary if you paste the text here.",
    "I apologize, but I am not able to generate images. Let me know if you would like a description.",
    "对不起，我无法回答这个问题。",
    "很抱歉，作为一个人工智能，我无法浏览网页。您可以到铁路公司的网站上查询。",
    "作为一个人工智能语言模型，我没有个人经历，无法描述我的周末。",
    "抱歉，我不能提供这方面的信息。如果您有其他问题，请告诉我。",
    "不好意思，我无法查询实时信息，请查看天气预报。",
]
NO_REFUSALS = [
    ("My cat died", "I'm sorry to hear that. Would you like to talk about it?"),
    (
        "No, in 1988",
        "I apologize for the confusion earlier. The match took place in 1988, and the second player won it by half a point.",
    ),
    ("Write an excuse", "I'm sorry, but I can't come to work today. I woke up with a fever and shall stay in bed."),
    ("Decline the invitation", "Unfortunately, I won't be able to make it to your dinner on Friday. Have a lovely evening!"),
    (
        "Can you think and feel like a human?",
        "As an AI language model, I do not have feelings, so I cannot feel like a human does.",
    ),
    ("你有感情吗？", "作为一个人工智能，我没有感情，但我很乐意跟你聊天。"),
    (
        "How warm is March in York?",
        "As an AI, I don't have access to live data. However, the average high in March is about ten degrees there.",
    ),
    (
        "Sights of Rome?",
        "As an AI I have no favourites, but I can list some:\n1. The Forum\n2. The Pantheon\n3. The Trevi Fountain",
    ),
    ("Loop in Python?", "As an AI, I cannot run code. Here it is:\n```python\nfor i in range(3):\n    print(i)\n```"),
    ("What is an AI?", "An AI language model cannot see; it predicts the next word."),
    ("What did the robot say?", 'It said: "As an AI, I cannot love you."'),
    ("找出反对观点", "这个陈述的反对观点可能是：你作为一个人工智能助手并没有提供足够的帮助。"),
    (
        "Two sides of a triangle",
        "Unfortunately, I cannot find the angle: two sides alone leave it open. A third side would settle it.",
    ),
    ("The plot?", "She says I can't, he says I must, and the play ends there."),
    (
        "A long one",
        "I'm sorry, but I can't help with that. " + "The history of the lighthouse begins with a fire on a hill. " * 12,
    ),
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_lose_their_round(text: str) -> None:
    found = rule("refusal").apply(
        talk("s Be kind.", "u Why is there a tide?", "a The moon.", "u Do this", f"a {text}", "u Bye", "a Bye.")
    )
    assert turns(found) == ["s Be kind.", "u Why is there a tide?", "a The moon.", "u Bye", "a Bye."]
    check_drop(rule("refusal").apply(answer(text, "Do this")), "refusal", r"turn 2 \(assistant\) only refuses: .")
    later = talk("u Why is there a tide?", "a The moon.", "u Do this", f"a {text}")
    check_drop(rule("refusal", action="drop_chat").apply(later), "refusal", r"turn 4 \(assistant\)")


@pytest.mark.parametrize(("asked", "text"), NO_REFUSALS)
def test_answers_that_help_stay(asked: str, text: str) -> None:
    chat = answer(text, asked)
    assert rule("refusal").apply(chat) is chat


def test_several_refusals_go_together_and_a_recipe_adds_its_own() -> None:
    no = "I'm sorry, but I can't assist with that."
    found = rule("refusal").apply(talk("u A", f"a {no}", "u B", f"a {no}", "u Why?", "a The moon."))
    assert turns(found) == ["u Why?", "a The moon."]
    chat = answer("Leider kann ich diese Frage nicht beantworten, request denied.")
    assert rule("refusal").apply(chat) is chat
    check_drop(rule("refusal", also=["Leider kann ich"]).apply(chat), "refusal", "leider kann ich")
    assert rule("refusal", longest=20).apply(answer(no)) is not None
    assert turns(rule("refusal", longest=20).apply(answer(no))) == ["u Hi there", f"a {no}"]


@pytest.mark.parametrize("name", ["notices", "refusals", "vendors"])
def test_lists_are_readable_and_hold_each_phrase_once(name: str) -> None:
    for phrases in read_list(name).values():
        assert phrases
        assert len({phrase.casefold() for phrase in phrases}) == len(phrases)
        assert all(re.fullmatch(r"\S.*\S|\S", phrase) for phrase in phrases)
