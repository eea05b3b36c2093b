"""The micro-batches of a planned run, by running number."""

from __future__ import annotations

from sft.data.collate import Batch, flat_batch, padded_batch
from sft.data.packing import StepPlan
from sft.data.store import RowStore


class PlannedBatches:
    """The micro-batches of a whole run in the order in which ranks take them: step, then micro-batch, then rank.

    trl insists on a ``datasets.Dataset``, so it gets the running numbers and this is its collator.
    """

    def __init__(self, store: RowStore, plan: StepPlan, pad_id: int | None, *, compiled: bool = False) -> None:
        self.store, self.plan, self.pad_id = store, plan, pad_id
        self.documents = plan.most_documents() + compiled if pad_id is None else None  # compiled: one more fills the row up
        # Kernels like rows of a multiple of 128 tokens, and what never changes is compiled once.
        self.multiple = 128 if compiled else 1
        self.longest = max(int(plan.lengths.max()), self.multiple) if compiled else 0

    def __len__(self) -> int:
        return len(self.plan.steps) * self.plan.accumulation * self.plan.world

    def __call__(self, numbers: list[dict[str, int]]) -> Batch:
        """Build the micro-batch with one running number."""
        (item,) = numbers
        return self[item["number"]]

    def __getitem__(self, index: int) -> Batch:
        each = self.plan.accumulation * self.plan.world
        step, rest = divmod(index, each)
        micro, rank = divmod(rest, self.plan.world)
        rows = [self.store.row(int(r)) for r in self.plan.micro_batch(step, micro, rank)]
        tokens = self.plan.trained_tokens(step)
        if self.pad_id is not None:
            return padded_batch(rows, tokens, self.pad_id, self.store.learnt_as)
        sizes = {"multiple": self.multiple, "longest": self.longest}
        return flat_batch(rows, tokens, self.documents, **sizes, learnt_as=self.store.learnt_as)
