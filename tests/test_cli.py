"""The verbs as a user meets them: help, messages and exit statuses, and one small run from training to talking."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sft.cli import app, main
from sft.data.template import load_template
from sft.errors import InputError
from sft.run.chat import load_to_talk
from sft.train import run
from tests.builders import save_tiny, sentencepiece_like
from tests.cli import refused
from tests.runs import tiny_recipe

ROOT = Path(__file__).resolve().parent.parent
# Verb -> every option it has.
VERBS = {
    "check": ("--set",),
    "show": ("--set",),
    "plan": ("--set", "--probe", "--json"),
    "preview": ("--set", "--rows", "--html"),
    "train": ("--set", "--resume", "--overwrite"),
    "merge": ("--out", "--dtype"),
    "export": ("--dtype", "--layout"),
    "convert": ("--family", "--template", "--dtype"),
    "families": (),
    "chat": ("--message", "-m", "--system", "--temperature", "--max-tokens", "--no-history"),
    "answer": (
        *("--out", "--name", "--temperature", "--max-tokens"),
        *("--engine", "--base-url", "--key-variable", "--concurrency", "--timeout"),
    ),
    "serve": ("--host", "--port", "--name", "--max-queue", "--max-body", "--max-messages"),
    "eval": (
        *("--set", "--model", "--generate", "--questions", "--temperature", "--max-tokens", "--on", "--base", "--max-length"),
        *(
            "--lm-eval",
            "--lm-eval-path",
            "--lm-eval-shots",
            "--lm-eval-limit",
            "--lm-eval-chat",
            "--require",
            "--json",
            "--out",
        ),
    ),
    "web": ("--server", "--host", "--port", "--votes", "--saved", "--lang"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_lists_its_options(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    rows = [line.strip("│ ").split() for line in shown.output.splitlines() if line.startswith("│")]
    listed = {word for row in rows for word in row[:2] if word.startswith("-")}
    assert listed == {*VERBS[verb], "--help", "-h"}


def test_help_names_every_verb() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120", "NO_COLOR": "1"}).output
    found = {line.strip("│ ").split()[0] for line in shown.splitlines() if line.startswith("│ ") and line.strip("│ ")}
    assert set(VERBS) <= found
    assert len(app.registered_commands) == len(VERBS)
    assert [group.name for group in app.registered_groups] == ["data"]  # its verbs: tests/curate/test_verbs.py


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "r.yaml", "--overwrit"], "--overwrit"),
        (["train", "r.yaml", "--learning-rate", "1"], "--learning-rate"),
        (["chat", "run", "--mess", "Hi"], "--mess"),
        (["plan", "r.yaml", "--pro"], "--pro"),
        (["trai", "r.yaml"], "trai"),
    ],
)
def test_unknown_flags_and_abbreviations_are_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert re.search(rf"No such (option|command):? '?{re.escape(said)}\b", refused(arguments, monkeypatch, capsys))


BAD = """\
bad.yaml:6: train.learning_rate: is required
bad.yaml:7: train.epochs: input should be greater than 0, got -3
bad.yaml:10: train.learing_rate: unknown key; did you mean 'train.learning_rate'?
"""
HEAVY = "print('heavy:', sorted({'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)))"


def test_importing_sft_leaves_the_heavy_libraries_alone() -> None:
    code = f"import sys\nimport sft, sft.cli, sft.recipe\n{HEAVY}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "heavy: []\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["check", "recipes/quickstart.yaml"]])
def test_light_verbs_leave_the_heavy_libraries_alone(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['sft', *{arguments!r}]\n"
        "from sft.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code, stopped.code\n"
        f"{HEAVY}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_faulty_recipe_is_told_all_its_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "model: {name_or_path: a/b}\n"
        "template: {name: alpaca}\n"
        "data:\n"
        "  sources: [{path: rows.jsonl}]\n"
        "  max_length: 512\n"
        "train:\n"
        "  epochs: -3\n"
        "  examples_per_step: 8\n"
        "  tokens_per_device: 2048\n"
        "  learing_rate: 1e-5\n"
        "output: {dir: runs/x}\n"
    )
    Path("bad.yaml").write_text(text, encoding="utf-8")
    assert refused(["check", "bad.yaml"], monkeypatch, capsys) == BAD


@pytest.mark.parametrize("verb", ["merge", "export"])
def test_a_missing_run_is_named(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [verb, "nowhere/run", *(["out"] if verb == "export" else [])]
    wanted = "nowhere/run: no run.json here; give the directory that sft train wrote (its output.dir)\n"
    assert refused(arguments, monkeypatch, capsys) == wanted


def test_chat_with_a_missing_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(["chat", str(tmp_path / "run"), "-m", "Hi"], monkeypatch, capsys)
    wanted = "no such folder; give a run directory, an exported folder or a Hub name (owner/name)"
    assert said == f"{tmp_path / 'run'}: {wanted}\n"


@pytest.mark.parametrize("verb", ["check", "show", "plan", "preview", "train", "eval"])
def test_a_missing_recipe_is_named(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no.yaml"
    assert refused([verb, str(missing)], monkeypatch, capsys) == f"{missing}: no such file\n"


def test_eval_of_a_run_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = tmp_path / "never" / "run"
    recipe = tiny_recipe(never, data__holdout=4)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    said = refused(["eval", str(tmp_path / "tiny.yaml")], monkeypatch, capsys)
    wanted = f"{never}: no merged/, model/ or adapter/ here, nor a model; train first, or name one with --model"
    assert said.splitlines()[-1] == wanted


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        ("train.epoch=1", "--set: train.epoch: unknown key; did you mean 'train.epochs'?\n"),
        ("train.epochs", "--set: train.epochs: write key=value, got 'train.epochs'\n"),
    ],
)
def test_a_faulty_edit_is_named(
    edit: str, wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["check", str(ROOT / "recipes" / "quickstart.yaml"), "--set", edit], monkeypatch, capsys) == wanted


def test_check_knows_the_templates_and_says_which_files_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    said = refused(["check", recipe, "--set", "template.name=vicuna"], monkeypatch, capsys)
    assert said.startswith("template.name: no template 'vicuna'; there are alpaca, ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("{}\n")
    sources = "data.sources=[{path: there.jsonl}, {path: no.jsonl}]"
    done = CliRunner().invoke(app, ["check", recipe, "--set", sources])
    missing = f"no.jsonl: no such file, and no file matches it (looked from {tmp_path})"
    assert done.output.splitlines()[0] == f"{recipe}: not there yet: {missing}"
    assert "no faults" in done.output.splitlines()[1]
    assert refused(["train", recipe, "--set", sources], monkeypatch, capsys) == f"{missing}\n"


@pytest.mark.parametrize(
    ("where", "arguments", "more"),
    [
        ("sft.curate.screen.stats_lines", ["data", "stats", "rows.jsonl"], ""),
        ("sft.curate.recipe.load_curate_recipe", ["data", "run", "r.yaml"], ""),
        ("sft.recipe.load_recipe", ["train", "r.yaml"], " and --resume"),
    ],
)
def test_an_interrupted_verb_says_how_to_go_on(
    where: str, arguments: list[str], more: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    monkeypatch.setattr(sys, "argv", ["sft", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert said == f"interrupted; what is complete stands: go on with the same command{more}\n"


def test_resume_and_overwrite_contradict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["train", "recipes/quickstart.yaml", "--resume", "--overwrite"], monkeypatch, capsys)
    assert said == "--resume and --overwrite contradict each other; give one\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe file and its finished run: adapters on a tiny base, with held-out rows."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    recipe = tiny_recipe(folder, lora={"rank": 4, "alpha": 8}, data__holdout=4, train__epochs=1)
    folder.rmdir()
    path = folder.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    done = CliRunner().invoke(app, ["train", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return path, folder


def _ok(*arguments: str | os.PathLike[str]) -> str:
    done = CliRunner().invoke(app, [os.fspath(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_eval_takes_an_adapter_that_is_not_merged(finished: tuple[Path, Path]) -> None:
    recipe, folder = finished
    assert not (folder / "merged").exists()
    models: list[list[Path | str]] = [[], ["--model", folder], ["--model", folder / "adapter"]]
    said = [_ok("eval", recipe, *model) for model in models]
    tables = [text[text.index("figure") : text.index("report: ")] for text in said]  # without the progress of loading
    assert "loss.held_out" in tables[0]
    assert tables[0] == tables[1] == tables[2]


def test_an_adapter_run_talks(finished: tuple[Path, Path]) -> None:
    _ok("chat", finished[1], "-m", "Say the number 3.", "--max-tokens", "4")


def test_chat_puts_an_adapter_on_the_base_that_it_was_trained_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    recipe = tiny_recipe(run_dir, base, lora={"rank": 4, "alpha": 8}, model__quantization="nf4", train__max_steps=1)
    run_dir.rmdir()
    run(recipe)
    model, _, encoder, _ = load_to_talk(str(run_dir))
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    assert type(layer.base_layer).__name__ == "Linear4bit"
    assert encoder.template.source == load_template("alpaca_short").served_source()
    _ok("chat", run_dir, "-m", "Say the number 3.", "--max-tokens", "4")


def test_merge_and_export_write_models_that_load(finished: tuple[Path, Path], tmp_path: Path) -> None:
    assert "read back and compared" in _ok("merge", finished[1], "--out", tmp_path / "merged")
    assert "read back and compared" in _ok("export", finished[1], tmp_path / "exported")
    for name in ("merged", "exported"):
        assert (tmp_path / name / "model.safetensors").is_file()
        assert (tmp_path / name / "chat_template.jinja").is_file()
    assert "rows" in _ok("eval", finished[0], "--model", tmp_path / "merged")
    _ok("chat", tmp_path / "exported", "-m", "Say the number 3.", "--max-tokens", "4")


def test_a_finished_run_is_not_trained_over(finished: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="already holds a run; go on with --resume, replace it with --overwrite"):
        CliRunner().invoke(app, ["train", str(finished[0])], catch_exceptions=False)


def test_an_output_folder_that_cannot_be_made_is_named(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        said = refused(["train", str(finished[0]), "--set", f"output.dir={folder}"], monkeypatch, capsys)
        assert said.splitlines()[-1] == f"output.dir: {folder} cannot be made: {reason}; choose another"


def test_export_leaves_a_foreign_folder_alone(finished: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not empty and not a model of ours"):
        CliRunner().invoke(app, ["export", str(finished[1]), str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
