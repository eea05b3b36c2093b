"""Languages: sentences of twelve languages, English ones that look foreign, and what is kept where the text does not tell."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from selfinstruct.filters.languages import foreign, language
from sft.text.tokens import is_cjk

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "data"
ROWS = [tuple(line.split("\t")) for line in (HERE / "languages.tsv").read_text(encoding="utf-8").splitlines()]
# Twelve sentences of each foreign language: 88 that the word lists were made with, and 44 that they had not seen (40 caught).
# Nearly all its words are Spanish and Italian as well as Portuguese, or in no list.
MISSED = ["Por que as aves migram no inverno?"]
# Half of it is Chinese.
DOUBTFUL = ["What is 谢谢你的帮助 in English?"]


def test_an_english_filter_catches_what_is_foreign_and_nothing_else() -> None:
    assert Counter(code for code, _ in ROWS) == {
        "en": 40,
        **dict.fromkeys(("de", "es", "fr", "id", "it", "ja", "ko", "nl", "pt", "ru", "zh"), 12),
    }
    wrong = [text for code, text in ROWS if (foreign(text, ("en",)) is None) != (code == "en")]
    assert wrong == MISSED


def test_a_chinese_filter_catches_what_is_foreign_and_nothing_else() -> None:
    wrong = [text for code, text in ROWS if (foreign(text, ("zh",)) is None) != (code == "zh")]
    assert wrong == DOUBTFUL


def test_no_sentence_is_taken_for_another_language() -> None:
    found = [(code, language(text)) for code, text in ROWS]
    assert [pair for pair in found if pair[1] not in (pair[0], "und")] == []
    assert Counter(code for code, answer in found if answer == "und") == {"en": 5, "es": 1, "it": 1, "pt": 2}


def test_sisters_are_told_from_what_is_kept() -> None:
    text = "Inventa un eslogan para una panadería de barrio."
    assert language(text) == "und"
    assert foreign(text, ("en",)) == "it or es"
    assert foreign(text, ("en", "es")) is None


def test_the_seeds_are_in_their_language() -> None:
    def instructions(name: str) -> list[str]:
        return [json.loads(line)["instruction"] for line in (DATA / name).read_text(encoding="utf-8").splitlines()]

    english = [text for text in instructions("seed_tasks.jsonl") if language(text) not in ("en", "und")]
    chinese = [text for text in instructions("seed_tasks_zh.jsonl") if language(text) != "zh" or not is_cjk(text)]
    assert (english, chinese) == ([], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Écris un poème sur la mer pour les enfants.", "fr"),
        ("Schreibe ein Gedicht über das Meer und die Sonne.", "de"),
        ("Escribe un poema sobre el mar para los niños.", "es"),
        ('Translate "Il fait beau avec les enfants" into English for the class.', "en"),
        ("改写这句话：“She is taking a short break from the practice of the day”", "zh"),
        ("改写这句话：She is taking a short break from the practice of the day", "und"),  # asked in one, about another
        ("Traduci: the cat is on the table, and the dog is under it", "und"),
        ("用Python和Java比较quick sort", "zh"),
        ("WRITE A POEM ABOUT THE SEA", "en"),
        ("ESCRIBE UN POEMA SOBRE EL MAR", "es"),
        ("Write to La Poste and Der Spiegel", "en"),  # capitals inside a sentence make names
        ("les.sons@la.fr de.la/le", "und"),  # an address has no words
        ("sum = num + el[0]", "und"),
        ("解释日语中ありがとう的意思", "zh"),
        ("東京の天気", "ja"),
        ("Solve for θ and φ, given that α is 1", "en"),
        ("1 + 1 = ?", "und"),
        ("", "und"),
    ],
)
def test_language(text: str, expected: str) -> None:
    assert language(text) == expected
