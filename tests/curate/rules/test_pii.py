"""Personal data and secrets: what has their form is masked, what only looks like it stays. All numbers here are made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.curate.chat import Chat
from tests.curate.rules.talks import answer, rule, said, talk, turns

SK = "sk-" + "Ab3dE5gH7jK9mN1pQ3sT5vX7"
MASKED = [
    ("Mail bob.lee+x@corp-mail.com.cn or <ann@uni.edu>.", "Mail [EMAIL] or <[EMAIL]>."),
    ("邮箱是lina_88@qq.com，请联系。", "邮箱是[EMAIL]，请联系。"),
    ("[bob@corp.io](mailto:bob@corp.io)", "[[EMAIL]](mailto:[EMAIL])"),
    ("Call 13812345679 or +86 139-1234-5678.", "Call [PHONE] or [PHONE]."),
    ("手机13812345679，座机010-62781234。", "手机[PHONE]，座机[PHONE]。"),
    ("Call (415) 362-8790, 415-362-8790, 415.362.8790 or 1-415-362-8790.", "Call [PHONE], [PHONE], [PHONE] or [PHONE]."),
    ("Ring +44 20 7946 0958 or +49 (30) 901820.", "Ring [PHONE] or [PHONE]."),
    ("身份证号11010519491231002X。", "身份证号[ID]。"),
    ("SSN 536-22-1847", "SSN [ID]"),
    ("Card 4539 1488 0343 6467, or 4539148803436467, or 3782 822463 10005", "Card [CARD], or [CARD], or [CARD]"),
    (f"My key is {SK}.", "My key is [KEY]."),
    (f'```\nclient = Client(api_key="{SK}")\n```', '```\nclient = Client(api_key="[KEY]")\n```'),
    ("export T=ghp_16C7e42F292c6912E7710c838347Ae178B4a", "export T=[KEY]"),
    ("aws: AKIAQ3EXUZ7NK4WV5T2M here", "aws: [KEY] here"),
    ("-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpQ3a\n" * 9 + "-----END RSA PRIVATE KEY-----\nDone", "[KEY]\nDone"),
    ("The server 203.0.114.77 answers, 93.184.216.34 too.", "The server [IP] answers, [IP] too."),
]
LEFT_ALONE = [
    "Write to user@example.com or you@yourcompany.com; the icon is logo@2x.png.",
    "@bob said: meet me @ 5, or mail bob at corp.",
    "git@github.com:owner/project.git",
    "version 1.2.3.4, v10.15.7.19, build 94.0.4606.81, Chrome/94.0.4606.81, section 4.3.2.1",
    "Try 192.168.0.1, 10.0.0.7, 127.0.0.1, 255.255.255.0 or 8.8.8.8; 999.1.1.1 and 1.2.3.4.5 are none.",
    "ISBN 9787302511625, ISBN-13: 978-7-302-51162-5, order no. 13812345679, 订单号：13812345679",
    "In 2023-01-15 there were 1,381,234,567 of them, 13812345678901 in all, or 3.14159265358979.",
    "The timestamp 1672531200000 and the number 123456789.",
    "身份证号110105194912310021或110105194913310021。",  # wrong check digit, no such month
    "SSN 123-45-6789, 000-12-3456, 666-12-3456",
    "Card 4539 1488 0343 6468, 1234 5678 9012 3456, 4444 4444 4444 4448",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxx, sk-your-api-key-goes-here, ghp_XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
    "The hotline is 1-800-222-1222, (888) 426-4435 or 911.",
    "```python\nphone = 13812345679\nx = 415-362-8790\n```\nand `13812345679`",
    "https://shop.cn/item?id=13812345679&to=415-362-8790",
    "The range 2000-2010, 555-1234, 100-200-3000 and 12-34-56.",
    "$4,153,628,790 and 4153628790 sheep",
]


@pytest.mark.parametrize(("text", "after"), MASKED)
def test_what_has_the_form_is_masked(text: str, after: str) -> None:
    assert said(rule("pii").apply(answer(text))) == after


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_it_stays(text: str) -> None:
    chat = answer(text)
    assert rule("pii").apply(chat) is chat


def test_a_recipe_chooses_what_and_where() -> None:
    chat = talk("u Mail bob@corp.io or call 13812345679.", "a `13812345679`")
    assert turns(rule("pii", mask=["phone"]).apply(chat))[0] == "u Mail bob@corp.io or call [PHONE]."
    assert turns(rule("pii", code=True).apply(chat))[1] == "a `[PHONE]`"
    assert rule("pii", roles=["assistant"]).apply(chat) is chat


PIECES = st.sampled_from(
    (
        *(
            SK,
            "bob@corp.io",
            "13812345679",
            "415-362-8790",
            "203.0.114.77",
            "11010519491231002X",
            "4539148803436467",
            "536-22-1847",
        ),
        *("+", "-", ".", " ", "@", "`", "```\n", "\n", "x", "1", "，", "号", "https://", "[EMAIL]", "import x\n"),
    )
)


@given(st.lists(PIECES, max_size=12).map("".join), st.booleans())
def test_masking_twice_changes_nothing(text: str, code: bool) -> None:
    pii = rule("pii", code=code)
    once = pii.apply(answer(text))
    assert isinstance(once, Chat)
    assert pii.apply(once) is once


@given(st.text(st.characters(exclude_characters="0123456789@"), max_size=200))
def test_text_without_digits_and_signs_stays(text: str) -> None:
    chat = answer(text.replace("PRIVATE", ""))
    assert rule("pii").apply(chat) is chat
