"""The generator's pages say what the code says."""

from __future__ import annotations

from pathlib import Path

from selfinstruct.prompts import prompt_names

ROOT = Path(__file__).resolve().parents[2]


def test_the_judges_verbs_and_prompts_are_described() -> None:
    page = (ROOT / "docs" / "judge.md").read_text(encoding="utf-8")
    for name in (
        "selfinstruct judge ",
        "selfinstruct standings ",
        *(f"`{n}`" for n in prompt_names() if n.startswith("judge_")),
    ):
        assert name in page, name


def test_every_verb_prompt_and_file_is_described() -> None:
    page = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")
    for verb in ("check", "plan", "run", "replay", "review", "export", "trace"):
        assert f"selfinstruct {verb} " in page
    for name in (
        *(name for name in prompt_names() if not name.startswith("judge_")),
        "ledger.jsonl",
        "candidates.jsonl",
        "dataset.jsonl",
        "run.json",
        "state.json",
        "novelty.bin",
        "journal.jsonl",
    ):
        assert f"`{name}`" in page, name
