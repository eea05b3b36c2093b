"""Tasks of lm-evaluation-harness on a model that is loaded as we load it: families, adapters and quantisation included.

The only module that imports ``lm_eval``, which is an extra: ``pip install 'vicugna[lmeval]'``.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft.errors import InputError, VerificationError
from sft.intervals import NORMAL
from sft.run.checks.estimates import Estimate, Measured, Quantity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CPU_BATCH = 8


@dataclass(frozen=True, slots=True)
class Tasks:
    """What the harness is asked.

    Attributes:
        names: of tasks or groups.
        folder: of task files beside the harness's own; None for those alone.
        shots: examples before each question; None as each task says.
        limit: questions of each task; None for all.
        chat: whether questions are written by the model's chat template.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    shots: int | None = None
    limit: int | None = None
    chat: bool = False

    def to_json(self) -> dict[str, Any]:
        folder = None if self.folder is None else str(self.folder)
        return {"tasks": list(self.names), "folder": folder, "shots": self.shots, "limit": self.limit, "chat": self.chat}


def refuse_tasks(tasks: Tasks) -> None:
    """Find and load tasks before any model is loaded.

    Raises:
        InputError: the harness is not installed, there is no such folder or task, or its data cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("--lm-eval needs lm-evaluation-harness: pip install 'vicugna[lmeval]'")
    if tasks.folder is not None and not tasks.folder.is_dir():
        raise InputError(f"--lm-eval-path {tasks.folder}: no such folder; give the one that holds the YAML files of your tasks")
    with _quiet():
        manager = _manager(tasks.folder)
        if missing := [name for name in tasks.names if not manager.match_tasks([name])]:
            where = "" if tasks.folder is None else f", nor in {tasks.folder}"
            raise InputError(
                f"--lm-eval: the harness has no task {', '.join(missing)}{where}; `lm-eval ls tasks` lists its own, --lm-eval-path adds yours"
            )
        try:
            manager.load(list(tasks.names))
        except Exception as error:  # task files and the hub library raise dozens of unrelated types
            first = (str(error) or repr(error)).splitlines()[0]
            raise InputError(f"--lm-eval {','.join(tasks.names)}: cannot be loaded: {type(error).__name__}: {first}") from error


def run_tasks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Tasks) -> tuple[Measured, dict[str, Any]]:
    """Run tasks on a loaded model.

    Returns:
        Figures by ``lm.TASK.METRIC`` (``lm.TASK.METRIC.FILTER`` for another filter than ``none``), question by question where the
        harness gives a number for each; and its own results, with the version of each task.

    Raises:
        VerificationError: the harness changed what the model says.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        before = _probe(model)
        size: int | str = "auto" if model.device.type == "cuda" else _CPU_BATCH
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=size)  # it may set a padding token
        if not torch.equal(before, _probe(model)):
            raise VerificationError(
                "lm-evaluation-harness tied weights of this model that are not tied; merge it first: sft merge"
            )
        found = simple_evaluate(
            model=wrapped,
            tasks=list(tasks.names),
            num_fewshot=tasks.shots,
            limit=tasks.limit,
            apply_chat_template=tasks.chat,
            task_manager=_manager(tasks.folder),
            bootstrap_iters=1_000,
            log_samples=True,
        )
    assert found is not None  # single process
    return _figures(found["results"], found["samples"]), {"results": found["results"], "versions": found["versions"]}


@lru_cache(maxsize=1)
def _manager(folder: Path | None) -> Any:
    """The index of all task files, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder))


@torch.no_grad()
def _probe(model: PreTrainedModel) -> torch.Tensor:
    training = model.training
    model.eval()
    try:
        rows = model.get_input_embeddings().weight.shape[0]
        ids = torch.arange(8, device=model.device)[None] % rows
        return model(input_ids=ids, use_cache=False).logits.clone()
    finally:
        model.train(training)


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness tells at length what it was given; its errors pass."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _figures(results: Mapping[str, Mapping[str, Any]], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Measured:
    quantities: dict[str, Quantity] = {}
    plain: dict[str, Estimate] = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            name = f"lm.{task}.{metric}" + ("" if chosen == "none" else f".{chosen}")
            single = _by_question(samples.get(task, ()), metric, chosen)
            if single is not None and math.isclose(float(single.mean()), value, rel_tol=1e-9, abs_tol=1e-12):
                share = bool(np.isin(single, (0.0, 1.0)).all())
                quantities[name] = Quantity(single, np.ones(len(single)), share)
            else:
                plain[name] = _with_error(float(value), values.get(f"{metric}_stderr,{chosen}"))
    return Measured(quantities, plain)


def _by_question(
    samples: Sequence[Mapping[str, Any]], metric: str, chosen: str
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """The metric of each question, in the order of the task; None where it is no number of its own."""
    own = sorted((one for one in samples if one.get("filter", "none") == chosen), key=lambda one: one["doc_id"])
    values = [one.get(metric) for one in own]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    return np.asarray(values, dtype=np.float64)


def _with_error(value: float, error: Any) -> Estimate:
    if not isinstance(error, int | float) or math.isnan(error):
        return Estimate(value)
    return Estimate(value, value - NORMAL * error, value + NORMAL * error)
