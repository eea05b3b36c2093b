"""Sections of a recipe about the machine: what a GPU may hold, and what ``sft plan`` reckons with."""

from __future__ import annotations

import re

import pydantic
from pydantic import Field

from sft.config import Section

_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?GiB")


class MemorySection(Section):
    budget: str | None = None
    """Most memory of one GPU that tensors may take, such as ``15GiB``; the CUDA context (about 0.6 GiB) comes on top. A run that asks torch for
    more ends with an out-of-memory error. Null: what is free on the GPU, less 3 %."""

    @pydantic.field_validator("budget", mode="before")
    @classmethod
    def _is_a_size(cls, value: object) -> object:
        fine = isinstance(value, str) and _SIZE.fullmatch(value) and float(value.removesuffix("GiB")) > 0
        if value is not None and not fine:
            raise ValueError(f"must be GiB above 0, written as 15GiB or 7.5GiB, got {value}")
        return value

    @property
    def budget_bytes(self) -> int | None:
        """``budget`` in bytes."""
        return None if self.budget is None else int(float(self.budget.removesuffix("GiB")) * 2**30)


class PlanSection(Section):
    gpus: int = Field(default=1, ge=1)
    """GPUs to plan for."""
    gpu_memory_gib: float = Field(default=80.0, gt=0)
    """Memory of one GPU."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Over all GPUs; null leaves time, money and energy out unless probed."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0)
    """Money per GPU and hour, in whatever currency you pay."""
    watts_per_gpu: float = Field(default=400.0, gt=0)
    """Power of one GPU under load."""
    pue: float = Field(default=1.1, ge=1.0)
    """Data centre power over machine power."""
    grid_kg_per_kwh: float = Field(default=0.385, ge=0.0)
    """CO2 equivalent per kWh (0.385 is the figure of the LLaMA paper)."""
