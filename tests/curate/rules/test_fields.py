"""By model, by another key, by language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from sft.curate.rules.language import LANGUAGES, languages_of
from tests.curate.rules.talks import answer, check_drop, rule, talk

SENTENCES = [
    line.split("\t") for line in (Path(__file__).parent.parent / "languages.tsv").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize(
    ("keys", "model", "reason"),
    [
        ({"keep": ["gpt-4*"]}, "GPT-4-0314", None),
        ({"keep": ["gpt-4*"]}, "gpt-3.5-turbo", "other_model"),
        ({"keep": ["gpt-4*"]}, None, None),
        ({"keep": ["gpt-4*"], "missing": "drop"}, None, "model_missing"),
        ({"keep": ["gpt-4*"], "missing": "drop"}, " ", "model_missing"),
        ({"skip": ["*turbo"]}, "gpt-3.5-turbo", "other_model"),
        ({"skip": ["*turbo"]}, "gpt-4", None),
        ({"keep": ["gpt*"], "skip": ["gpt-4?"]}, "gpt-4o", "other_model"),
        ({"missing": "drop"}, "anything", None),
    ],
)
def test_model(keys: dict[str, Any], model: str | None, reason: str | None) -> None:
    chat = talk("u Hi", "a Hello.", model=model)
    found = rule("model", **keys).apply(chat)
    if reason is None:
        assert found is chat
    else:
        check_drop(
            found, reason, {"other_model": f"the model is '{model}'", "model_missing": "'missing: keep' would keep"}[reason]
        )


@pytest.mark.parametrize(
    ("keys", "extra", "reason"),
    [
        ({"field": "plugins", "present": "drop"}, {"plugins": ["web"]}, "field_set"),
        ({"field": "plugins", "present": "drop"}, {"plugins": []}, None),
        ({"field": "plugins", "present": "drop"}, {"plugins": None}, None),
        ({"field": "plugins", "present": "drop"}, {}, None),
        ({"field": "shared", "present": "drop"}, {"shared": False}, "field_set"),
        ({"field": "lang", "keep": ["en", "zh*"]}, {"lang": "zh-CN"}, None),
        ({"field": "lang", "keep": ["en", "zh*"]}, {"lang": "fr"}, "field_value"),
        ({"field": "lang", "keep": ["en"], "missing": "drop"}, {}, "field_missing"),
        ({"field": "meta.source", "skip": ["forum"]}, {"meta": {"source": "Forum"}}, "field_value"),
        ({"field": "meta.source", "skip": ["forum"]}, {"meta": "forum"}, None),
        ({"field": "tags", "skip": ["spam"]}, {"tags": ["good", "spam"]}, "field_value"),
        ({"field": "score", "skip": ["1", "2"]}, {"score": 2}, "field_value"),
        ({"field": "toxic", "skip": ["true"]}, {"toxic": True}, "field_value"),
    ],
)
def test_field(keys: dict[str, Any], extra: dict[str, Any], reason: str | None) -> None:
    chat = talk("u Hi", "a Hello.", **extra)
    found = rule("field", **keys).apply(chat)
    if reason is None:
        assert found is chat
    else:
        check_drop(found, reason, rf"'{keys['field']}'")


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("model", {}, "the rule does nothing: say what to keep or to skip, such as model: gpt-4"),
        ("model", {"keep": [""]}, "an empty phrase"),
        ("field", {"field": "lang"}, "the rule does nothing"),
        ("field", {"field": "model", "keep": ["x"]}, "the rule 'model' looks at the model"),
        ("field", {"field": "lang", "present": "drop", "keep": ["en"]}, "so 'keep' and 'skip' decide nothing"),
        ("language", {}, "name the languages to keep, or those to skip"),
        ("language", {"keep": ["en"], "skip": ["fr"]}, "one list of the two"),
        ("language", {"keep": ["klingon"]}, "klingon cannot be recognised; choose from af, ar"),
    ],
)
def test_sections_that_cannot_work(kind: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        rule(kind, **keys)


def test_twelve_languages_are_told_apart() -> None:
    assert {code for code, _ in SENTENCES} == {"en", "zh", "ja", "ko", "fr", "de", "es", "pt", "it", "nl", "id", "ru"}
    assert len(SENTENCES) == 120
    wrong, kept, dropped = [], 0, 0
    for code, text in SENTENCES:
        shares = languages_of([text])
        best = max(shares, key=lambda one: shares[one])
        wrong += [] if best == code else [(code, best)]
        chat = answer(text, text)
        kept += rule("language", keep=[code]).apply(chat) is chat
        dropped += rule("language", skip=[code]).apply(chat) is not chat
    assert set(wrong) <= {("id", "ms")}  # sisters: neither is believed alone
    assert len(wrong) <= 2
    assert kept == 120
    assert dropped >= 100


@pytest.mark.parametrize(
    ("keys", "turns", "reason", "detail"),
    [
        ({"keep": ["en"]}, ["u What is this, and why?", "a It is a lighthouse by the sea."], None, ""),
        (
            {"keep": ["en"]},
            ["u Was ist das hier eigentlich?", "a Das ist ein Leuchtturm am Meer."],
            "other_language",
            r"in de \(\d+% sure\)",
        ),
        ({"skip": ["ko"]}, ["u 이것은 무엇입니까?", "a 바닷가에 있는 등대입니다."], "other_language", "in ko"),
        ({"skip": ["ko"]}, ["u What is this, and why?", "a It is a lighthouse by the sea."], None, ""),
        ({"keep": ["zh"]}, ["u 請問這是什麼？", "a 這是一座海邊的燈塔，晚上會發光。"], None, ""),
        # half and half: neither is certain
        (
            {"keep": ["en"]},
            ["u Translate it, please: it is a lighthouse.", "a 这是一座海边的灯塔，它每天晚上都发光。"],
            None,
            "",
        ),
        ({"keep": ["en"], "unknown": "drop"}, ["u 2 + 2", "a 4"], "language_unknown", "'unknown: keep' would keep it"),
        ({"keep": ["en"]}, ["u 2 + 2", "a 4"], None, ""),
        ({"keep": ["en"]}, [], None, ""),
        # a little of everything
        ({"keep": ["en"]}, ["u Generate a sample HTML table.", "a <table><tr><td>1</td></tr></table>"], None, ""),
        ({"keep": ["fr"]}, ["u Name a Mediterranean Sea island.", "a Sicily"], None, ""),
        # code and addresses are no language, and the system message is nobody's
        (
            {"keep": ["de"]},
            [
                "u Warum läuft das nicht?",
                "a Es fehlt ein Doppelpunkt:\n```python\nfor item in the_list_of_words:\n    print(item)\n```\nSo geht es dann.",
            ],
            None,
            "",
        ),
        (
            {"keep": ["de"]},
            ["s You are a helpful assistant who speaks German.", "u Wer bist du denn nun?", "a Ein kleines Programm."],
            None,
            "",
        ),
    ],
)
def test_language(keys: dict[str, Any], turns: list[str], reason: str | None, detail: str) -> None:
    chat = talk(*turns)
    found = rule("language", **keys).apply(chat)
    if reason is None:
        assert found is chat
    else:
        check_drop(found, reason, detail)


def test_codes_are_sorted_and_known_to_the_detector() -> None:
    assert sorted(set(LANGUAGES)) == list(LANGUAGES)
    assert abs(sum(languages_of(["The tide is high at noon today."]).values()) - 1) < 1e-3
