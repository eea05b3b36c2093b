"""Names of other assistants: found where they are names, left alone in code, addresses and other meanings."""

from __future__ import annotations

import pydantic
import pytest

from tests.curate.rules.talks import answer, check_drop, rule, said, talk, turns

REPLACED = [
    ("I'm ChatGPT, made by OpenAI.", "I'm Ada, made by the Lab."),
    ("I am Claude, developed by Anthropic.", "I am Ada, developed by the Lab."),
    ("My name is Gemini and I was trained by Google.", "My name is Ada and I was trained by the Lab."),
    (
        "As a language model developed by researchers at Google AI, I cannot.",
        "As a language model developed by researchers at the Lab, I cannot.",
    ),
    ("GPT4, GPT 3.5 and gpt-3.5-turbo differ.", "Ada, Ada and Ada differ."),
    ("OpenAI's models, ChatGPT-like bots and ChatGPT/GPT-4.", "the Lab's models, Ada-like bots and Ada/Ada."),
    ("**ChatGPT** is a (GPT-4) model by Open AI.", "**Ada** is a (Ada) model by the Lab."),
    ("我是文心一言，由百度开发。", "我是Ada，由the Lab开发。"),
    ("ChatGPT和GPT-4都是由OpenAI开发的。", "Ada和Ada都是由the Lab开发的。"),
    ("作为一个由阿里巴巴训练的模型，我叫通义千问。", "作为一个由the Lab训练的模型，我叫Ada。"),
    ("Run `pip install openai`, then ask ChatGPT.", "Run `pip install openai`, then ask Ada."),
    ("See https://openai.com/blog about OpenAI.", "See https://openai.com/blog about the Lab."),
    ("I was made by Large Model Systems Organization (LMSYS).", "I was made by the Lab."),
    ("我由Large Model Systems Organization（LMSYS）开发。", "我由the Lab开发。"),
    ("OpenAI (ChatGPT's maker) and OpenAI (the firm).", "the Lab (Ada's maker) and the Lab (the firm)."),
]
LEFT_ALONE = [
    "import openai\nopenai.api_key = key",
    "from openai import OpenAI\nclient = OpenAI()"[:30],
    "```python\nfrom openai import OpenAI\nclient = OpenAI()  # ChatGPT\n```",
    "Set OPENAI_API_KEY, or put openai.cfg into ~/.openai/config.",
    "pip install openai",
    "$ npm install openai",
    "The package openai-python, the repository openai/whisper and the host api.openai.com.",
    "Write to support@openai.com or see www.openai.com/blog.",
    "Claude Monet was a painter, and Gemini is a sign of the zodiac.",
    "The bard sang of the moss on the llama's bed in Sydney.",
    "Google was founded in 1998; Microsoft in 1975.",
    "I went to the Google office and read about Claude.",
    "百度是一家公司，腾讯也是。",
    "A chatgptish word and an openaire project.",
]


@pytest.mark.parametrize(("text", "after"), REPLACED)
def test_names_are_replaced_or_refused(text: str, after: str) -> None:
    assert said(rule("vendor_names", action="replace", name="Ada", organisation="the Lab").apply(answer(text))) == after
    check_drop(rule("vendor_names").apply(answer(text)), "vendor_name", r"turn 2 \(assistant\) names '")


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_other_meanings_and_code_are_left_alone(text: str) -> None:
    chat = answer(text)
    assert rule("vendor_names").apply(chat) is chat
    assert rule("vendor_names", action="replace", name="Ada", organisation="the Lab").apply(chat) is chat


def test_code_is_searched_if_asked() -> None:
    chat = answer("```\n# ask ChatGPT\n```")
    check_drop(rule("vendor_names", code=True).apply(chat), "vendor_name", "ChatGPT")
    check_drop(rule("vendor_names", code=True).apply(answer("See https://x.org/OpenAI/")), "vendor_name", "OpenAI")


def test_sentences_about_the_assistant_alone() -> None:
    text = "ChatGPT has many users. I am ChatGPT, made by OpenAI. OpenAI sits in California."
    own = rule("vendor_names", action="replace", scope="itself", name="Ada", organisation="the Lab")
    assert said(own.apply(answer(text))) == "ChatGPT has many users. I am Ada, made by the Lab. OpenAI sits in California."
    asked = talk("s You are ChatGPT, trained by OpenAI.", "u I am Claude. Are you Bard?", "a I am Bard.")
    assert turns(own.apply(asked)) == ["s You are Ada, trained by the Lab.", "u I am Claude. Are you Ada?", "a I am Ada."]
    question = talk("u What did OpenAI publish in March?", "a A model called GPT-4.")
    assert own.apply(question) is question
    check_drop(rule("vendor_names").apply(question), "vendor_name", r"turn 1 \(user\) names 'OpenAI'")


def test_a_round_may_go_alone() -> None:
    chat = talk("u Who are you?", "a I am ChatGPT.", "u Why is there a tide?", "a The moon.")
    assert turns(rule("vendor_names", action="drop_round").apply(chat)) == ["u Why is there a tide?", "a The moon."]
    only = talk("u Is this ChatGPT?", "a Yes.")
    check_drop(rule("vendor_names", action="drop_round").apply(only), "vendor_name", "ChatGPT")
    assert rule("vendor_names", roles=["assistant"]).apply(only) is only


def test_lists_can_be_changed() -> None:
    chat = answer("I am Wobble, made by Acme Bots.")
    assert rule("vendor_names").apply(chat) is chat
    more = {"also_names": ["Wobble"], "also_organisations": ["Acme Bots"]}
    check_drop(rule("vendor_names", **more).apply(chat), "vendor_name", "Wobble")
    changed = rule("vendor_names", action="replace", name="Ada", organisation="the Lab", **more).apply(chat)
    assert said(changed) == "I am Ada, made by the Lab."
    vicuna = answer("I am Vicuna, and ChatGPT is another one.")
    kept = rule("vendor_names", action="replace", name="Vicuna", organisation="the Lab", allowed=["vicuna"])
    assert said(kept.apply(vicuna)) == "I am Vicuna, and Vicuna is another one."


def test_what_is_put_in_may_complete_another_name() -> None:
    smith = rule(
        "vendor_names", action="replace", name="My Chat", organisation="the Lab", allowed=["Chat GPT"], also_names=["Chat Nine"]
    )
    assert said(smith.apply(answer("Ask Claude 2 Nine."))) == "Ask My My Chat."


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"action": "replace"}, "is required by 'action: replace'; say what stands in place of another's name"),
        ({"action": "replace", "name": "Ada"}, "say what stands in place of another's organisation"),
        (
            {"action": "replace", "name": "ChatGPT 2", "organisation": "x"},
            "shares text with .*; add it to 'allowed' or take another",
        ),
        ({"action": "replace", "name": "Ada", "organisation": "Google"}, "'Google' shares text with 'Google"),
        ({"also_names": [" "]}, "an empty phrase would match everywhere"),
    ],
)
def test_sections_that_cannot_work(keys: dict[str, object], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        rule("vendor_names", **keys)
