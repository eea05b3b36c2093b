"""``sft data``: the verbs of a curation. Each does the stages up to its own; what stands from an earlier call is not made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft.errors import DataError, InputError

if TYPE_CHECKING:
    from sft.curate.pipeline import Stage

app = typer.Typer(
    no_args_is_help=True,
    help="Shared conversations to training rows: cleaned, without duplicates, cut to length, mixed.",
    epilog="A stopped verb is called again and goes on where it stood. Start with recipes/data_quickstart.yaml.",
)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe of a curation, or a run directory (its recipe.yaml).")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Edit the recipe, such as split.max_length=4096. Repeatable."),
]


def _go(recipe: Path, set_: list[str] | None, until: Stage) -> None:
    from sft.curate.pipeline import curate
    from sft.curate.recipe import load_curate_recipe
    from sft.curate.results.report import write_report
    from sft.curate.screen import lines

    loaded, document = load_curate_recipe(recipe, set_ or ())
    out = Path(loaded.output.dir)
    if recipe.is_dir() and document.where.get(("output", "dir")) != "--set" and out.resolve() != recipe.resolve():
        cure = f"start it where the run was started, or say --set output.dir={recipe}"
        raise InputError(f"output.dir: {out}, seen from {Path.cwd()}, is not the run directory {recipe}; {cure}")
    done = curate(loaded, until=until, document=document)
    for line in lines(done):
        typer.echo(line)
    if until == "mix":
        typer.echo(f"report: {write_report(done.folder)}")


@app.command()
def check(recipe: RecipePath, set_: Set = None) -> None:
    """Report every fault of a recipe, with file and line, and which files are not there yet. Reads no rows."""
    from sft.config import dotted
    from sft.curate import refusals
    from sft.curate.recipe import load_curate_recipe

    loaded, document = load_curate_recipe(recipe, set_ or ())
    faults, absent = refusals.problems(loaded)
    refusals.raise_all(faults, document)
    for key, words in absent:
        typer.echo(f"{recipe}: not there yet: {dotted(key)}: {words}")
    rules = ", ".join(rule.kind for rule in loaded.rules) or "none"
    stages = ["clean", *(name for name in ("dedup", "split") if getattr(loaded, name) is not None), "mix"]
    typer.echo(f"{recipe}: no faults. Sources: {len(loaded.sources)}. Stages: {', '.join(stages)}. Rules: {rules}.")


@app.command()
def run(recipe: RecipePath, set_: Set = None) -> None:
    """Do all stages: clean, dedup, split, mix; then write report.html."""
    _go(recipe, set_, "mix")


@app.command()
def clean(recipe: RecipePath, set_: Set = None) -> None:
    """Apply the rules to every conversation."""
    _go(recipe, set_, "clean")


@app.command()
def dedup(recipe: RecipePath, set_: Set = None) -> None:
    """Clean, then leave out equal and nearly equal conversations."""
    _go(recipe, set_, "dedup")


@app.command()
def split(recipe: RecipePath, set_: Set = None) -> None:
    """Clean, leave out duplicates, then cut at turn boundaries to the length of a training row."""
    _go(recipe, set_, "split")


@app.command()
def mix(recipe: RecipePath, set_: Set = None) -> None:
    """The same as run, whose last stage weighs, holds out and orders the rows of all sources."""
    _go(recipe, set_, "mix")


@app.command()
def stats(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Rows of any shape: .json, .jsonl, .parquet, .gz, .zst.")
    ],
) -> None:
    """Count rows, turns, characters and languages of files of conversations."""
    from sft.curate.screen import stats_lines

    faults = []
    for path in paths:
        try:
            for line in stats_lines(path):
                typer.echo(line)
        except DataError as error:
            faults.append(str(error))
            typer.echo(f"{path}: not counted, see below")
    if faults:
        raise DataError("\n".join(faults))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a curation.")],
) -> None:
    """Write report.html of a curation again, from its record."""
    from sft.curate.results.report import write_report

    typer.echo(f"report: {write_report(folder)}")
