"""Self-Instruct's stage 4: what one reply's instances lose, and how inputs are varied.

Source: yizhongw/self-instruct, ``prepare_for_finetuning.py``, without its 13 prompt forms: how a row is put is the training template's.
All dice are given from outside, so a replay throws them alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from selfinstruct.records import Instance

_FIELD = re.compile(r"^[ \t]*([^\W\d_][\w ]{0,30})[:：][ \t]*", re.MULTILINE)


def tidy(instances: Sequence[Instance]) -> tuple[list[Instance], list[tuple[Instance, str]]]:
    """Instances of one task: those to keep in order, and those left out, each with a code.

    ``input_is_output``, ``empty_output``, ``ends_with_colon``, ``repeated`` for single ones; ``contradictory`` for all that are left
    if the same input (not empty) has two outputs.
    """
    kept: list[Instance] = []
    out: list[tuple[Instance, str]] = []
    for instance in instances:
        given, said = instance.input.strip(), instance.output.strip()
        code = ""
        if not said:
            code = "empty_output"
        elif given == said:
            code = "input_is_output"
        elif given.endswith((":", "：")) or said.endswith((":", "：")):
            code = "ends_with_colon"
        elif instance in kept:
            code = "repeated"
        if code:
            out.append((instance, code))
        else:
            kept.append(instance)
    outputs: dict[str, str] = {}
    for instance in kept:
        given = instance.input.strip()
        if given and outputs.setdefault(given, instance.output.strip()) != instance.output.strip():
            return [], out + [(instance, "contradictory") for instance in kept]
    return kept, out


def vary_input(text: str, dice: random.Random) -> str:
    """Format augmentation: drop the field name if the input has exactly one, and blank lines, each with probability one half."""
    names = _FIELD.findall(text)
    if len(set(names)) == 1 and dice.random() < 0.5:
        text = _FIELD.sub("", text).strip()
    if "\n\n" in text and dice.random() < 0.5:
        text = text.replace("\n\n", "\n")
    return text
