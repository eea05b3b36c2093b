"""The ``sft`` command. Verbs only choose files and actions; every knob is in the recipe, and ``--set`` edits it with the same checks.

Heavy imports happen inside the verbs: ``sft --help`` and ``sft check`` start without torch.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sft.curate.cli import app as data
from sft.errors import InputError, VicugnaError
from sft.run import verbs
from sft.run.checks.cli import evaluate
from sft.serve.cli import serve
from sft.web.cli import web

if TYPE_CHECKING:
    from sft.recipe import Recipe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Supervised fine-tuning: one YAML recipe to a tuned, merged, talking model.",
    epilog="Exit status: 0 done, 2 bad input, 1 a run that failed or a bug, 130 stopped by Ctrl-C. "
    "Recipes: recipes/*.yaml; start with recipes/quickstart.yaml.",
)

app.add_typer(data, name="data")
app.command("eval")(evaluate)
app.command()(web)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file, or a run directory (its recipe.yaml).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Edit the recipe, such as train.epochs=1. Repeatable.")
]


def _missing_files(recipe: Recipe) -> list[str]:
    """Why each local source cannot be read yet."""
    from sft.data.sources import resolve_files
    from sft.errors import DataError

    found = []
    for source in (*recipe.data.sources, *recipe.data.holdout_sources):
        try:
            if source.path is not None:
                resolve_files(source)
        except DataError as error:
            found.append(str(error))
    return found


@app.command()
def check(recipe: RecipePath, set_: Set = None) -> None:
    """Report every fault of a recipe at once, with file and line. Reads no data and no model; says which files are not there yet."""
    from sft.data.template import load_template
    from sft.recipe import load_recipe

    loaded, _ = load_recipe(recipe, set_ or ())
    if loaded.template.name != "tokenizer":
        load_template(loaded.template.name, system=loaded.template.system)
    for missing in _missing_files(loaded):
        typer.echo(f"{recipe}: not there yet: {missing}")
    method = "LoRA" if loaded.lora else "full tuning"
    typer.echo(
        f"{recipe}: no faults. {method} of {loaded.model.name_or_path or 'a model from scratch'}, template {loaded.template.name}."
    )


@app.command()
def show(recipe: RecipePath, set_: Set = None) -> None:
    """Print the resolved recipe, and where each value comes from."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sft.recipe import load_recipe, resolved

    table = Table("key", "value", "from", box=None)
    for key, value, origin in resolved(*load_recipe(recipe, set_ or ())):
        table.add_row(key, Text(str(value)), Text(origin, style="dim" if origin == "default" else "green"))
    Console().print(table)


@app.command()
def plan(
    recipe: RecipePath,
    set_: Set = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Time a few steps of the real model here to learn tokens per second.")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the plan as JSON too.")] = None,
) -> None:
    """Say what a recipe will do before it does it: rows, steps, memory by part, hours, money, energy, and what to change if it does not fit."""
    from rich.console import Console

    from sft.data.dataset import prepare
    from sft.data.tokenize import RowEncoder
    from sft.files import write_json
    from sft.model.load import check_length, load_config
    from sft.model.tokenizer import tokenizer_for
    from sft.plan import make_plan
    from sft.plan_languages import tokens_by_language
    from sft.plan_report import print_plan
    from sft.recipe import load_recipe

    loaded, _ = load_recipe(recipe, set_ or ())
    config = load_config(loaded.model)
    check_length(config, loaded.data.max_length)
    tokenizer, template, repairs = tokenizer_for(loaded)
    if loaded.tokenizer.extend is not None:
        for repair in repairs:
            typer.echo(f"tokenizer: {repair}")
        config.vocab_size = max(config.vocab_size, len(tokenizer))
    prepared = prepare(loaded, tokenizer, RowEncoder(tokenizer, template, loaded.template.train_on))
    rate = None
    if probe:
        from sft.probe import probe_tokens_per_second

        rate = probe_tokens_per_second(loaded) * loaded.plan.gpus
    made = make_plan(loaded, prepared, config, probed_tokens_per_second=rate)
    made = dataclasses.replace(made, languages=tokens_by_language(loaded, tokenizer))
    print_plan(Console(highlight=False), made)
    if json_ is not None:
        write_json(json_, made.to_json())


@app.command()
def preview(
    recipe: RecipePath,
    set_: Set = None,
    rows: Annotated[int, typer.Option("--rows", help="Rows to show.", min=0)] = 3,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the rows and the report as a page too.")
    ] = None,
) -> None:
    """Show what the model will see, learnt text marked, and a mask report over the whole data set."""
    from rich.console import Console

    from sft.data.preview import run_preview
    from sft.data.tokenize import RowEncoder
    from sft.model.tokenizer import tokenizer_for
    from sft.recipe import load_recipe

    loaded, _ = load_recipe(recipe, set_ or ())
    tokenizer, template, repairs = tokenizer_for(loaded)
    for repair in repairs:
        typer.echo(f"tokenizer: {repair}")
    encoder = RowEncoder(tokenizer, template, loaded.template.train_on)
    run_preview(loaded, tokenizer, encoder, count=rows, html=html, console=Console(highlight=False))


@app.command()
def train(
    recipe: RecipePath,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint in output.dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in output.dir.")] = False,
) -> None:
    """Train, merge, verify what was written, and report. On several GPUs: torchrun --nproc-per-node N -m sft train RECIPE."""
    from sft.recipe import load_recipe

    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other; give one")
    loaded, _ = load_recipe(recipe, set_ or ())
    if missing := _missing_files(loaded):  # before torch is imported: a wrong path shows at once
        raise InputError("\n".join(missing))
    from sft.train import run

    run(loaded, resume=resume, overwrite=overwrite)


RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory written by sft train.", exists=False)]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16; default: the type of training.")
]


OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write; default RUN/merged.")]


@app.command()
def merge(run: RunDir, out: OutOption = None, dtype: Dtype = None) -> None:
    """Merge a run's adapter into its base, compare the written model with adapter-on-base, and only then put it in place."""
    _write_model(run, out or run / "merged", dtype, adapters_only=True)


@app.command()
def export(
    run: RunDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    dtype: Dtype = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="LAYOUT",
            help="native, or legacy: the names of Baichuan's own code.",
        ),
    ] = "native",
) -> None:
    """Write a run's model (full or adapter) as a servable folder: weights, tokenizer with the training template, stop ids, card."""
    if layout == "native":
        _write_model(run, out, dtype, adapters_only=False)
        return
    if layout != "legacy":
        raise InputError(f"--layout: {layout!r} is neither native nor legacy")
    from sft.model.families.legacy_layout import norm_head_of, write_legacy_layout
    from sft.model.load import load_config
    from sft.recipe import load_recipe

    norm_head_of(load_config(load_recipe(run)[0].model).to_dict())  # before the model is written once for nothing
    native = out.with_name(f".native-{out.name}")
    try:
        _write_model(run, native, dtype, adapters_only=False)
        write_legacy_layout(native, out)
    finally:
        shutil.rmtree(native, ignore_errors=True)
    typer.echo(f"{out}: in the legacy layout")


def _known_dtype(dtype: str | None) -> None:
    from sft.model.load import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r} is none of {', '.join(DTYPES)}")


def _write_model(run: Path, out: Path, dtype: str | None, adapters_only: bool) -> None:
    import json

    from sft.model.load import device_for_run
    from sft.recipe import load_recipe

    _known_dtype(dtype)
    if not (run / "run.json").is_file():
        raise InputError(f"{run}: no run.json here; give the directory that sft train wrote (its output.dir)")
    loaded, _ = load_recipe(run)
    if adapters_only and loaded.lora is None:
        raise InputError(f"{run}: this run tuned all weights, there is nothing to merge; use sft export")
    folder = run / ("model" if loaded.lora is None else "adapter")
    if not folder.is_dir():
        raise InputError(f"{folder}: not there; the run did not finish. Go on with sft train {run / 'recipe.yaml'} --resume")
    if out.exists() and any(out.iterdir()) and not (out / "vicugna.json").is_file():
        raise InputError(f"{out}: not empty and not a model of ours; choose another folder")
    from sft.data.tokenize import RowEncoder
    from sft.model.tokenizer import saved_tokenizer
    from sft.train import merge_run

    about: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    tokenizer, template = saved_tokenizer(loaded, folder)
    encoder = RowEncoder(tokenizer, template, loaded.template.train_on)
    found = merge_run(loaded, run, tokenizer, encoder, about, device_for_run(), out, dtype)
    typer.echo(f"{out}: read back and compared: {found}")


@app.command()
def convert(
    legacy: Annotated[Path, typer.Argument(metavar="LEGACY", help="Checkpoint folder of a legacy format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; an earlier conversion there is replaced.")],
    family: Annotated[
        str | None,
        typer.Option("--family", metavar="NAME", help="Its format, where config.json leaves a choice: see sft families."),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="Chat template for the tokenizer; default: the family's.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16; default: as the weights are.")
    ] = None,
) -> None:
    """Turn a checkpoint that came with its own Python files into a native transformers folder. Nothing in it is run."""
    from sft.model.families.convert import convert as convert_folder

    _known_dtype(dtype)
    done = convert_folder(legacy, out, family=family, template=template, dtype=dtype)
    for repair in done["repairs"]:
        typer.echo(f"tokenizer: {repair}")
    typer.echo(
        f"{out}: {done['family']} as {done['native']}, {done['tensors']} tensors, {done['bytes'] / 2**30:.2f} GiB of {done['dtype']}, "
        f"read back; template {done['template']}"
    )


@app.command()
def families() -> None:
    """List the model families: what each becomes, its template, LoRA targets, context, packing, and what was verified."""
    from rich.console import Console
    from rich.table import Column, Table

    from sft.model.families.table import VERIFIED, rows

    heads = ("family", "native class", "template", "LoRA targets", "context", "packing", "verified")
    widths = {"native class": 13, "template": 11}  # names stay whole on 80 columns
    columns = (Column(head, overflow="fold", min_width=widths.get(head)) for head in heads)
    table = Table(*columns, box=None, padding=(0, 1, 0, 0))
    for row in rows():
        table.add_row(*row)
    Console(highlight=False).print(table)
    typer.echo(VERIFIED)


app.command()(verbs.chat)
app.command()(verbs.answer)
app.command()(serve)


_INTERRUPTED = 130  # what typer makes of Ctrl-C, and any shell of the signal


def main() -> None:
    """Entry point: logs on rank 0, faults as one message and an exit status, bugs with their traceback."""
    rank0 = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING if not rank0 else logging.INFO, format="%(message)s")
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # its retries; the failure itself is ours to tell
    for noisy in ("httpx", "httpx2", "huggingface_hub", "datasets", "matplotlib", "accelerate", "transformers", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for noisy in ("torchao", "torch.utils._pytree", "bitsandbytes"):  # what they could not load here is not used
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # peft 0.21 reads names that transformers 5.23 renamed; nothing that a user could change
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app()
    except VicugnaError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            resumed = " and --resume" if sys.argv[1:2] == ["train"] else ""
            sys.stderr.write(f"interrupted; what is complete stands: go on with the same command{resumed}\n")
        raise


if __name__ == "__main__":
    main()
