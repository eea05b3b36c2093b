"""The command: verbs over real run directories, exit codes, help, and what it does not import."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import selfinstruct.cli as cli
from sft.errors import InputError, VicugnaError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "selfinstruct_quickstart.yaml"
VERBS = ("check", "plan", "run", "replay", "review", "judge", "standings", "export", "trace")


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def run_quickstart(folder: Path, *overrides: str) -> Path:
    sets = [part for item in (f"output.dir={folder}", *overrides) for part in ("--set", item)]
    done = call("run", QUICKSTART, *sets, "--no-report")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_quickstart(tmp_path_factory.mktemp("run") / "quick")


# --- imports and help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["import selfinstruct", "import selfinstruct.cli", "from selfinstruct.cli import app; app(['--help'])"]
)
def test_nothing_heavy_is_imported(code: str) -> None:
    program = f"""
import sys
try:
    {code}
except SystemExit:
    pass
print([name for name in ("torch", "numba", "openai", "matplotlib", "transformers", "datasets", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_run_and_its_report_never_import_torch(tmp_path: Path) -> None:
    program = f"""
import sys
from selfinstruct.cli import app
try:
    app(["run", {str(QUICKSTART)!r}, "--set", "output.dir={tmp_path / "r"}", "--set", "output.rows=40", "--no-report"])
except SystemExit as done:
    assert not done.code, done.code
print([name for name in ("torch", "openai", "matplotlib", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_complete() -> None:
    text = call("--help").output
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", text)
        page = call(verb, "--help").output
        assert page.count("--") <= 2 * 6, "at most a handful of flags"
        for flag in re.findall(r"(--[a-z-]+)", page):
            assert flag in page
    assert "3 teacher failed" in text


# --- the quickstart --------------------------------------------------------------------------------------------------------


def test_the_quickstart_gives_500_rows_and_finds_every_kind_of_fault(finished: Path) -> None:
    rows = (finished / "dataset.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 500
    about = json.loads((finished / "run.json").read_text())
    assert (about["status"], about["rows"], about["target"], about["sessions"], about["interrupted"]) == (
        "complete",
        500,
        500,
        1,
        0,
    )
    lines = [json.loads(line) for line in (finished / "candidates.jsonl").read_text(encoding="utf-8").splitlines()]
    refused = {line["verdict"]["filter"] for line in lines if "verdict" in line and not line["verdict"]["accepted"]}
    assert refused >= {
        "length",
        "blacklist",
        "write_a_program",
        "refusal",
        "exact_duplicate",
        "novelty",
        "empty_output",
        "echo",
    }
    assert {line["failure"]["reason"] for line in lines if "failure" in line} >= {"truncated", "empty_reply", "no_tasks"}


def test_the_quickstart_is_the_same_bytes_every_time(finished: Path, tmp_path: Path) -> None:
    again = run_quickstart(tmp_path / "again")
    for name in ("dataset.jsonl", "candidates.jsonl", "ledger.jsonl"):
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name


def test_run_again_changes_nothing_and_asks_nobody(finished: Path) -> None:
    before = (finished / "dataset.jsonl").read_bytes()
    run_quickstart(finished)
    assert (finished / "dataset.jsonl").read_bytes() == before
    assert json.loads((finished / "run.json").read_text())["usage"]["requests"] <= 48


def test_a_run_directory_is_a_recipe(finished: Path) -> None:
    assert (
        "no faults. 500 rows by alpaca from 175 seeds, 13 filters, asking 1 recorded ledger(s)."
        in call("check", finished).output
    )


def test_replay_gives_the_run_and_other_filters_give_others(finished: Path, tmp_path: Path) -> None:
    done = call("replay", finished, "--out", tmp_path / "same", "--no-report")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "same" / "dataset.jsonl").read_bytes() == (finished / "dataset.jsonl").read_bytes()
    assert not (tmp_path / "same" / "ledger.jsonl").exists()
    done = call("replay", finished, "--out", tmp_path / "strict", "--no-report", "--set", "filters[12].threshold=0.4")
    assert done.exit_code == 0, done.output
    assert 0 < len((tmp_path / "strict" / "dataset.jsonl").read_text().splitlines()) < 500
    assert json.loads((tmp_path / "strict" / "run.json").read_text())["status"] == "ledger used up"


def test_replay_never_writes_into_a_run(finished: Path) -> None:
    assert isinstance(call("replay", finished, "--out", finished).exception, InputError)


def test_other_questions_are_refused_and_other_filters_are_not(finished: Path, tmp_path: Path) -> None:
    folder = run_quickstart(tmp_path / "a", "output.rows=60")
    ask = ("run", QUICKSTART, "--no-report", "--set", f"output.dir={folder}", "--set", "output.rows=60")
    done = call(*ask, "--set", "strategy.demonstrations=2", "--set", "teacher.sampling.temperature=0.5")
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == (
        f"{folder}: the ledger here answers other questions, and this recipe would pay for new ones:\n"
        "  recipe: strategy.demonstrations was 3, is 2\n"
        "  recipe: teacher.sampling.temperature was 1.0, is 0.5\n"
        "undo these changes, or choose another output.dir"
    )
    done = call(*ask, "--set", "filters[0].min_words=8")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (folder / "dataset.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 60
    assert min(len(row["instruction"].split()) for row in rows) >= 7  # words as the filter counts them


def test_two_processes_on_one_run_directory_are_refused(tmp_path: Path) -> None:
    from selfinstruct.teacher.ledger import Ledger

    (tmp_path / "a").mkdir()
    with Ledger.open(tmp_path / "a" / "ledger.jsonl"):
        done = call("run", QUICKSTART, "--set", f"output.dir={tmp_path / 'a'}")
    assert isinstance(done.exception, VicugnaError)
    assert "another process is writing this ledger" in str(done.exception)
    assert done.exception.exit_code == 2


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call("run", QUICKSTART, "--set", f"output.dir={tmp_path / 'file' / 'run'}")
    assert "the run directory cannot be made: Not a directory" in str(done.exception)


# --- exit codes ------------------------------------------------------------------------------------------------------------


def code_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["selfinstruct", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(QUICKSTART)
    assert code_of(monkeypatch, "check", recipe) == 0
    assert logging.getLogger("selfinstruct.run").isEnabledFor(logging.INFO)
    assert not logging.getLogger("any.http.client").isEnabledFor(logging.INFO), "a line per request"
    assert code_of(monkeypatch, "check", recipe, "--set", "output.row=3") == 2
    assert "output.row: unknown key; did you mean 'output.rows'?" in capsys.readouterr().err
    assert code_of(monkeypatch, "run", recipe, "--set", f"output.dir={tmp_path / 'a'}", "--set", "output.rows=5000") == 3
    said = capsys.readouterr().err
    assert "the replay does not hold request" in said
    assert f"to go on: selfinstruct run {recipe} --set output.dir=" in said
    assert len((tmp_path / "a" / "dataset.jsonl").read_text().splitlines()) > 500, "what there was is kept"
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "stopped"


def test_the_rows_that_ship_for_the_training_quickstart_are_the_export_of_this_run(finished: Path, tmp_path: Path) -> None:
    assert call("export", finished, tmp_path / "out", "--format", "alpaca").exit_code == 0
    exported = (tmp_path / "out" / "train.json").read_bytes()
    assert exported == (ROOT / "data" / "generated_tasks.json").read_bytes(), (
        "copy the export there, and measure the quickstart"
    )


# --- plan, trace, review, export -------------------------------------------------------------------------------------------


def test_plan_says_what_the_ledger_says(finished: Path, tmp_path: Path) -> None:
    done = call("plan", finished, "--set", "output.rows=52000", "--json", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "plan.json").read_text())
    about = json.loads((finished / "run.json").read_text())
    assert found["rows"] >= 500
    assert found["first_calls"] == found["calls"]["tasks"] == about["usage"]["requests"]
    assert found["candidates"] == found["rows"] + sum(found["refused"].values())
    assert found["least"]["calls"] == -(-found["first_calls"] * 52000 // found["rows"])
    assert found["fallen"]["calls"] > found["least"]["calls"]
    for name in ("novelty", "blacklist", "yield falls on", "52,000"):
        assert name in done.output


def test_plan_without_anything_to_measure_asks_for_a_pilot(tmp_path: Path) -> None:
    done = call("plan", ROOT / "recipes" / "selfinstruct_alpaca.yaml", "--set", f"output.dir={tmp_path}")
    assert "no ledger yet, so there is nothing to plan with; add --pilot 20" in str(done.exception)


def test_a_pilot_is_not_paid_for_again(tmp_path: Path) -> None:
    done = call("plan", QUICKSTART, "--pilot", "20", "--set", f"output.dir={tmp_path / 'a'}")
    assert done.exit_code == 0, done.output
    assert "measured on a pilot of 20 calls" in done.output
    ledger = (tmp_path / "a" / "ledger.jsonl").read_bytes()
    assert len(ledger.splitlines()) == 20
    run_quickstart(tmp_path / "a")
    assert (tmp_path / "a" / "ledger.jsonl").read_bytes().startswith(ledger)


def test_trace_follows_a_row(finished: Path) -> None:
    row = json.loads((finished / "dataset.jsonl").read_text(encoding="utf-8").splitlines()[30])
    said = call("trace", finished, row["id"]).output
    for part in (
        row["lineage"]["request"],
        *row["lineage"]["demonstrations"],
        row["lineage"]["prompt_fingerprint"],
        "kept",
        "tasks request",
    ):
        assert part in said
    assert row["instruction"][:30] in said
    wrong = call("trace", finished, "9-9-9")
    assert "no candidate '9-9-9'; ids are round-request-item, such as 0-0-0" in str(wrong.exception)


@pytest.mark.parametrize("show", [None, "kept", "refused", "novelty", "novelty:near_duplicate", "parsing"])
def test_review_shows(finished: Path, show: str | None) -> None:
    done = call("review", finished, "--count", "2", *(("--show", show) if show else ()))
    assert done.exit_code == 0, done.exception
    assert "exact_duplicate" in done.output


@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "messages", "parquet"])
def test_export_writes_each_format(finished: Path, tmp_path: Path, form: str) -> None:
    done = call("export", finished, tmp_path / "out", "--format", form)
    assert "500 rows; card: " in done.output
    assert isinstance(call("export", finished, tmp_path / "x", "--format", "csv").exception, InputError)


def test_an_interrupted_verb_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfinstruct.recipe.load_recipe", interrupted)
    monkeypatch.setattr(sys, "argv", ["selfinstruct", "check", "recipe.yaml"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted; what was paid for is in the ledger, and the same command goes on\n"
