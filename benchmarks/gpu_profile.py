"""Where the time of a step goes: products, attention, what stands between, optimiser, copies, idle. ``sft train`` itself; one GPU.

``python benchmarks/gpu_profile.py --data ROWS --variant full_float8 [--base MODEL] [--steps 8] [--top 20] [--set KEY=VALUE]``. The last step is
profiled by torch. A kernel is put down by its name, or as the optimiser's if it ran between two synchronisations around its step. Idle
is wall time less that in which any kernel ran; the two synchronisations are in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from typing import Any

import torch
from engine import VARIANTS, settings_of

MARK = "vicugna_optimiser"
KINDS = {
    "attention": ("flash", "fmha", "sdpa", "cudnn"),
    "products": ("gemm", "nvjet", "cutlass", "splitk", "scaled_mm"),
    "copies": ("memcpy", "memset"),
    "fused elementwise": ("triton",),
}
Kernel = tuple[str, float, float]  # name, begin, end in microseconds


def kind_of(name: str) -> str:
    """``attention``, ``products``, ``copies``, ``fused elementwise`` or ``other`` by a kernel's name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "other")


def busy(kernels: list[Kernel]) -> float:
    """Microseconds in which at least one of them ran."""
    total, until = 0.0, float("-inf")
    for _, begin, end in sorted(kernels, key=lambda kernel: kernel[1]):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def shares(kernels: list[Kernel], optimiser: tuple[float, float], wall: float) -> dict[str, float]:
    """Share of the wall time by kind, the idle part last. What ran side by side counts twice.

    Args:
        kernels: of one step.
        optimiser: begin and end of its step; what ran within is its own.
        wall: of the step, microseconds.
    """
    spent: Counter[str] = Counter()
    for name, begin, end in kernels:
        spent["optimiser" if optimiser[0] <= begin <= optimiser[1] else kind_of(name)] += end - begin
    return {kind: time_ / wall for kind, time_ in spent.most_common()} | {"idle": 1 - busy(kernels) / wall}


class Profiled:
    """Profiles one step of a run. Installed on the trainer's class before the run starts."""

    def __init__(self, step: int) -> None:
        self.step, self.profile, self.wall = step, None, 0.0
        self._begun = 0.0

    def install(self, trainer: type[Any]) -> None:
        """Wrap the methods in which a step begins and ends."""
        fetch, end = trainer.get_batch_samples, trainer._maybe_log_save_evaluate

        def begin_step(this: Any, *args: Any, **kwargs: Any) -> Any:
            if this.state.global_step + 1 == self.step and self.profile is None:
                self._start(this)
            return fetch(this, *args, **kwargs)

        def end_step(this: Any, *args: Any, **kwargs: Any) -> None:
            if this.state.global_step == self.step and self._begun:
                self._stop()
            end(this, *args, **kwargs)

        trainer.get_batch_samples, trainer._maybe_log_save_evaluate = begin_step, end_step

    def _start(self, trainer: Any) -> None:
        optimizer, taken = trainer.optimizer, trainer.optimizer.step

        def step(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.synchronize()
            with torch.profiler.record_function(MARK):
                out = taken(*args, **kwargs)
                torch.cuda.synchronize()
            return out

        optimizer.step = step
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self.profile = torch.profiler.profile(activities=activities)
        self.profile.__enter__()
        self._begun = time.perf_counter()

    def _stop(self) -> None:
        torch.cuda.synchronize()
        self.wall, self._begun = (time.perf_counter() - self._begun) * 1e6, 0.0
        assert self.profile is not None
        self.profile.__exit__(None, None, None)

    def kernels(self) -> tuple[list[Kernel], tuple[float, float]]:
        """What ran on the GPU, and when the optimiser did."""
        assert self.profile is not None
        events, gpu = self.profile.events() or [], torch.autograd.DeviceType.CUDA
        ours = [e for e in events if e.name == MARK and e.device_type != gpu]
        # torch marks the optimiser's step on the GPU's line of time as well, with the gaps between its kernels in it
        kernels = [e for e in events if e.device_type == gpu and e.name != MARK and not e.name.startswith("Optimizer.step#")]
        ran = [(e.name, e.time_range.start, e.time_range.end) for e in kernels]
        return ran, (ours[0].time_range.start, ours[0].time_range.end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of any format")
    parser.add_argument("--base", help="a model folder (of random_llama.py); adapters need one")
    parser.add_argument("--recipe", default="recipes/alpaca.yaml")
    parser.add_argument("--variant", default="full_stochastic_compiled", choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--top", type=int, default=20, help="kernels to list")
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/vicugna-bench-cache")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.log_every = 1
    if not torch.cuda.is_available():
        raise SystemExit("gpu_profile.py needs a CUDA GPU")
    from sft.engine.trainer import PlannedTrainer
    from sft.recipe import load_recipe
    from sft.train import run

    profiled = Profiled(options.steps)
    profiled.install(PlannedTrainer)
    with tempfile.TemporaryDirectory(prefix="vicugna-bench-") as folder:
        run(load_recipe(options.recipe, settings_of(options.variant, options, folder))[0], probe=True)
    kernels, optimiser = profiled.kernels()
    print(f"{torch.cuda.get_device_name()}, {options.variant}: step {options.steps} took {profiled.wall / 1e3:.1f} ms")
    print(", ".join(f"{kind} {share:.1%}" for kind, share in shares(kernels, optimiser, profiled.wall).items()))
    spent, count = Counter[str](), Counter[str]()
    for name, begin, end in kernels:
        spent[name] += end - begin
        count[name] += 1
    for name, time_ in spent.most_common(options.top):
        print(f"{time_ / profiled.wall:7.2%} {time_ / 1e3:9.2f} ms x {count[name]:5}  {name[:110]}")


if __name__ == "__main__":
    main()
