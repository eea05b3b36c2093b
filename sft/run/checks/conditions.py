"""``--require``: what a figure must be for a model to pass, such as ``stop_rate>=0.95`` or ``change.loss.wiki.high<=0.05``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.errors import ConditionError, InputError

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_WRITTEN = re.compile(r"\s*(.*?)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Condition:
    """A bound of one figure.

    Attributes:
        text: as it was written.
        name: of the figure, ``base.`` or ``change.`` in front, ``.low`` or ``.high`` behind it.
        sign: ``>=``, ``<=``, ``>`` or ``<``.
        bound: what it is compared with.
    """

    text: str
    name: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a figure keeps it; what could not be measured does not."""
        return bool(_OPERATORS[self.sign](value, self.bound))


def read_condition(text: str) -> Condition:
    """A condition as it is written on the command line.

    Raises:
        InputError: no name, no sign or no number.
    """
    found = _WRITTEN.fullmatch(text)
    try:
        bound = float(found[3]) if found else math.nan
    except ValueError:
        bound = math.nan
    if found is None or not found[1] or math.isnan(bound):
        raise InputError(f"--require: {text!r} is no condition; write NAME>=NUMBER (or <=, >, <), such as stop_rate>=0.95")
    return Condition(text.strip(), found[1], found[2], bound)


def refuse_unmeasured(conditions: Sequence[Condition], measured: Sequence[str], base: bool) -> None:
    """Before anything is measured: refuse conditions on figures that nothing will give.

    Args:
        conditions: read.
        measured: names of figures that will be there; one that ends with ``.`` stands for all that begin so.
        base: whether there is a base to compare with.

    Raises:
        InputError: the first of them, with what would be measured.
    """
    for condition in conditions:
        name = condition.name
        for prefix in ("base.", "change."):
            if name.startswith(prefix):
                if not base:
                    raise InputError(f"--require: {condition.text}: there is no base to compare with; name one with --base")
                name = name.removeprefix(prefix)
        name = re.sub(r"\.(low|high)$", "", name)
        if not any(name == known or (known.endswith(".") and name.startswith(known)) for known in measured):
            raise InputError(
                f"--require: {condition.text}: {name} is not measured here; what is: {', '.join(measured) or 'nothing'}. "
                "--generate, --on and --lm-eval measure more"
            )


def judge(conditions: Iterable[Condition], figures: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each condition with what was measured, and whether it holds.

    Raises:
        InputError: a figure that was not measured after all.
    """
    out = []
    for condition in conditions:
        if condition.name not in figures:
            raise InputError(f"--require: {condition.text}: no such figure was measured; there are {', '.join(figures)}")
        value = figures[condition.name]
        measured = None if math.isnan(value) else value
        out.append({"condition": condition.text, "value": measured, "holds": condition.holds(value)})
    return out


def refuse_failed(judged: Sequence[Mapping[str, Any]]) -> None:
    """The exit status of a gate.

    Raises:
        ConditionError: every condition that does not hold.
    """
    failed = [one for one in judged if not one["holds"]]
    if failed:
        lines = (f"--require {one['condition']}: not met, measured {_number(one['value'])}" for one in failed)
        raise ConditionError("\n".join(lines))


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"
