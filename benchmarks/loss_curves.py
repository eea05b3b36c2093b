"""Do the fast ways of training learn as float32 does? Loss curves of runs of ``sft train`` over the same rows in the same order; one GPU.

``python benchmarks/loss_curves.py --data ROWS --out curves.json [--base FOLDER] [--runs ...]`` trains a random LLaMA of 134 M parameters, each
run in a process of its own. Full tuning is compared with float32 in everything (weights, states, products without TF32); ``noise`` is the
reference in smaller micro-batches, which only changes the order of sums, so nothing can be held against a curve that is as near as that.
``bfloat16_nearest`` is the negative control: a difference that this comparison must see. The LoRA runs need ``--base``, a folder of
``random_llama.py --size 134m``, and are compared with LoRA on that base in bfloat16.

A run that is in ``--out`` already is not repeated, so the runs can be spread over several calls; a file made with other settings is
refused. ``--plot curves.png`` draws what the file holds, and needs no GPU: ``--plot`` with ``--runs`` left empty only draws.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from engine import BFLOAT16, LORA

from sft.recipe import TrainSection

SIZES = {"tiny": (128, 2, 352, 2, 1024), "134m": (768, 12, 2048, 12, 32000)}
FULL, ADAPTERS = "float32", "lora_bfloat16"
STOCHASTIC = [*BFLOAT16, "train.optimizer=adamw_stochastic"]
EIGHT_BIT = "adamw_8bit_stochastic"
FLOAT32 = ["model.dtype=float32", "model.compute_dtype=null", "train.tf32=false", "train.compile=off"]
MIXED = ["model.dtype=float32", "model.compute_dtype=bfloat16"]
SMALL = "train.tokens_per_device=2048"
RUNS: dict[str, tuple[str, str, list[str]]] = {  # name: (what it is compared with, what it is called, its settings)
    FULL: (FULL, "float32 weights, states and products", FLOAT32),
    "noise": (FULL, "float32 throughout, other micro-batches", [*FLOAT32, SMALL]),
    "mixed": (FULL, "float32 weights, bfloat16 products", MIXED),
    "mixed_noise": (FULL, "bfloat16 products, other micro-batches", [*MIXED, SMALL]),
    "bfloat16_stochastic": (FULL, "bfloat16, rounded stochastically", STOCHASTIC),
    "bfloat16_nearest": (FULL, "bfloat16, rounded to the nearest", [*BFLOAT16, "train.optimizer=adamw"]),
    "float8": (FULL, "float8 products, bfloat16 rounded stochastically", [*STOCHASTIC, "train.float8=true"]),
    "eight_bit": (FULL, "8-bit states, bfloat16 rounded stochastically", [*BFLOAT16, f"train.optimizer={EIGHT_BIT}"]),
    "float8_eight_bit": (
        FULL,
        "float8 products and 8-bit states",
        [*BFLOAT16, f"train.optimizer={EIGHT_BIT}", "train.float8=true"],
    ),
    ADAPTERS: (ADAPTERS, "LoRA on bfloat16", [*BFLOAT16, LORA]),
    "lora_noise": (ADAPTERS, "LoRA on bfloat16, other micro-batches", [*BFLOAT16, LORA, SMALL]),
    "lora_float8": (ADAPTERS, "LoRA on float8", [*BFLOAT16, LORA, "model.quantization=float8"]),
    "lora_nf4": (ADAPTERS, "LoRA on nf4", [*BFLOAT16, LORA, "model.quantization=nf4"]),
}


def refused(name: str, options: argparse.Namespace) -> str | None:
    """Why a run cannot be made here, None if it can."""
    if any(EIGHT_BIT in item for item in RUNS[name][2]) and EIGHT_BIT not in get_args(
        TrainSection.model_fields["optimizer"].annotation
    ):
        return f"train.optimizer has no {EIGHT_BIT}"
    if LORA in RUNS[name][2] and options.base is None:
        return "needs --base, a folder of random_llama.py"
    return None


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What every run of one file must share."""
    data = hashlib.sha256(Path(options.data).read_bytes()).hexdigest()[:16]
    names = ("size", "steps", "tokens_per_step", "learning_rate", "lora_learning_rate", "recipe", "set")
    return {"data_sha256": data, **{name: getattr(options, name) for name in names}}


def losses(name: str, options: argparse.Namespace) -> dict[str, Any] | str:
    """The run's record, or what went wrong."""
    width, layers, inner, heads, vocabulary = SIZES[options.size]
    shape = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
    }
    adapters = LORA in RUNS[name][2]
    scratch = json.dumps({"config": shape, "vocab_size": vocabulary})
    model = [f"model.name_or_path={options.base}"] if adapters else ["model.name_or_path=null", f"model.scratch={scratch}"]
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-") as folder:
        sets = [
            "model.revision=null",
            *model,
            f"data.sources=[{{path: {json.dumps(options.data)}, format: auto}}]",
            "data.max_drop_share=0.05",
            f"data.cache_dir={options.cache}",
            f"train.max_steps={options.steps}",
            "train.epochs=1000",
            "train.examples_per_step=null",
            f"train.tokens_per_step={options.tokens_per_step}",
            f"train.tokens_per_device={options.tokens_per_step}",
            f"train.learning_rate={options.lora_learning_rate if adapters else options.learning_rate}",
            "train.schedule=constant",
            "train.sharding=none",
            f"output.dir={folder}/run",
            "output.log_every=1",
            "output.save_every=null",
            "output.eval_every=null",
            *options.set,
            *RUNS[name][2],
        ]
        command = [sys.executable, str(Path(__file__).with_name("engine.py")), "--data", options.data]
        command += ["--recipe", options.recipe, "--child"]
        for item in sets:
            command += ["--set", item]
        begun = time.time()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        file = Path(folder) / "run" / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        found = [line["loss"] for line in lines if "loss" in line]
        if done.returncode or len(found) != options.steps:
            said = " ".join((done.stderr or done.stdout).split())[-600:]
            return f"exit status {done.returncode}, {len(found)} of {options.steps} steps: {said}"
        about = json.loads((Path(folder) / "run" / "run.json").read_text())
    return {"losses": found, "seconds": round(time.time() - begun, 1), "device": _device(), "versions": about["versions"]}


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def away(found: list[float], reference: list[float]) -> float:
    """Root of the mean square difference."""
    return statistics.fmean((a - b) ** 2 for a, b in zip(found, reference, strict=True)) ** 0.5


def table(runs: dict[str, Any], steps: int) -> None:
    """Mean loss of stretches of steps, and the distance and the mean difference to the reference."""
    cuts = sorted({0, 1, *(steps * k // 6 for k in range(1, 7))})
    heads = ["run", *(f"to step {cut}" for cut in cuts[1:]), "away from reference", "mean difference", "second half", "s"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, (against, title, _) in RUNS.items():
        if name not in runs:
            continue
        found = runs[name]["losses"]
        cells = [f"{statistics.fmean(found[a:b]):.4f}" for a, b in pairwise(cuts)]
        reference = runs.get(against, {}).get("losses")
        if name == against:
            cells += ["0", "0", "0"]
        elif reference is None:
            cells += [f"no {against}"] * 3
        else:
            half = steps // 2
            differences = [a - b for a, b in zip(found, reference, strict=True)]
            cells += [f"{away(found, reference):.5f}", f"{statistics.fmean(differences):+.5f}"]
            cells.append(f"{statistics.fmean(differences[half:]):+.5f}")
        print(f"| {name}: {title} | " + " | ".join(cells) + f" | {runs[name]['seconds']:.0f} |")


def smoothed(values: list[float], window: int) -> tuple[list[float], list[float]]:
    """Steps (the middle of each window, from 1) and moving averages."""
    window = min(window, len(values))
    means = [statistics.fmean(values[i : i + window]) for i in range(len(values) - window + 1)]
    return [i + (window + 1) / 2 for i in range(len(means))], means


def plot(runs: dict[str, Any], path: Path, window: int) -> None:
    """Losses above, smoothed differences to the reference below; a column each for full tuning and for adapters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [group for group in (FULL, ADAPTERS) if group in runs]
    if not groups:
        sys.exit(f"--plot: the file holds neither {FULL} nor {ADAPTERS}, so there is nothing to compare with")
    figure, panels = pyplot.subplots(
        2, len(groups), figsize=(5.5 * len(groups), 6), sharex="col", squeeze=False, height_ratios=(3, 2), layout="constrained"
    )
    for column, group in enumerate(groups):
        above, below = panels[0][column], panels[1][column]
        near = []
        for name, (against, title, _) in RUNS.items():
            if against != group or name not in runs:
                continue
            found = runs[name]["losses"]
            style = {"linestyle": "--" if "noise" in name else "-", "linewidth": 1.2}
            (line,) = above.plot(*smoothed(found, window), label=title, **style)
            differences = [a - b for a, b in zip(found, runs[group]["losses"], strict=True)]
            steps, means = smoothed(differences, window)
            below.plot(steps, means, color=line.get_color(), **style)
            if name != "bfloat16_nearest":  # the control leaves the panel, which is for what should be near
                near += [abs(mean) for mean in means]
        above.set_title("full tuning" if group == FULL else "adapters", fontsize=10)
        above.set_ylabel(f"loss, mean of {window} steps")
        above.legend(fontsize=7)
        below.set_ylabel("minus the reference")
        below.set_xlabel("step")
        limit = 1.2 * max(near) or 1e-3
        below.set_ylim(-limit, limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="rows of any format; not needed to draw")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the losses; runs in it are not repeated")
    parser.add_argument("--base", help="model folder of random_llama.py, for the LoRA runs")
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), help="which runs (default: all; none: only table and plot)")
    parser.add_argument("--size", choices=SIZES, default="134m")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="constant, after the recipe's warm-up")
    parser.add_argument("--lora-learning-rate", type=float, default=1e-3)
    parser.add_argument("--recipe", default="recipes/alpaca.yaml", help="template and everything that no run sets")
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/vicugna-bench-cache", help="folder of tokenised rows")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run; what a run varies wins")
    parser.add_argument("--plot", type=Path, help="PNG or SVG to draw")
    parser.add_argument("--window", type=int, default=15, help="steps of the moving average")
    options = parser.parse_args()
    file = json.loads(options.out.read_text()) if options.out.is_file() else {"settings": None, "runs": {}}
    wanted = list(RUNS) if options.runs is None else options.runs
    if wanted:
        if options.data is None:
            parser.error("--data is needed to make runs; give --runs without names to draw only")
        shared = settings(options)
        if file["settings"] not in (None, shared):
            parser.error(f"--out: {options.out} was made with {file['settings']}, not {shared}; choose another file")
        file["settings"] = shared
    for name in wanted:
        if name in file["runs"]:
            continue
        why = refused(name, options)
        found = why if why is not None else losses(name, options)
        if isinstance(found, str):
            print(f"{name}: {'left out' if why else 'failed'}: {found}", flush=True)
            continue
        file["runs"][name] = found
        options.out.write_text(json.dumps(file) + "\n")
        print(f"{name}: {found['seconds']} s, loss {found['losses'][0]:.4f} -> {found['losses'][-1]:.4f}", flush=True)
    if not file["runs"]:
        sys.exit(f"{options.out}: no run to show")
    table(file["runs"], file["settings"]["steps"])
    if options.plot is not None:
        plot(file["runs"], options.plot, options.window)


if __name__ == "__main__":
    main()
