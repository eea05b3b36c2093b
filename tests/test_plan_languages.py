"""Tokens per character are counted over turns, by the language that each turn is in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sft.plan_languages import LanguageTokens, tokens_by_language
from sft.plan_report import language_rows
from tests.builders import byte_level
from tests.runs import tiny_recipe

ENGLISH = "The weather was cold and wet all week, so we stayed at home and read our books."
CHINESE = "昨天下午我们一起去公园散步，看到了很多漂亮的花和树，大家都很高兴。"


def test_turns_are_counted_by_their_language(tmp_path: Path) -> None:
    rows = [{"instruction": ENGLISH, "output": CHINESE}, {"instruction": ENGLISH + " " + ENGLISH, "output": "1 + 1 = 2"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = byte_level()
    found = tokens_by_language(tiny_recipe(tmp_path / "run"), tokenizer)
    counted = {one.language: dataclasses.astuple(one)[1:] for one in found}

    def tokens(*texts: str) -> int:
        return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)

    assert counted == {
        "en": (2, 3 * len(ENGLISH) + 1, tokens(ENGLISH, ENGLISH + " " + ENGLISH)),
        "zh": (1, len(CHINESE), tokens(CHINESE)),
        "?": (1, 9, tokens("1 + 1 = 2")),
    }
    assert [one.language for one in found] == ["en", "zh", "?"]
    assert found[1].tokens_per_character == tokens(CHINESE) / len(CHINESE)


def test_the_table_has_equations() -> None:
    rows = language_rows((LanguageTokens("zh", 2, 400, 250),))
    assert rows == [("zh", "0.625", "250 tokens / 400 characters of 2 turns")]
