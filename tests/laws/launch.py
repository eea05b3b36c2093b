"""Starts processes that train together, and says what went wrong in which of their cases."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}


def faults_of(root: Path, cases: Sequence[str], processes: int = 2, start: str = "torchrun") -> dict[str, str]:
    """Run cases of :mod:`tests.laws.rank_cases`: what went wrong in each that failed. The cases behind it get a launch of their own.

    ``start="fork"`` imports once for all processes, where that is most of the time.
    """
    found: dict[str, str] = {}
    left = list(cases)
    while left:
        said = launch(processes, start, "-m", "tests.laws.rank_cases", str(root), *left)
        through = [name for name in left if all((root / f"{name}.{rank}.passed").exists() for rank in range(processes))]
        if said is None and through == left:
            break
        failed = next((name for name in left if name not in through), left[-1])  # the last one if the end went wrong
        found[failed] = said or "one rank is not through with it, and the launch says nothing"
        left = left[left.index(failed) + 1 :]
    return found


def launch(processes: int, start: str, *command: str) -> str | None:
    """Start processes; the end of what they said if they failed."""
    port, path = str(free_port()), os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | QUIET | {"PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if start == "torchrun":
        torchrun = ("-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}")
        words = [sys.executable, *torchrun, *command]
    else:
        words = [sys.executable, *command[:2], "--fork", str(processes), *command[2:]]
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=240)
    except subprocess.TimeoutExpired as late:
        return f"not through after {late.timeout} s: {str(late.stderr)[-3000:]}"
    return done.stderr[-5000:] if done.returncode else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
