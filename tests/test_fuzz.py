"""A little of the fuzzer: no input of its first blocks lets anything escape, or breaks a law. ``benchmarks/fuzz.py`` does millions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_no_input_breaks_a_law() -> None:
    command = [sys.executable, "benchmarks/fuzz.py", "--count", "2000", "--hypothesis", "50"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith("2,200 inputs in all, ")
    assert found.stdout.splitlines()[-1].endswith(", 0 faults")
