"""The dynamic loss scale of float16, where it can be seen, and where it ends.

float16 holds nothing below 6e-8, so the loss is multiplied before its gradients are made and they are divided before the step
(Micikevicius et al. 2018). torch's scaler halves the scale at an overflow, leaving that step out, and doubles it after ``growth_interval``
steps without one. What it does not do: say so, and stop when there is nothing left to halve, as OPT's training did by hand.
"""

from __future__ import annotations

from typing import Any

from sft.errors import NonFiniteError
from sft.recipe import LossScaleSection


class LossScale:
    """Watches a gradient scaler of torch.

    Args:
        scaler: of accelerate; not used yet.
        section: of the recipe.

    Attributes:
        steps_skipped: steps left out because a gradient overflowed.
    """

    def __init__(self, scaler: Any, section: LossScaleSection) -> None:
        self._scaler, self._floor = scaler, section.floor
        growth = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": section.growth_interval, "_growth_tracker": 0}
        scaler.load_state_dict({"scale": section.start, **growth})
        self._last = section.start
        self.steps_skipped = 0

    def resumed(self, steps_skipped: int) -> None:
        """Go on with the scale that a checkpoint has put into the scaler."""
        self._last, self.steps_skipped = self._scaler.get_scale(), steps_skipped

    def after_step(self, step: int) -> None:
        """Look at the scale behind the optimiser's step. Looking twice counts once.

        Args:
            step: counted from 1.

        Raises:
            NonFiniteError: it fell below the floor.
        """
        scale = self._scaler.get_scale()
        self.steps_skipped += scale < self._last
        self._last = scale
        if scale < self._floor:
            raise NonFiniteError(
                f"step {step}: the loss scale fell to {scale:g}, below train.loss_scale.floor ({self._floor:g}); {self.steps_skipped} steps "
                "overflowed and changed no weight. Lower train.learning_rate, or use bfloat16 or float32 (model.compute_dtype)"
            )

    def figures(self) -> dict[str, float]:
        """For a record: the scale of the next step, and the steps left out so far."""
        return {"loss_scale": self._last, "steps_skipped": self.steps_skipped}
