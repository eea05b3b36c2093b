"""Where the time goes between the command and its first step: imports, rows, weights, checks, compilation. ``sft train`` itself.

``python benchmarks/first_step.py --data ROWS --variant lora_compiled [--base MODEL] [--set KEY=VALUE]``. A process of its own is started, as by
the command; spans are of the host, which waits for the GPU at the end of each.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from engine import VARIANTS, settings_of

Span = tuple[str, float, float]


class Spans:
    """Begin and end of named calls, in seconds since the process was started."""

    def __init__(self, begun: float) -> None:
        self.begun, self.found = begun, list[Span]()

    def now(self) -> float:
        """Seconds since the start, once the GPU has done what it was given."""
        import torch

        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.time() - self.begun

    def wrap(self, place: Any, name: str, called: str) -> None:
        """Time every call of ``place.name``."""
        inner: Callable[..., Any] = getattr(place, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.found.append((called, begin, self.now()))

        setattr(place, name, timed)


class Reached(Exception):
    """The first step was taken."""


def child(options: argparse.Namespace) -> None:
    """Run to the end of the first step and print the spans."""
    spans = Spans(options.begun)
    from sft import train
    from sft.engine.trainer import PlannedTrainer
    from sft.recipe import load_recipe

    spans.found.append(("imports", 0.0, spans.now()))
    whole = {
        "tokenizer_for": "tokenizer",
        "_prepare_once": "rows",
        "load_model": "weights",
        "_prove_isolation": "documents do not leak: checked",
        "_with_adapters": "adapters",
        "matmul_rate": "the card's matmul rate",
        "training_arguments": "trainer's arguments",
    }
    for name, called in whole.items():
        spans.wrap(train, name, called)
    spans.wrap(train.memory, "settle_run", "memory planner")
    spans.wrap(PlannedTrainer, "__init__", "trainer")
    spans.wrap(PlannedTrainer, "at_start", "before the first step")
    spans.wrap(PlannedTrainer, "get_batch_samples", "first batches")
    spans.wrap(PlannedTrainer, "training_step", "micro-batches of the first step")

    def end_step(this: Any, *args: Any, **kwargs: Any) -> None:
        spans.found.append(("first step taken", spans.now(), spans.now()))
        raise Reached

    PlannedTrainer._maybe_log_save_evaluate = end_step  # type: ignore[method-assign]  # on purpose
    with contextlib.suppress(Reached):
        train.run(load_recipe(options.recipe, options.set)[0], probe=True)
    until = 0.0
    for name, begin, end in spans.found:
        between = "" if begin - until < 0.2 else f"  ({begin - until:.1f} before it)"
        if end - begin >= 0.5 or between or name == "first step taken":
            print(f"SPAN {begin:7.1f} s + {end - begin:5.1f}  {name}{between}", flush=True)
        until = max(until, end)
    print(f"SPAN compiling: {compiling()}", flush=True)


def compiling() -> str:
    """Stages of torch.compile that took a second or more, each with how often it ran; the first holds the others."""
    from torch._dynamo.utils import compilation_time_metrics

    stages = sorted(((sum(times), len(times), name) for name, times in compilation_time_metrics.items()), reverse=True)
    return ", ".join(f"{name} {total:.1f} s in {count}" for total, count, name in stages if total >= 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of any format")
    parser.add_argument("--base", help="a model folder (of random_llama.py); adapters need one")
    parser.add_argument("--recipe", default="recipes/alpaca.yaml")
    parser.add_argument("--variant", default="lora_compiled", choices=list(VARIANTS))
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/vicugna-bench-cache")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps, options.log_every = 12, 1
    if options.begun is not None:
        child(options)
        return
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-") as folder:
        command = [sys.executable, __file__, "--data", options.data, "--recipe", options.recipe, f"--begun={time.time()}"]
        for item in settings_of(options.variant, options, folder):
            command += ["--set", item]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = [line.removeprefix("SPAN ") for line in done.stdout.splitlines() if line.startswith("SPAN ")]
    print("\n".join(lines) if lines else (done.stderr or done.stdout)[-2000:], flush=True)


if __name__ == "__main__":
    main()
