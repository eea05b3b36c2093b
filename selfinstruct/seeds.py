"""Seed tasks, and rows to start from: read whole, every fault at once with file and line.

::

    {"id": "seed_task_0", "name": "...", "instruction": "...", "instances": [{"input": "", "output": "..."}], "is_classification": false}
    {"instruction": "...", "input": "", "output": "..."}                        an Alpaca row, or a row of a dataset.jsonl of ours

The first is the format of Self-Instruct's ``seed_tasks.jsonl`` (Wang et al. 2023); its original file loads unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfinstruct.records import Instance, SeedTask
from sft.data.jsonl import RawRow, read_rows
from sft.errors import DataError

_MOST_FAULTS = 20


class _Fault(Exception):
    """What is wrong with one row."""


def read_seeds(path: str | Path, max_drop_share: float = 0.0) -> tuple[list[SeedTask], list[str]]:
    """Read seed tasks.

    Args:
        path: ``.jsonl`` in Self-Instruct's format, or Alpaca rows (also ``.json``, ``.parquet`` and compressed ones), which become
            seeds with one instance each.
        max_drop_share: share of the rows that may be unusable; they are left out.

    Returns:
        The tasks in file order, with ids that are unique, and one line for each row that was left out.

    Raises:
        DataError: no such file, no task in it, or more unusable rows: all of them, each with ``file:line`` and the key.
    """
    seeds: list[SeedTask] = []
    faults: list[str] = []
    places: dict[str, str] = {}
    for row in read_rows(path):
        try:
            seed = _seed(row, len(seeds))
            if seed.id in places:
                raise _Fault(f"id: {seed.id!r} is already the id of {places[seed.id]}; give every task its own")
        except _Fault as fault:
            faults.append(f"{row.where}: {fault}")
            continue
        places[seed.id] = row.where
        seeds.append(seed)
    if len(faults) > max_drop_share * (len(faults) + len(seeds)):
        more = f"\n... and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise DataError("\n".join(faults[:_MOST_FAULTS]) + more)
    if not seeds:
        raise DataError(f"{path}: no seed task in this file")
    return seeds, faults


def _seed(row: RawRow, index: int) -> SeedTask:
    if row.error is not None:
        raise _Fault(row.error)
    value = row.value
    if not isinstance(value, Mapping):
        raise _Fault("a seed task is an object with 'instruction' and 'instances'")
    instruction = _text(value, "instruction", required=True)
    if "instances" in value:
        instances = _instances(value["instances"])
    elif "output" in value:
        instances = (Instance(_text(value, "input"), _text(value, "output", required=True)),)
    else:
        raise _Fault("instances: is required: a list of {input, output} (an Alpaca row has 'output' in its place)")
    classification = value.get("is_classification", False)
    if not isinstance(classification, bool):
        raise _Fault(f"is_classification: must be true or false, got {classification!r}")
    return SeedTask(
        id=_text(value, "id") or f"row_{index}",
        name=_text(value, "name"),
        instruction=instruction,
        instances=instances,
        is_classification=classification,
    )


def _instances(value: Any) -> tuple[Instance, ...]:
    if not isinstance(value, list) or not value:
        raise _Fault("instances: must be a list of at least one {input, output}")
    out = []
    for i, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise _Fault(f"instances[{i}]: must be an object with 'input' and 'output'")
        out.append(Instance(_text(item, "input", f"instances[{i}]."), _text(item, "output", f"instances[{i}].", required=True)))
    return tuple(out)


def _text(value: Mapping[str, Any], key: str, prefix: str = "", required: bool = False) -> str:
    found = value.get(key, "")
    if not isinstance(found, str):
        raise _Fault(f"{prefix}{key}: must be text, got {type(found).__name__}")
    if required and not found.strip():
        raise _Fault(f"{prefix}{key}: is required and must not be blank")
    return found
