"""The ``selfinstruct`` command. Verbs only choose files and actions; every knob is in the recipe, and ``--set`` edits it, checked alike.

Heavy imports happen inside the verbs: ``selfinstruct --help`` starts without torch, numba, openai and matplotlib.
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sft.errors import InputError, TeacherError, VicugnaError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Synthetic instructions: seed tasks through a teacher API to a data set, crash-safe and within a budget.",
    epilog="Exit status: 0 done, 2 bad input, 3 teacher failed, budget reached or interrupted, 1 a bug. Start with "
    "recipes/selfinstruct_quickstart.yaml, which needs no key and no network.",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file, or a run directory (its recipe.yaml).")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory written by selfinstruct run or replay.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Edit the recipe, such as output.rows=1000. Repeatable.")
]


@app.command()
def check(recipe: RecipePath, set_: Set = None) -> None:
    """Report every fault of a recipe at once, with file and line; then read its seeds, prompts and evaluation sets. Asks nobody."""
    from selfinstruct.job import prepare
    from selfinstruct.recipe import load_recipe

    loaded, _ = load_recipe(recipe, set_ or ())
    prepared = prepare(loaded)
    asked = f"{len(loaded.teacher.replay)} recorded ledger(s)" if loaded.teacher.replay else f"{loaded.teacher.model} at "
    asked += "" if loaded.teacher.replay else ", ".join(endpoint.label for endpoint in loaded.teacher.endpoints)
    left_out = f" ({len(prepared.dropped_seeds)} unusable rows left out)" if prepared.dropped_seeds else ""
    typer.echo(
        f"{recipe}: no faults. {loaded.output.rows:,} rows by {loaded.strategy.kind} from {len(prepared.job.seeds)} seeds{left_out}, "
        f"{len(loaded.filters)} filters, asking {asked}."
    )


@app.command()
def plan(
    recipe: RecipePath,
    set_: Set = None,
    pilot: Annotated[
        int,
        typer.Option("--pilot", metavar="N", min=0, help="Ask the teacher N times now; the run will not pay for them again."),
    ] = 0,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", metavar="PATH", help="Measure on this ledger or run instead of the recipe's own.")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the plan as JSON too.")] = None,
) -> None:
    """Say what a recipe will take before it takes it: calls, tokens, money, hours, yield per filter; from a pilot or a ledger."""
    from rich.console import Console

    from selfinstruct.measure import measure
    from selfinstruct.plan import print_plan
    from selfinstruct.recipe import load_recipe
    from selfinstruct.store import write_json

    if pilot and ledger is not None:
        raise InputError("--pilot asks the teacher and --ledger asks nobody; give one")
    loaded, _ = load_recipe(recipe, set_ or ())
    console = Console(highlight=False)
    found = measure(loaded, pilot=pilot, ledger=ledger, console=console)
    print_plan(console, found)
    if json_ is not None:
        write_json(json_, found.to_json())


@app.command()
def run(
    recipe: RecipePath,
    set_: Set = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html and the exports at the end.")] = True,
) -> None:
    """Generate until the rows are there. The same command goes on after a stop, a kill or a raised budget; nothing is paid for twice."""
    from rich.console import Console

    from selfinstruct.recipe import load_recipe
    from selfinstruct.run import run as run_recipe

    loaded, _ = load_recipe(recipe, set_ or ())
    try:
        run_recipe(loaded, Console(highlight=False), report=report)
    except TeacherError as error:
        again = shlex.join(["selfinstruct", "run", str(recipe), *(part for item in set_ or () for part in ("--set", item))])
        raise TeacherError(f"{error}\nwhat there is so far: {loaded.output.dir}/dataset.jsonl\nto go on: {again}") from None


@app.command()
def replay(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write.")],
    set_: Set = None,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", metavar="PATH", help="Ledger, or run directory with one; default: the recipe's output.dir."),
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html and the exports at the end.")] = True,
) -> None:
    """Make the data set again out of a ledger, with other filters or more rows. Asks nobody, costs nothing, same bytes every time."""
    from rich.console import Console

    from selfinstruct.recipe import load_recipe
    from selfinstruct.run import replay as replay_recipe

    loaded, _ = load_recipe(recipe, set_ or ())
    path = ledger or (recipe if recipe.is_dir() else Path(loaded.output.dir))
    replay_recipe(loaded, out, path, Console(highlight=False), report=report)


@app.command()
def judge(recipe: RecipePath, set_: Set = None) -> None:
    """Let a teacher judge answers: pairs in both orders, or ratings; then say what that adds up to. Goes on where it was stopped."""
    from rich.console import Console

    from selfinstruct.judge.recipe import load_judge_recipe
    from selfinstruct.judge.run import judge as run_judge

    loaded, _ = load_judge_recipe(recipe, set_ or ())
    run_judge(loaded, Console(highlight=False, width=None if sys.stdout.isatty() else 160))


@app.command()
def standings(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Judgments: pairs, ratings, Vicuna's reviews, votes (JSONL).")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Compare this model with each other; default: all pairs.")
    ] = None,
    require: Annotated[
        str | None,
        typer.Option("--require", metavar="better", help="Exit with 1 unless --model is better than each, beyond noise."),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option("--answers", metavar="FILE", help="Answers that were judged, for their lengths. Repeatable."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="Questions, for the categories.")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON too.")] = None,
) -> None:
    """Say what judgments add up to: win rates with intervals, strengths, ratings, agreement, and whether it is more than noise."""
    from rich.console import Console

    from selfinstruct.judge.standings import standings as show
    from selfinstruct.store import write_json

    if require not in (None, "better"):
        raise InputError(f"--require knows one word, better; got {require!r}")
    if require and model is None:
        raise InputError("--require better needs --model: the one that must be better")
    screen = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    found = show(files, model, screen, answers=answers or (), questions=questions)
    if json_ is not None:
        write_json(json_, found)
    if require and not all(pair["verdict"] == "better" for pair in found["pairs"]):
        raise typer.Exit(1)


@app.command()
def review(
    run: RunDir,
    show: Annotated[
        str | None,
        typer.Option(
            "--show", metavar="WHAT", help="kept, refused, or refused by FILTER or FILTER:REASON; 'parsing' for unread pieces."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Candidates to draw.", min=1)] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.", min=0)] = 0,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write them as a page too.")] = None,
) -> None:
    """Look at kept and refused candidates, with reasons and evidence."""
    from rich.console import Console

    from selfinstruct.results.review import Query
    from selfinstruct.results.review import review as show_candidates

    kept = {None: None, "kept": True, "refused": False}.get(show, False)
    name, _, reason = (show or "").partition(":") if show not in (None, "kept", "refused") else ("", "", "")
    query = Query(kept=kept, filter=name or None, reason=reason or None, count=count, seed=seed)
    show_candidates(run, Console(highlight=False), query, html=html)


@app.command()
def export(
    run: RunDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    format: Annotated[str, typer.Option("--format", help="alpaca, sharegpt, messages or parquet.")] = "alpaca",
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence identifier for the card, such as cc-by-4.0.")
    ] = None,
) -> None:
    """Write the rows in a training format, with a data set card: teacher, prompts, counts, cost, licence note."""
    from selfinstruct.results.export import FORMATS, export_run

    chosen = next((known for known in FORMATS if known == format), None)
    if chosen is None:
        raise InputError(f"--format: {format!r} is none of {', '.join(FORMATS)}")
    done = export_run(run, out, chosen, licence=licence)
    typer.echo(f"{done.path}: {done.rows:,} rows; card: {done.card}")


@app.command()
def trace(
    run: RunDir,
    id_: Annotated[str, typer.Argument(metavar="ID", help="Id of a row or candidate, such as 3-0-7.")],
) -> None:
    """Follow a row back to its requests, demonstrations, replies, scores and cost."""
    from rich.console import Console

    from selfinstruct.results.trace import print_trace
    from selfinstruct.results.trace import trace as find

    print_trace(Console(highlight=False), find(run, id_))


_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> None:
    """Entry point: faults as one message and an exit status, bugs with their traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # libraries log every request otherwise
    for ours in ("selfinstruct", "sft"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        app()
    except VicugnaError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            sys.stderr.write("interrupted; what was paid for is in the ledger, and the same command goes on\n")
        raise


if __name__ == "__main__":
    main()
