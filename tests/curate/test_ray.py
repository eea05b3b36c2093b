"""A curation on a Ray cluster of two workers: the bytes, the messages and the going-on of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sft.curate import ray_workers
from sft.curate.parts import Batch
from sft.curate.ray_workers import packed, unpacked
from sft.curate.slices import Slice
from sft.data.jsonl import RawRow
from tests.curate.conftest import ROOT, told

RECIPE = str(ROOT / "recipes" / "data_quickstart.yaml")
SMALL = "output.rows_per_part=7"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed (79 MB, an extra): pip install -e '.[ray]' runs this test",
)


@pytest.mark.parametrize(
    "batch",
    [
        Batch(3, "talks", "key", rows=(RawRow("a:1", {"id": 1.5, "text": "中\ud800"}), RawRow("a:2", None, "invalid_json: x"))),
        Batch(4, "talks", "", slices=(Slice("a", 0, 1, 2, 3),), made=("code", "talks", ["sharegpt", {}])),
        Batch(5, "talks", "key", path=Path("clean/00005.jsonl"), leave_out={2: ("same_id", "repeats x")}, rename={7: "~1"}),
    ],
)
def test_a_batch_travels_as_json(batch: Batch) -> None:
    assert unpacked(json.loads(json.dumps(packed(batch)))) == batch


def test_rows_that_are_handed_over_are_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_INLINE", 4)
    full = [Batch(i, "s", "k", rows=(RawRow("a:1", 1),) * 3) for i in range(5)]
    assert [[batch.index for batch in some] for some in ray_workers._windows(full)] == [[0, 1], [2, 3], [4]]
    described = [Batch(i, "s", "k", path=Path("p")) for i in range(5)]
    assert [len(some) for some in ray_workers._windows(described)] == [5]


def _run(*settings: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """``sft data run`` in a process of its own: a cluster, its environment and its warnings end with it."""
    sets = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "sft", "data", "run", RECIPE, *sets]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False, **more)


def _on_ray(folder: Path) -> tuple[str, ...]:
    return f"output.dir={folder}", SMALL, "output.ray=local", "output.workers=2"


def test_without_ray_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError")
    found = _run(*_on_ray(tmp_path / "run"), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].endswith(
        "output.ray needs Ray: pip install 'vicugna[ray]', on every machine of the cluster"
    )
    assert "Traceback" not in found.stderr


@needs_ray
@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "127.0.0.1:1",
            r"no Ray cluster at '127\.0\.0\.1:1' \(.*Connection refused\); start one with `ray start --head`, or write",
        ),
        ("nonsense", r"no Ray cluster at 'nonsense' \(Invalid address format: nonsense\); start one"),
        ("ray://head:10001", r"ray:// is for machines outside a cluster, which do not see its files; start this on one inside"),
    ],
)
def test_where_there_is_no_cluster_the_message_says_so(address: str, message: str) -> None:
    found = _run(f"output.ray={address}")
    assert found.returncode == 2
    assert re.search(rf"output\.ray: {message}", found.stderr.splitlines()[-1])


def _files(folder: Path) -> dict[str, bytes]:
    """Everything that a run writes, but for what tells where and how long it ran."""
    apart = {"run.json", "recipe.yaml", "report.html"}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if name not in apart}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert _run(f"output.dir={folder}", SMALL).returncode == 0
    return folder


@needs_ray
@pytest.mark.slow
def test_every_byte_is_that_of_one_process_also_after_a_kill(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped = subprocess.Popen(
        [sys.executable, "-m", "sft", "data", "run", RECIPE, *(w for s in _on_ray(folder) for w in ("--set", s))],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not (folder / "clean" / "00003.json").exists():
        assert time.monotonic() < until, "no fourth part after two minutes"
        assert stopped.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    stopped.send_signal(signal.SIGKILL)
    stopped.wait()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "clean").glob("0*.json")}
    assert folder / "clean" / "00003.json" in kept

    found = _run(*_on_ray(folder))
    assert found.returncode == 0, found.stderr
    for path in folder.rglob(".*.tmp"):
        path.unlink()  # what a kill leaves of a part that was being written
    assert _files(folder) == _files(straight)
    assert told(folder) == told(straight)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    parts = json.loads((folder / "run.json").read_text())["parts"]
    assert parts["clean"][0] == 11
    assert parts["clean"][1] >= len(kept)
    assert [line for line in found.stderr.splitlines() if "rows/s" not in line and "rows [" not in line and line.strip()] == []


@needs_ray
@pytest.mark.slow
def test_a_refusal_in_a_worker_reads_as_in_one_process(tmp_path: Path) -> None:
    error = ("split.overflow=error", "dedup=null")
    here = _run(f"output.dir={tmp_path / 'here'}", SMALL, *error)
    there = _run(*_on_ray(tmp_path / "there"), *error)
    assert (here.returncode, there.returncode) == (2, 2)
    assert there.stderr.splitlines()[-1] == here.stderr.splitlines()[-1]
    assert "tokens alone; split.max_length is 256" in here.stderr
    assert "Traceback" not in there.stderr
