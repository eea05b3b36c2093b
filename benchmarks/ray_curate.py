"""A curation by one process, by two, and by two workers of a Ray cluster on this machine: the same bytes? how fast? after a kill?

``python benchmarks/ray_curate.py DUMP.jsonl --tokenizer FOLDER [--workers 2] [--rows-per-part 500] [--keep FOLDER]``; the dump is of
``sharegpt_dump.py`` or your own, one conversation a line. The recipe is ``recipes/sharegpt.yaml`` with near duplicates looked for. Each run
is ``sft data run`` in processes of its own: wall time from start to end, CPU time of the driver, of those that work and of Ray itself, and
wall time of each stage with the start of its workers. The last run is killed once half of the cleaned parts are there, and started again.
Every file of every run must be that of one process, but for ``run.json``, ``recipe.yaml`` and ``report.html``, which say where it ran.

Then what docs/scale.md counts with, in CPU seconds of one process: each stage once its libraries are loaded, and what one process does
alone wherever the stages run (hashes of the sources, the decision about duplicates, the mix).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import psutil

from sft.curate import duplicates, pipeline
from sft.curate.mixing import write_mix
from sft.curate.parts import file_digest, part_path
from sft.curate.recipe import CurateRecipe, load_curate_recipe
from sft.curate.slices import count, pieces_of

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "sharegpt.yaml"
APART = {"run.json", "recipe.yaml", "report.html"}
T = TypeVar("T")


def settings(options: argparse.Namespace, folder: Path, how: Mapping[str, Any]) -> list[str]:
    """What the recipe is given."""
    return [
        f"sources=[{{path: {options.dump}, format: sharegpt, name: dump}}]",
        "dedup={near: {threshold: 0.8}}",
        f"split.model={{name_or_path: {options.tokenizer}}}",
        f"output={json.dumps({'dir': str(folder), 'rows_per_part': options.rows_per_part, **how})}",
    ]


def command(sets: list[str]) -> list[str]:
    return [sys.executable, "-m", "sft", "data", "run", str(RECIPE), *(word for each in sets for word in ("--set", each))]


def files(folder: Path) -> dict[str, str]:
    """Hashes of all that a run wrote."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: file_digest(path) for name, path in paths.items() if name not in APART and not name.endswith(".tmp")}


def cpu_seconds(running: subprocess.Popen[bytes]) -> dict[str, float]:
    """Of a process, of those that it started to work, and of Ray's own, until it ends; the last moment of each may be missed."""
    seen: dict[int, tuple[str, float]] = {}
    root = psutil.Process(running.pid)
    while running.poll() is None:
        with contextlib.suppress(psutil.Error):
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    seen[process.pid] = (kind_of(process, running.pid), sum(process.cpu_times()[:2]))
        time.sleep(0.2)
    total: dict[str, float] = {}
    for what, seconds in seen.values():
        total[what] = total.get(what, 0.0) + seconds
    return total


def kind_of(process: psutil.Process, driver: int) -> str:
    """What a process is for. Ray's workers name themselves after what they do."""
    if process.pid == driver:
        return "driver"
    line = " ".join(process.cmdline())
    if "spawn_main" in line or line.startswith("ray::Map"):
        return "workers"
    return "Ray itself" if "ray" in line else "other"


def run(sets: list[str], folder: Path) -> None:
    """A whole run; prints its times."""
    begun = time.monotonic()
    running = subprocess.Popen(command(sets), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    spent = cpu_seconds(running)
    wall = time.monotonic() - begun
    assert running.returncode == 0, running.returncode
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    stages = [
        f"{name} {seconds:.1f} s"
        + (f" ({about['fresh'][name] / seconds / 1e6:.1f} MB/s)" if about["fresh"][name] else "")
        + f", {about['parts'][name][1]} of {about['parts'][name][0]} parts as they stood"
        for name, seconds in about["seconds"].items()
    ]
    cpu = ", ".join(f"{seconds:.1f} {what}" for what, seconds in spent.items())
    print(f"{folder.name}: {wall:.1f} s, CPU s: {cpu}; " + "; ".join(stages), flush=True)


def kill(sets: list[str], folder: Path, parts: int) -> None:
    """Start a run and kill it once so many parts are cleaned."""
    running = subprocess.Popen(command(sets), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while len(list((folder / "clean").glob("0*.json"))) < parts:
        assert running.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    print(f"{folder.name}: killed with {len(list((folder / 'clean').glob('0*.json')))} parts cleaned", flush=True)


def timed(what: str, amount: float, unit: str, work: Callable[[], T]) -> T:
    """CPU time of this process for something."""
    begun = time.process_time()
    value = work()
    seconds = time.process_time() - begun
    print(f"{what}: {seconds:.2f} CPU s, {amount / seconds:,.1f} {unit}/s", flush=True)
    return value


def stages(recipe: CurateRecipe, home: Path) -> None:
    """CPU time of each stage in this process."""
    for name, limit in (("warm", 50), ("stages", None)):  # the first loads libraries and compiles
        source = recipe.sources[0].model_copy(update={"limit": limit})
        output = recipe.output.model_copy(update={"dir": str(home / name)})
        with mock.patch.object(pipeline.time, "monotonic", time.process_time):
            done = pipeline.curate(recipe.model_copy(update={"sources": (source,), "output": output}), progress=False)
    read = done.stages["clean"].bytes_in
    for name, seconds in done.seconds.items():
        own = f"{done.fresh[name] / seconds / 1e6:.2f} MB/s of its own, " if done.fresh[name] else ""
        print(f"stage {name}: {seconds:.2f} CPU s, {own}{read / seconds / 1e6:.2f} MB/s of what was read", flush=True)


def alone(recipe: CurateRecipe, folder: Path, size: int) -> None:
    """What one process does in every case."""
    pieces = pieces_of(recipe.sources[0]) or []
    counted = timed("rows counted for slices", size / 1e6, "MB", lambda: [count(piece) for piece in pieces])
    timed("sha256 of the source", size / 1e6, "MB", lambda: file_digest(Path(str(recipe.sources[0].path))))
    run_json = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    parts, rows = run_json["parts"]["clean"][0], run_json["stages"]["clean"]["rows_out"]
    assert recipe.dedup is not None
    section = recipe.dedup
    duplicates.decide(section, folder / "signatures", 1)  # compiles
    timed("signatures read, and the decision", rows, "rows", lambda: duplicates.decide(section, folder / "signatures", parts))
    last = run_json["stages"]["split"]["rows_out"]
    paths = [(part_path(folder / "split", index), "dump") for index in range(parts)]
    mixed = recipe.model_copy(update={"identity": None})
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        timed(f"{last:,} rows mixed", last, "rows", lambda: write_mix(mixed, Path(out), paths))
    print(f"{sum(piece.rows for piece in counted):,} rows of {size / 1e6:,.1f} MB; bytes of the stages, for each row read:")
    for name in ("clean", "signatures", "dedup", "split"):
        held = {ending: sum(p.stat().st_size for p in (folder / name).glob(f"0*{ending}")) for ending in (".jsonl", ".json")}
        read = run_json["stages"]["clean"]["rows_in"]
        print(f"  {name}: rows {held['.jsonl'] / read:,.0f}, reports {held['.json'] / read:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows-per-part", type=int, default=500)
    parser.add_argument("--keep", type=Path, help="folder for the runs; else they are removed")
    options = parser.parse_args()
    options.dump = options.dump.absolute()
    size = options.dump.stat().st_size
    with tempfile.TemporaryDirectory() as made:
        home = options.keep or Path(made)
        ray = {"workers": options.workers, "ray": "local"}
        ways = {"one process": {"workers": 1}, "processes": {"workers": options.workers}, "ray": ray, "ray killed": ray}
        for name, how in ways.items():
            sets = settings(options, home / name, how)
            if name == "ray killed":
                kill(sets, home / name, len(list((home / "ray" / "clean").glob("0*.json"))) // 2)
            run(sets, home / name)
            wanted = files(home / "one process")
            found = files(home / name)
            different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            print(
                f"{name}: {len(found)} files, {len(different)} of them not as one process wrote them {different[:5]}",
                flush=True,
            )
        recipe, _ = load_curate_recipe(RECIPE, settings(options, home / "one process", {"workers": 1}))
        stages(recipe, home)
        alone(recipe, home / "one process", size)


if __name__ == "__main__":
    main()
