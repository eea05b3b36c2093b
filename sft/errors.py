"""Every exception that Vicugna raises on purpose.

::

    VicugnaError                 exit code
    ├── InputError               2   something the user gave us cannot be used
    │   ├── RecipeError          2   a recipe has faults (all of them, each with file and line)
    │   ├── DataError            2   rows cannot be read, or too many were dropped
    │   ├── TemplateError        2   a chat template cannot render or cannot be trusted
    │   ├── TokenizerError       2   a tokenizer is unusable or disagrees with the model
    │   ├── ModelError           2   a model folder, adapter or quantisation cannot be used
    │   └── ResumeError          2   a checkpoint does not belong to this recipe, data or template
    ├── TeacherError             3   a teacher API failed for good, or the budget is spent
    └── RunError                 1   a run that was sound at the start went wrong
        ├── IsolationError       1   documents of one flat row can see each other
        ├── NonFiniteError       1   a loss or gradient is NaN or infinite
        ├── VerificationError    1   what was written differs from what was trained
        └── ConditionError       1   a figure of an evaluation misses what --require asks of it

Anything else that escapes is a bug, and also exits with 1, with its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class VicugnaError(Exception):
    """Base of the tree above. The message says what is wrong, where, and what to change."""

    exit_code = 1


class InputError(VicugnaError):
    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a recipe.

    Attributes:
        where: ``file:line`` of the value (or of its section), or ``--set`` for an override.
        key: the whole dotted key, such as ``train.learning_rate``; empty for the file itself.
        message: what is wrong and what to write instead.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class RecipeError(InputError):
    """All faults of one recipe, at once.

    Attributes:
        faults: the faults in file order.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class DataError(InputError):
    pass


class TemplateError(InputError):
    pass


class TokenizerError(InputError):
    pass


class ModelError(InputError):
    pass


class ResumeError(InputError):
    pass


class TeacherError(VicugnaError):
    exit_code = 3


class RunError(VicugnaError):
    exit_code = 1


class IsolationError(RunError):
    pass


class NonFiniteError(RunError):
    pass


class VerificationError(RunError):
    pass


class ConditionError(RunError):
    pass
