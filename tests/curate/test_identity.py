"""Pairs about who the model is: enough of them, filled in, never about the model itself as another one."""

from __future__ import annotations

import pytest

from sft.curate.identity import LANGUAGES, identity_chats, pairs
from sft.data.formats import FORMATS
from sft.errors import InputError
from sft.text.tokens import is_cjk


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_enough_pairs(language: str) -> None:
    questions = [question for _, asked, _ in pairs(language) for question in asked]
    assert len(questions) >= 60
    assert len({question.casefold() for question in questions}) == len(questions)
    assert all(len(answers) >= 2 for _, _, answers in pairs(language))
    assert all(is_cjk(text) == (language == "zh") for _, asked, answers in pairs(language) for text in (*asked, *answers))
    assert all("{name}" in text or "{organisation}" in text for _, _, answers in pairs(language) for text in answers)
    assert not any("{" in question for question in questions)


def test_every_question_meets_every_answer_in_a_row_that_can_be_trained_on() -> None:
    chats = list(identity_chats("Ada", "the Language Lab"))
    wanted = sum(len(asked) * len(answers) for language in LANGUAGES for _, asked, answers in pairs(language))
    assert len(chats) == len({chat.id for chat in chats}) == wanted
    assert wanted >= 400
    for chat in chats:
        (found,) = FORMATS["sharegpt"](chat.to_row(), {}).conversations
        assert [turn.role for turn in found] == ["user", "assistant"]
        assert "Ada" in found[1].content or "the language lab" in found[1].content.casefold()
        assert not set("{}") & set(found[1].content)
    assert list(identity_chats("Ada", "the Language Lab")) == chats
    assert [c.to_row() for c in identity_chats("Ada", "the Language Lab", ["zh"])] == [
        c.to_row() for c in chats if "_zh_" in c.id
    ]


def test_an_article_is_a_capital_at_the_start_of_a_sentence_only() -> None:
    said = {chat.messages[1].text for chat in identity_chats("Ada", "the Lab", ["en"])}
    assert {"The Lab trained me. My name is Ada.", "I go by Ada. The Lab gave me that name.", "I was made by the Lab."} <= said
    assert "xLab trained me. My name is Ada." in {chat.messages[1].text for chat in identity_chats("Ada", "xLab", ["en"])}


def test_nobody_is_asked_whether_she_is_herself() -> None:
    asked = {chat.messages[0].text for chat in identity_chats("Claude", "OpenAI", ["en"])}
    assert not any("claude" in text.casefold() or "openai" in text.casefold() for text in asked)
    assert "Are you Bard?" in asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((" ", "the Lab"), "name and organisation must say something"),
        (("Ada", ""), "name and organisation must say something"),
        (("Ada", "the Lab", ["en", "fr"]), "there are no pairs in fr; choose from en, zh"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        identity_chats(*arguments)  # type: ignore[arg-type]  # a table of wrong calls
