"""From recipe to job: seeds and prompts read, strategy and judge made, and what the data depend on put into words."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfinstruct.filters.languages import language
from selfinstruct.judging import make_judge
from selfinstruct.loop import Job
from selfinstruct.recipe import Recipe, values
from selfinstruct.records import SeedTask, digest
from selfinstruct.seeds import read_seeds
from selfinstruct.store import TARGET
from selfinstruct.strategies import make_strategy
from selfinstruct.strategies.base import Asking
from selfinstruct.strategies.sections import AlpacaSection
from sft.errors import DataError, ResumeError

FORMAT = 2
"""Of the rows and candidates: raised when the same recipe and ledger would give other bytes."""
# Values on which no byte of the data depends.
_FREE = (
    *("output.dir", "output.formats", "output.licence", "output.stall_rounds", "output.max_rounds", "seeds.path"),
    *("budget.", "teacher.endpoints", "teacher.retries", "teacher.batch", "teacher.replay"),
)
# Values that decide what is asked: with others a ledger does not answer.
_ASKED = ("seed", "strategy.", "teacher.")
_PACKAGES = ("vicugna", "openai", "rapidfuzz", "numba", "numpy")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe, ready to run.

    Attributes:
        job: for the loop.
        identity: what the data depend on, in words; ``job.identity`` is its digest.
        dropped_seeds: one line for each row of the seeds file that could not be used.
        languages: of the seeds' instructions, most frequent first.
    """

    recipe: Recipe
    job: Job
    identity: dict[str, Any]
    dropped_seeds: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)


def prepare(recipe: Recipe) -> Prepared:
    """Read what the recipe names and make what it describes; asks nobody.

    Raises:
        InputError: seeds, prompts or evaluation sets that cannot be used.
    """
    seeds, dropped = read_seeds(recipe.seeds.path, recipe.seeds.max_drop_share)
    asking = Asking(recipe.teacher.model, recipe.teacher.kind, recipe.teacher.sampling.to_sampling(), recipe.seed)
    strategy = make_strategy(recipe.strategy, asking, seeds)
    judge = make_judge(recipe, asking, seeds)
    identity = {
        "format": FORMAT,
        "recipe": {key: value for key, value in values(recipe).items() if not key.startswith(_FREE)},
        "seeds": file_digest(recipe.seeds.path),
        "prompts": strategy.prompts() | judge.prompts(),
        "evaluation_sets": {path: file_digest(path) for path in judge.files()},
    }
    out = recipe.output
    job = Job(seeds, strategy, judge, out.rows, digest(identity), out.max_rounds, out.stall_rounds)
    spoken = Counter(language(seed.instruction) for seed in seeds)
    return Prepared(recipe, job, identity, dropped, [name for name, _ in spoken.most_common() if name != "und"])


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def refuse_other_questions(old: Mapping[str, Any], prepared: Prepared, place: Path) -> None:
    """Refuse to go on in a run directory whose ledger answers other questions than this recipe asks.

    Filters and the number of rows may change where accepted rows are never shown to the teacher: the ledger then answers all the same.

    Raises:
        ResumeError: what changed, one line each.
    """
    new = prepared.identity
    fed_back = not isinstance(prepared.recipe.strategy, AlpacaSection)
    asked = (*_ASKED, "filters") if fed_back else _ASKED
    before, after = ({k: v for k, v in side["recipe"].items() if k.startswith(asked)} for side in (old, new))
    changed = [
        f"recipe: {key} was {before.get(key, '(absent)')!r}, is {after.get(key, '(absent)')!r}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    if old["seeds"] != new["seeds"]:
        changed.append("seeds: the bytes of the file changed")
    for name in sorted({*old["prompts"], *new["prompts"]}):
        if old["prompts"].get(name) != new["prompts"].get(name):
            changed.append(f"prompt: {name} changed")
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        hint = "; with other filters, selfinstruct replay judges what was paid for again" if fed_back else ""
        raise ResumeError(
            f"{place}: the ledger here answers other questions, and this recipe would pay for new ones:\n{listed}\n"
            f"undo these changes, or choose another output.dir{hint}"
        )


def versions() -> dict[str, str]:
    """Versions of what the data depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def filter_names(recipe: Recipe) -> list[str]:
    """Names of the filters in order, and the one that stands for "not needed any more"."""
    return [*(section.kind for section in recipe.filters), TARGET]


def seed_facts(recipe: Recipe, seeds: list[SeedTask], sha256: str) -> dict[str, Any]:
    """What ``run.json`` says about the seeds: the report needs no other file."""
    return {"path": recipe.seeds.path, "sha256": sha256, "instructions": [seed.instruction for seed in seeds]}
