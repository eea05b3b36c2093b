"""Full tuning over the GPUs of one host through ``torchrun -m sft train``: speed and memory by variant, bandwidth, and resuming on fewer.

``python benchmarks/fsdp.py --data alpaca.json [--gpus 2] [--variants fsdp fsdp_compiled ...] [--steps 12] [--set KEY=VALUE]``

Speeds are of a random model of the shape of LLaMA-7B, without saving. ``bus`` measures what ``docs/scale.md`` assumes: the collectives
of one decoder layer, in GB/s as NCCL's tests count them. ``resume`` trains four such layers in float32 on all GPUs, takes the checkpoint
of half way, goes on with it on one GPU without shards and again on all of them, and compares with the run that never stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alpaca_7b import SEVEN_B

BFLOAT16 = ["model.dtype=bfloat16", "model.compute_dtype=bfloat16"]
VARIANTS: dict[str, list[str]] = {
    "fsdp": ["train.sharding=fsdp"],
    "fsdp_compiled": ["train.sharding=fsdp", "train.compile=on"],
    "fsdp_stochastic_compiled": ["train.sharding=fsdp", "train.compile=on", *BFLOAT16, "train.optimizer=adamw_stochastic"],
    "deepspeed": ["train.sharding=deepspeed"],
}
LAYER = 4 * 4096 * 4096 + 3 * 4096 * 11008


def child(recipe: str, sets: list[str], how: str) -> None:
    """One process of a run: only its steps (``probe``), or all of it, from the start or a checkpoint."""
    from sft.recipe import load_recipe
    from sft.train import run

    run(load_recipe(recipe, sets)[0], probe=how == "probe", resume=how == "resume")


def bus() -> None:
    """One process of the measurement of collectives; the first one prints a line."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    world = dist.get_world_size()
    for name, dtype in (("all-gather", torch.bfloat16), ("reduce-scatter", torch.float32)):
        whole = torch.ones(LAYER // world * world, dtype=dtype, device="cuda")
        part = torch.empty(len(whole) // world, dtype=dtype, device="cuda")
        times = []
        for _ in range(30):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            if name == "all-gather":
                dist.all_gather_into_tensor(whole, part)
            else:
                dist.reduce_scatter_tensor(part, whole)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        rate = whole.numel() * whole.element_size() * (world - 1) / world / statistics.median(times[5:]) / 1e9
        if rank == 0:
            print(f"| {name} of a layer, {str(dtype).removeprefix('torch.')} | {rate:.0f} GB/s | {world} GPUs |", flush=True)
    dist.destroy_process_group()


def launch(gpus: int, *words: str) -> subprocess.CompletedProcess[str]:
    """This program again, as one process or as so many."""
    command = (
        [sys.executable, __file__]
        if gpus == 1
        else [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", __file__),
        ]
    )
    return subprocess.run([*command, *words], check=False, capture_output=True, text=True)


def settings(options: argparse.Namespace, folder: str, layers: int, steps: int) -> list[str]:
    shape = {**SEVEN_B, "num_hidden_layers": layers}
    return [
        *("model.revision=null", "model.name_or_path=null"),
        f"model.scratch={json.dumps({'config': shape, 'vocab_size': 32000})}",
        f"data.sources=[{{path: {json.dumps(options.data)}, format: auto}}]",
        *(
            f"data.cache_dir={options.cache}",
            "data.max_drop_share=0.05",
            f"train.max_steps={steps}",
            f"output.dir={folder}/run",
        ),
        *("output.log_every=1", "output.save_every=null", "output.eval_every=null", "output.merge=false", "output.drill=off"),
    ]


def words_of(options: argparse.Namespace, sets: list[str], how: str) -> list[str]:
    words = ["--data", options.data, "--recipe", options.recipe, "--child", how]
    for item in (*sets, *options.set):
        words += ["--set", item]
    return words


def lines_of(folder: str) -> list[dict[str, float]]:
    file = Path(folder) / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [line for line in lines if "loss" in line]


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stderr or done.stdout).split())[-900:]


def measure(name: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-", dir=options.folder) as folder:
        begun = time.time()
        sets = [*settings(options, folder, 32, options.steps), *VARIANTS[name]]
        done = launch(options.gpus, *words_of(options, sets, "probe"))
        lines = lines_of(folder)
        if done.returncode or len(lines) < 6:
            print(f"| {name} | failed: {last_words(done)} |", flush=True)
            return
        steady = lines[-max(4, len(lines) // 2) :]
        rate, used, waited = (
            statistics.median(x[k] for x in steady) for k in ("tokens_per_second", "utilisation", "data_wait")
        )
        print(
            f"| {name} | {rate:,.0f} | {rate / options.gpus:,.0f} | {used:.3f} | {max(x['memory_gib'] for x in lines):.1f} | "
            f"{waited:.2%} | {lines[0]['loss']:.3f} -> {lines[-1]['loss']:.3f} | {time.time() - begun:.0f} |",
            flush=True,
        )


def resume(options: argparse.Namespace) -> None:
    """Lines of the table of resumptions; both go on from the same checkpoint."""
    exact = ["model.compute_dtype=null", "train.tf32=false", "output.save_every=3", "train.compile=off"]
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-", dir=options.folder) as folder:
        sets = [*settings(options, folder, 4, 6), *exact]
        begun = time.time()
        done = launch(options.gpus, *words_of(options, [*sets, "train.sharding=fsdp", "output.keep_checkpoints=2"], "train"))
        straight, run = lines_of(folder), Path(folder) / "run"
        if done.returncode or len(straight) != 6:
            print(f"| straight through | failed: {last_words(done)} |", flush=True)
            return
        size = sum(file.stat().st_size for file in (run / "checkpoint-3").rglob("*") if file.is_file()) / 2**30
        print(f"| {options.gpus} GPUs, fsdp, straight through | | | {size:.1f} GiB | {time.time() - begun:.0f} |", flush=True)
        shutil.rmtree(run / "checkpoint-6")
        for gpus, sharding in ((1, "none"), (options.gpus, "fsdp")):
            shutil.rmtree(run / "model", ignore_errors=True)
            shutil.rmtree(run / "checkpoint-6", ignore_errors=True)
            begun = time.time()
            done = launch(
                gpus, *words_of(options, [*sets, f"train.sharding={sharding}", "output.keep_checkpoints=2"], "resume")
            )
            lines = lines_of(folder)
            if done.returncode or len(lines) != 6:
                print(f"| from step 3 on {gpus} | failed: {last_words(done)} |", flush=True)
                continue
            apart = [max(abs(a[k] / b[k] - 1) for a, b in zip(lines, straight, strict=True)) for k in ("loss", "grad_norm")]
            print(
                f"| from step 3 on {gpus}, {sharding} | {apart[0]:.1e} | {apart[1]:.1e} | | {time.time() - begun:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of any format")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--recipe", default="recipes/alpaca.yaml")
    parser.add_argument(
        "--variants", nargs="*", default=["bus", *list(VARIANTS)[:3], "resume"], choices=["bus", *VARIANTS, "resume"]
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/vicugna-bench-cache")
    parser.add_argument("--folder", help="where runs are written; resume needs about 35 GiB there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--child", choices=["probe", "train", "resume", "bus"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "bus":
        bus()
    elif options.child:
        child(options.recipe, options.set, options.child)
    else:
        if "bus" in options.variants:
            done = launch(options.gpus, "--data", options.data, "--child", "bus")
            print(
                "| collective | rate | |\n|---|---|---|\n" + (done.stdout if not done.returncode else last_words(done)),
                flush=True,
            )
        print(
            "| variant | tokens/s | of one GPU | utilisation | peak GiB | waiting | loss | whole, s |\n|" + "---|" * 8,
            flush=True,
        )
        for name in options.variants:
            if name in VARIANTS:
                measure(name, options)
        if "resume" in options.variants:
            print("\n| run | losses apart | norms apart | checkpoint | whole, s |\n|---|---|---|---|---|", flush=True)
            resume(options)


if __name__ == "__main__":
    main()
