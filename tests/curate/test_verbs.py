"""``sft data`` as a user meets it: help, what each verb ends with, messages and exit statuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sft.cli import app
from tests.cli import refused
from tests.curate.conftest import ROOT

VERBS = {
    **dict.fromkeys(("check", "run", "clean", "dedup", "split", "mix"), ("--set",)),
    **dict.fromkeys(("stats", "report"), ()),
}
RECIPE = str(ROOT / "recipes" / "data_quickstart.yaml")
ROWS = ROOT / "data" / "sharegpt_quickstart.jsonl"


def _ok(*arguments: str) -> list[str]:
    done = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False, env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_lists_its_options(verb: str) -> None:
    rows = [line.strip("│ ").split() for line in _ok(verb, "--help") if line.startswith("│")]
    assert {word for row in rows for word in row[:2] if word.startswith("-")} == {*VERBS[verb], "--help", "-h"}


def test_help_names_every_verb() -> None:
    found = {line.strip("│ ").split()[0] for line in _ok("--help") if line.startswith("│ ") and line.strip("│ ")}
    assert found - {"--help"} == set(VERBS)


@pytest.mark.parametrize("arguments", [["data", "run", "--help"], ["data", "check", RECIPE]])
def test_light_verbs_leave_the_heavy_libraries_alone(arguments: list[str]) -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'py3langid', 'matplotlib', 'numba', 'tokenizers'}"
    code = (
        f"import sys; sys.argv = ['sft', *{arguments!r}]\n"
        "from sft.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code, stopped.code\n"
        f"print('heavy:', sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_check_reads_no_rows(tmp_path: Path) -> None:
    said = _ok("check", RECIPE, "--set", "sources[0].path=nowhere.jsonl", "--set", "dedup=null")
    assert said == [
        f"{RECIPE}: not there yet: sources[0].path: nowhere.jsonl: no such file, and no file matches it (looked from {Path.cwd()})",
        f"{RECIPE}: no faults. Sources: 1. Stages: clean, split, mix. Rules: html, field, role_repair, notice, empty_turn, refusal, "
        "vendor_names, repetition, broken_list, language, pii, min_length.",
    ]


def _bare(lines: list[str], folder: Path) -> list[str]:
    """Without times, and the folder as RUN."""
    return [re.sub(r"; \d+\.\d s$", "", line).replace(str(folder), "RUN") for line in lines]


CLEAN = [
    "clean: 72 rows in, 55 out",
    "       left out: other_language 3, vendor_name 3, notice 2, refusal 2, empty_turn 1, field_set 1, no_exchange 1, "
    "repeated_digits 1, repeated_lines 1, too_short 1, unknown_role 1",
    "       changed: html 17, role_repair 3, notice 2, pii 2, broken_list 1, empty_turn 1, refusal 1",
]
DEDUP = [
    "dedup: 55 rows in, 49 out",
    "       left out: exact_duplicate 3, near_duplicate 3",
    "       changed: same_id_renamed 1",
]


def test_each_verb_goes_on_from_the_one_before(tmp_path: Path) -> None:
    edits = ["--set", f"output.dir={tmp_path}", "--set", f"sources[0].path={ROWS}"]
    left_out = "left out: RUN/dropped.jsonl"
    assert _bare(_ok("clean", RECIPE, *edits), tmp_path) == [*CLEAN, left_out]
    stood = [f"{CLEAN[0]}, 1 of 1 parts taken as they stood", *CLEAN[1:]]
    assert _bare(_ok("dedup", RECIPE, *edits), tmp_path) == [*stood, *DEDUP, left_out]
    assert not (tmp_path / "train.jsonl").exists()
    assert not (tmp_path / "report.html").exists()
    said = _bare(_ok("run", RECIPE, *edits), tmp_path)
    assert said[: len(stood)] == stood
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    totals = run["stages"]["split"]["histograms"]["totals"]
    share = totals["learnt tokens"] / totals["tokens"]
    assert said[6:] == [
        "split: 49 rows in, 55 out",
        "       changed: split 5, exchange_too_long_kept 1",
        f"       {totals['tokens']:,} tokens, {totals['learnt tokens']:,} of them learnt ({share:.1%})",
        "mix:   talks: 55 rows, 4 held out, 51 to train on",
        "rows: RUN/train.jsonl",
        "held out: RUN/holdout.jsonl",
        left_out,
        "report: RUN/report.html",
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```\n(clean: 72 rows in.*?)\n```", readme, re.S)
    assert block is not None
    assert _bare(block[1].splitlines(), Path("runs/data_quickstart")) == [*CLEAN, *DEDUP, *said[6:]]


def test_a_run_directory_stands_for_its_recipe_and_its_page_is_made_again(quickstart: Path, tmp_path: Path) -> None:
    for name in ("run.json", "recipe.yaml"):
        shutil.copy(quickstart / name, tmp_path / name)
    assert _ok("check", str(tmp_path))[0].startswith(f"{tmp_path}: no faults. Sources: 1. Stages: clean, dedup, split, mix.")
    assert _ok("report", str(tmp_path)) == [f"report: {tmp_path / 'report.html'}"]
    assert (tmp_path / "report.html").stat().st_size > 50_000


def test_stats_of_files_of_any_shape(tmp_path: Path) -> None:
    alpaca = tmp_path / "a.json"
    rows = [{"instruction": f"Name the number {i}, please, in words.", "input": "", "output": "It is that."} for i in range(4)]
    alpaca.write_text(json.dumps([*rows, {"instruction": "x"}]), encoding="utf-8")
    said = _ok("stats", str(ROWS), str(alpaca))
    assert said[0] == f"{ROWS}: 72 rows, 50.3 kB of text"
    assert said[1] == "       unreadable: unknown_role 1"
    assert said[2] == "       turns: mean 3.0, half up to 2, 90% up to 4, all up to 16"
    assert said[6].startswith("       languages of the first question: en ")
    assert said[7:] == [
        f"{alpaca}: 5 rows, 0.2 kB of text",
        "       unreadable: missing_field 1",
        "       turns: mean 2.0, half up to 2, 90% up to 2, all up to 2",
        "       characters of a conversation: half up to 48, 90% up to 48, all up to 48",
        "       characters of a message, user: half up to 48, 90% up to 48, all up to 48",
        "       characters of a message, assistant: half up to 12, 90% up to 12, all up to 12",
        "       languages of the first question: en 4",
    ]


def test_a_faulty_recipe_is_told_all_its_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(
        "sources: [{path: x.jsonl}]\nrules:\n  - {kind: notices}\ndedup: {exat: true}\n", encoding="utf-8"
    )
    said = refused(["data", "check", "bad.yaml"], monkeypatch, capsys)
    assert "rules[0].kind: must be one of" in said
    assert "did you mean 'notice'?" in said
    assert "bad.yaml:4: dedup.exat: unknown key; did you mean 'dedup.exact'?" in said
    assert "output: is required" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no.yaml"], r"no\.yaml: no such file"),
        (["stats", "no.jsonl"], r"no\.jsonl: no such file"),
        (["report", "nowhere"], r"nowhere: no run\.json here; give the directory that sft data run wrote"),
        (["run", RECIPE, "--set", "sources[0].path=nowhere.jsonl", "--set", "output.dir=out"], r"nowhere\.jsonl: no such file"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(said, refused(["data", *arguments], monkeypatch, capsys))
