"""This process among those of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from sft.model.load import device_for_run


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: from 0.
        world: processes.
    """

    rank: int
    world: int

    @property
    def main(self) -> bool:
        return self.rank == 0

    @staticmethod
    def join(*, offload: bool = False) -> Ranks:
        """Join the process group if torchrun started us; one process needs none. ``offload``: shards lie in main memory."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return Ranks(0, 1)
        from accelerate import PartialState

        if offload and torch.cuda.is_available():  # the norm of gradients that lie on the CPU is summed there; NCCL cannot
            torch.cuda.set_device(device_for_run())
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
        state = PartialState(cpu=not torch.cuda.is_available())
        return Ranks(state.process_index, state.num_processes)

    def wait(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()
