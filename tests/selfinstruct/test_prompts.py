"""Prompt files: sandboxed, fingerprinted, and read back by the parsers that their replies go to."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfinstruct.prompts import Prompt, load_prompt, prompt_names, refuse_sentinels
from sft.errors import InputError

VALUES = {
    "demonstrations": [{"instruction": "Name {{ it }}.", "input": "", "output": "<b>", "is_classification": True}],
    "instructions": ["Name it."],
    "first": 4,
    "last": 23,
    "count": 20,
    "classification_only": False,
    "operator": "deepen",
    "instruction": "Name {{ it }}.",
    "input": "",
    "output": "It.",
    "new_instruction": "Name two.",
    "new_input": "x",
    "turns": [{"asked": "Name {{ it }}.", "answers": ["It.", "<b>"], "reference": ""}],
    "mark": "0123abcd",
    "category": "math",
}


def test_what_ships() -> None:
    names = {"alpaca_en", "alpaca_zh", "alpaca_json_en", "alpaca_json_zh", "critic_en", "critic_zh", "evolve_en", "evolve_zh"}
    names |= {"evolve_gain_en", "evolve_gain_zh", "classic_instructions_en", "classic_classification_en"}
    names |= {f"judge_{kind}_{language}" for kind in ("pair", "single") for language in ("en", "zh")}
    assert set(prompt_names()) == names | {"classic_input_first_en", "classic_output_first_en"}


@pytest.mark.parametrize("name", prompt_names())
def test_a_prompt_renders_and_text_never_becomes_template(name: str) -> None:
    prompt = load_prompt(name)
    text = prompt.render(**VALUES)
    assert ("Name {{ it }}." in text) == (name != "classic_instructions_en")
    assert "&lt;" not in text
    assert len(prompt.fingerprint) == 16


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_operator_has_its_words(language: str) -> None:
    prompt = load_prompt(f"evolve_{language}")
    operators = ("constraints", "deepen", "concretize", "reasoning", "broaden")
    assert len({prompt.render(**{**VALUES, "operator": name}) for name in operators}) == 5


def test_a_fingerprint_is_of_the_bytes() -> None:
    assert Prompt("a", "x").fingerprint == Prompt("b", "x").fingerprint != Prompt("a", "x ").fingerprint


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompt 'alpaca': not one of alpaca_en, .* nor a path that ends in \.jinja"):
        load_prompt("alpaca")
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        load_prompt(str(tmp_path / "none.jinja"))
    bad = tmp_path / "bad.jinja"
    bad.write_text("a\n{% if %}")
    with pytest.raises(InputError, match=r"bad\.jinja:2: Expected an expression"):
        load_prompt(str(bad))
    bad.write_text("{{ secret }}")
    with pytest.raises(InputError, match=r"bad\.jinja: 'secret' is undefined; it may use a"):
        load_prompt(str(bad)).render(a=1)


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ a.append(1) }}", "{% include '/etc/passwd' %}"])
def test_a_prompt_cannot_reach_out(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError, match="prompt x"):
        Prompt("x", source).render(a=[])


def test_a_mark_in_a_demonstration_is_refused() -> None:
    refuse_sentinels([("s", "a <<< b >>> c <<task>>")])
    with pytest.raises(InputError, match="seed s7: its text holds '<<<END 3>>>', a mark of the reply format; reword it"):
        refuse_sentinels([("s7", "see <<<END 3>>>")])
