"""The verb ``sft eval``: what it is given, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sft.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from sft.recipe import Recipe
    from sft.run.checks.harness import Tasks

QUESTIONS = Path("data/questions.jsonl")

_GENERATE, _FORGET, _LM, _RESULT = "Answers", "Losses and a base to compare with", "lm-evaluation-harness", "Result"

Target = Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="Recipe, run directory, exported folder, or Hub name.")]
Model = Annotated[
    Path | None,
    typer.Option("--model", help="With a recipe: model, adapter or run directory; default: the recipe's finished run."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Edit the recipe, such as train.epochs=1. Repeatable.")
]
Generate = Annotated[
    bool,
    typer.Option(
        "--generate",
        help="Answer questions: stop rate, repetition, loops, refusals, lengths. What a model without a recipe gets if nothing else is asked.",
        rich_help_panel=_GENERATE,
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option("--questions", metavar="FILE", help=f"Answer these; default: {QUESTIONS}.", rich_help_panel=_GENERATE),
]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.", min=0.0, max=5.0, rich_help_panel=_GENERATE)]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longest answer of a turn.", min=1, rich_help_panel=_GENERATE)]
On = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="[NAME=]FILE",
        help="Loss per token on a named set: conversations, rows of {text}, or a .txt file. Repeatable.",
        rich_help_panel=_FORGET,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="Measure this one on the same rows and questions, and the change.",
        rich_help_panel=_FORGET,
    ),
]
MaxLength = Annotated[
    int, typer.Option("--max-length", help="Longest row of a set, in tokens.", min=8, rich_help_panel=_FORGET)
]
LmEval = Annotated[
    str | None,
    typer.Option("--lm-eval", metavar="TASKS", help="Tasks, separated by commas. Needs the extra lmeval.", rich_help_panel=_LM),
]
LmEvalPath = Annotated[
    Path | None, typer.Option("--lm-eval-path", metavar="DIR", help="Folder of task files of yours.", rich_help_panel=_LM)
]
LmEvalShots = Annotated[
    int | None,
    typer.Option("--lm-eval-shots", help="Examples before each question; default: each task's.", min=0, rich_help_panel=_LM),
]
LmEvalLimit = Annotated[
    int | None, typer.Option("--lm-eval-limit", help="Questions of each task, for a trial.", min=1, rich_help_panel=_LM)
]
LmEvalChat = Annotated[bool, typer.Option("--lm-eval-chat", help="Ask through the model's chat template.", rich_help_panel=_LM)]
Require = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        metavar="CONDITION",
        help="Exit with 1 unless it holds: stop_rate>=0.95, change.loss.NAME.high<=0.1. Repeatable.",
        rich_help_panel=_RESULT,
    ),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the record here too.", rich_help_panel=_RESULT)
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder of eval.json, report.html, answers; default: RUN/eval.", rich_help_panel=_RESULT
    ),
]


def evaluate(
    target: Target,
    model: Model = None,
    set_: Set = None,
    generate: Generate = False,
    questions: Questions = None,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
    on: On = None,
    base: Base = None,
    max_length: MaxLength = 2_048,
    lm_eval: LmEval = None,
    lm_eval_path: LmEvalPath = None,
    lm_eval_shots: LmEvalShots = None,
    lm_eval_limit: LmEvalLimit = None,
    lm_eval_chat: LmEvalChat = False,
    require: Require = None,
    json_: Json = None,
    out: Out = None,
) -> None:
    """Measure a model: held-out loss of its recipe; what its answers look like; what it forgot; harness tasks; and gate on the figures."""
    from rich.console import Console

    from sft.files import write_json
    from sft.run.checks.conditions import read_condition, refuse_failed

    conditions = tuple(read_condition(text) for text in require or ())
    tasks = _tasks(lm_eval, lm_eval_path, lm_eval_shots, lm_eval_limit, lm_eval_chat)
    recipe, folder, name = _find(target, model, set_ or [])
    _refuse_nothing(recipe, target, asked=bool(generate or questions or on or tasks))
    asking = generate or questions is not None or (recipe is None and not on and tasks is None)

    from sft.run.checks.evaluation import Request, run_evaluation
    from sft.run.checks.sets import named_sets

    request = Request(
        model=name,
        recipe=recipe,
        folder=folder,
        base=base,
        questions=_questions(questions) if asking else None,
        temperature=temperature,
        max_tokens=max_tokens,
        sets=tuple(named_sets(on or ())),
        max_length=max_length,
        tasks=tasks,
        conditions=conditions,
        out=out or _beside(name),
    )
    record = run_evaluation(request)
    _print(Console(highlight=False), record, request.out)
    if json_ is not None:
        write_json(json_, record)
    refuse_failed(record["conditions"])


def _find(target: str, model: Path | None, edits: list[str]) -> tuple[Recipe | None, Path | None, str]:
    """Recipe, the model for its held-out rows, and the name of the model."""
    path = Path(target)
    bare = path.is_dir() and not (path / "recipe.yaml").is_file()
    hub = not path.exists() and path.suffix not in (".yaml", ".yml")
    if bare or hub:
        if model is not None or edits:
            flag = "--model" if model is not None else "--set"
            raise InputError(f"{flag} goes with a recipe, and {target} is a model; give the recipe or the run directory")
        return None, None, target
    from sft.recipe import load_recipe

    recipe, _ = load_recipe(path, edits)
    if model is None and path.is_dir() and (path / "run.json").is_file():
        model = path  # also where a run directory was moved
    return recipe, model, str(model or recipe.output.dir)


def _refuse_nothing(recipe: Recipe | None, target: str, *, asked: bool) -> None:
    if recipe is not None and not asked and not (recipe.data.holdout or recipe.data.holdout_sources):
        raise InputError(
            f"{target}: this recipe holds no rows out; set data.holdout or data.holdout_sources, or ask for --generate, --on or --lm-eval"
        )


def _tasks(names: str | None, folder: Path | None, shots: int | None, limit: int | None, chat: bool) -> Tasks | None:
    if names is None:
        given = {"--lm-eval-path": folder, "--lm-eval-shots": shots, "--lm-eval-limit": limit, "--lm-eval-chat": chat or None}
        if lone := [flag for flag, value in given.items() if value is not None]:
            raise InputError(f"{lone[0]} goes with --lm-eval TASKS; name the tasks")
        return None
    chosen = tuple(dict.fromkeys(part.strip() for part in names.split(",") if part.strip()))
    if not chosen:
        raise InputError("--lm-eval is empty; name tasks, separated by commas")
    from sft.run.checks.harness import Tasks

    return Tasks(chosen, folder, shots, limit, chat)


def _questions(given: Path | None) -> Path:
    if given is None and not QUESTIONS.is_file():
        raise InputError(f"{QUESTIONS}: not there (looked from {Path.cwd()}); name a file of questions with --questions")
    return given or QUESTIONS


def _beside(name: str) -> Path:
    """Inside a run directory, beside a folder, and in ``eval/`` of the working directory for a Hub name."""
    path = Path(name)
    if not path.is_dir():
        return Path("eval") / path.name
    if (path / "recipe.yaml").is_file():
        return path / "eval"
    return path.with_name(f"{path.resolve().name}-eval")


def _print(console: Console, record: dict[str, Any], out: Path) -> None:
    from sft.run.checks.evaluation import REPORT
    from sft.run.checks.report import print_record

    print_record(console, record)
    console.print(f"report: {out / REPORT}", markup=False, soft_wrap=True)
