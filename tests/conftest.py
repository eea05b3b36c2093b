"""Settings of every test: Hypothesis without deadlines (two cores are shared), and the same examples each time under CI.

The garbage collector rests while modules are imported, and leaves what they hold alone afterwards: torch and transformers bring a
million objects, and a run that frees its model asks for a full collection each time.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# what tests compile is not put into the user's cache
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "vicugna-tests-compiled"))
settings.register_profile("vicugna", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("vicugna")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
