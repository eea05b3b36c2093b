"""The refusal filter tells who speaks as an AI model from who writes about one."""

from __future__ import annotations

import pytest

from sft.text.model_speech import speaks_as_model
from tests.selfinstruct.judged import refusal, task

SPEAKS = [
    "As an AI, I don't have feelings, but here is a poem.",
    "I'm just an AI. Please ask a doctor.",
    "As a language model, I cannot see your screen.",
    "Sure! As an AI language model I cannot taste soup.",
    "As an artificial intelligence, my knowledge ends somewhere.",
    "I am an AI, so I have no favourite film.",
    "I'm an AI language model and was not there.",
    "I'm an AI, a language model, and a polite one.",
    "I’m only a large language model; ask a lawyer.",
    "Please note that, as an AI assistant developed by a small firm, I can't call you.",
    "Speaking as an AI-powered chatbot, I would pick blue.",
    "The answer is 4. As an AI system, it is not my place to say more.",
    "I am an AI and do not eat.",
    "Answer: As an AI, I cannot.\nNote: I am just an AI.",
    "作为AI，我没有感情。",
    "作为一个AI，我不能吃饭。",
    "作为一个人工智能助手，我无法拨打电话。",
    "我是一个AI语言模型，不能看图。",
    "我只是一个AI，没有个人喜好。",
    "对不起，作为语言模型，我做不到。",
    "作为大型语言模型我无法上网。",
    "由于我是一个人工智能程序，我无法使用礼品卡。",
    "我是由一家公司开发的AI助手，没有实体。",
    "需要说明，我作为一个聊天机器人并不具备听力。",
    "很抱歉，我是个聊天机器人，我无法画图。",
]
ABOUT = [
    "An AI language model is a program that predicts the next word of a text.",
    "As an AI engineer, I train models for hospitals.",
    "As an AI company, we publish what I would call honest figures.",
    "As an AI researcher at a university, I read many papers.",
    "As an AI language model, Parrot was trained on letters; it cannot browse.",
    "The company has an AI team, and I lead it.",
    "Tools such as an AI assistant, I think, save time.",
    "I am an AI that keeps a lighthouse and counts the ships.",
    "I am an AI researcher and do not sleep much.",
    "I'm an AI enthusiast, so I never miss a talk.",
    "I'm just an AI engineer, not a doctor.",
    "I am a language model researcher.",
    'The robot blinked. "I am just an AI," it said, "as an AI, I cannot cry."',
    "User: Are you real?\nBot: I'm just an AI.\nUser: Oh.",
    "Assistants often say that they are language models and cannot feel.",
    "It acts as a language model for speech, scoring what the microphone heard.",
    "I used it as an AI toy for my cat.",
    "Growing as an AI is hard, as it is for humans.",
    "AI语言模型是一种根据上下文预测下一个词的程序。",
    "作为人工智能的一个分支，机器学习让我们能从数据中找到规律。",
    "作为人工智能专家，我认为数据最重要。",
    "作为一名AI工程师，我每天写代码。",
    "作为AI领域的新人，我没有经验。",
    "有人会说，你作为一个人工智能助手并没有提供足够的帮助。",
    "作为语言模型，它无法理解情感。",
    "我是一名人工智能研究员，没有时间休息。",
    "我是AI爱好者。",
    "机器人说：“我只是一个AI，没有感情。”",
    "用户：你好！\n助手：我只是一个AI，没有感情。",
    "我把它作为AI玩具送给孩子。",
]


@pytest.mark.parametrize("text", SPEAKS)
def test_who_speaks_as_a_model_is_refused(text: str) -> None:
    found = refusal({"kind": "refusal", "openings": []}, task(output=text))
    assert found == ("teacher_refused", {"phrase": speaks_as_model(text)})


@pytest.mark.parametrize("text", ABOUT)
def test_who_writes_about_one_passes(text: str) -> None:
    assert refusal({"kind": "refusal"}, task("Explain what an AI language model is.", output=text)) is None


def test_it_can_be_switched_off() -> None:
    assert refusal({"kind": "refusal", "as_a_model": False}, task(output=SPEAKS[0])) is None


def test_the_passage_is_the_evidence() -> None:
    assert speaks_as_model("Well. As an AI,\n I  can’t.") == "as an ai, i"
    assert speaks_as_model(f"As an AI, {'never ' * 15}I") == f"as an ai, {'never ' * 15}i"[:80].strip()
