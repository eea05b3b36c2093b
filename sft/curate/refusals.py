"""What a curation refuses: before it reads a row, all that can be told from the recipe and from what lies where; then, after each stage.

::

    recipe ── problems ──> nothing was read or written      rows of a stage ── refuse_* ──> its parts stand, dropped.jsonl says why
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from sft.config import Document, Key, dotted, file_order, read_yaml
from sft.curate.clean import FIELDS_SEEN
from sft.curate.parts import PartReport
from sft.curate.recipe import CurateRecipe
from sft.curate.rules.fields import FieldRule
from sft.data.sources import NoFilesError, resolve_files
from sft.errors import DataError, Fault, InputError, RecipeError, TemplateError
from sft.recipe import Source

UNREADABLE: Final = frozenset(
    {"invalid_json", "duplicate_key", "not_finite", "not_utf8", "not_an_object", "missing_field", "wrong_type"}
)
"""Reasons that say that a row is not what the recipe takes it for; any other one is about what it says."""
Problem = tuple[Key, str]
_INSIDE = re.compile(r"((?:model|template)\.[\w.]+): (.*)", re.S)


def problems(recipe: CurateRecipe) -> tuple[list[Problem], list[Problem]]:
    """All that can be told without reading a row.

    Returns:
        Faults, and what is not there yet; each with the key that it is about.
    """
    faults, absent = [*_output_problems(recipe), *_split_problems(recipe)], list[Problem]()
    names: list[tuple[Key, str]] = [
        (("sources", number, "path"), source.path) for number, source in enumerate(recipe.sources) if source.path is not None
    ]
    names += [
        (("rules", number, "files", place), name)
        for number, rule in enumerate(recipe.rules)
        for place, name in enumerate(rule.reads)
    ]
    for key, name in names:
        try:
            files = resolve_files(Source(path=name))
        except NoFilesError as error:
            absent.append((key, str(error)))
        except DataError as error:
            faults.append((key, str(error)))
        else:
            if key[0] == "sources":
                faults += [(key, words) for words in _overwritten(files, recipe.output.dir)]
    if recipe.split is not None and _is_local(model := recipe.split.model.name_or_path or "") and not Path(model).exists():
        absent.append((("split", "model", "name_or_path"), f"{model}: no such folder (looked from {Path.cwd()})"))
    return faults, absent


def raise_all(found: Iterable[Problem], document: Document | None) -> None:
    """Refuse, if there is anything to refuse.

    Raises:
        RecipeError: every problem in file order, with the place in the recipe if it was read from a file.
    """
    faults = [Fault(document.locate(key) if document else "", dotted(key), words) for key, words in found]
    if faults:
        raise RecipeError(sorted(faults, key=file_order))


def _output_problems(recipe: CurateRecipe) -> Iterator[Problem]:
    folder = Path(recipe.output.dir)
    key: Key = ("output", "dir")
    there = next(
        (path for path in (folder, *folder.absolute().parents) if os.path.exists(path)), Path("/")
    )  # unlike Path.exists, no error for a name that is too long
    if not there.is_dir():
        yield key, f"{there} is a file; choose another folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield key, f"{folder} cannot be written: no right to write in {there}; choose another"
    elif there == folder and not is_ours(folder):
        yield key, f"{folder} is not empty and holds no run of ours; choose another"
    if recipe.output.ray is not None and importlib.util.find_spec("ray") is None:
        yield ("output", "ray"), "needs Ray: pip install 'vicugna[ray]', on every machine of the cluster"


def is_ours(folder: Path) -> bool:
    """Whether a folder is empty, but for hidden files, or the run directory of a curation."""
    if not any(not path.name.startswith(".") for path in folder.iterdir()):
        return True
    try:
        return {"sources", "rules", "output"} <= read_yaml(folder / "recipe.yaml").value.keys()
    except RecipeError:
        return False


def _overwritten(files: Sequence[Path], out: str) -> Iterator[str]:
    folder = Path(out).resolve()
    inside = [path for path in files if path.resolve().is_relative_to(folder)]
    if inside:
        yield f"{inside[0]} lies in output.dir ({out}), whose files this run writes; choose another output.dir"


def _is_local(name: str) -> bool:
    """Whether a name of a model can only be a path: one of the Hub has at most one slash, and no dot in front."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def _split_problems(recipe: CurateRecipe) -> Iterator[Problem]:
    from sft.data.template import load_template

    if (section := recipe.split) is None or (section.template.name == "tokenizer" and section.model.scratch is None):
        return
    try:
        load_template(section.template.name, system=section.template.system)
    except TemplateError as error:
        yield within_split(error)


def within_split(error: InputError) -> Problem:
    """A fault of a model or a template, with the key that it has in a curation."""
    found = _INSIDE.fullmatch(str(error))
    return (("split", *found[1].split(".")), found[2]) if found else (("split",), str(error))


# --- with the rows of a stage ---------------------------------------------------------------------------------------------


def refuse_unread(recipe: CurateRecipe, clean: PartReport, by_source: dict[str, int], document: Document | None) -> None:
    """After the first stage: sources that hold nothing, too many rows of another shape, keys that nobody has.

    Args:
        recipe: of the curation.
        clean: all parts of the stage.
        by_source: label -> rows that were read.
        document: the recipe's file.

    Raises:
        DataError, RecipeError: the first of them that is found.
    """
    if empty := [label for label, rows in by_source.items() if rows == 0]:
        raise DataError(f"{', '.join(empty)}: this source holds no rows. Mend it, or take it out of the recipe.")
    bad = {reason: count for reason, count in sorted(clean.counts.items()) if reason in UNREADABLE}
    unread = sum(bad.values())
    if unread > recipe.max_unreadable_share * clean.rows_in:
        limit = f"max_unreadable_share allows {recipe.max_unreadable_share:.1%}"
        shown = {reason: clean.left_out[reason][0] for reason in bad}
        lines = [
            f"{unread} of {clean.rows_in} rows ({unread / clean.rows_in:.1%}) cannot be read; {limit}.",
            *(f"  {reason}: {count}, such as {shown[reason][0]}: {shown[reason][1]}" for reason, count in bad.items()),
            "Mend the rows, or raise max_unreadable_share.",
        ]
        raise DataError("\n".join(lines))
    seen = clean.histograms.get(FIELDS_SEEN, {})
    missing: list[Problem] = [
        (
            ("rules", number, "field"),
            f"no row has the field {rule.field!r}; correct its name, or say required: false if a set may be without it",
        )
        for number, rule in enumerate(recipe.rules)
        if isinstance(rule, FieldRule) and rule.required and rule.field not in seen
    ]
    raise_all(missing, document)


def refuse_emptied(by_source: dict[str, int], stage: str, dropped: Path) -> None:
    """After each stage: sources of which nothing is left.

    Args:
        by_source: label -> rows that came out.
        stage: its name.
        dropped: the list of what was left out.

    Raises:
        DataError: they are named.
    """
    if empty := [label for label, rows in by_source.items() if rows == 0]:
        which = "no rows are left" if len(empty) == len(by_source) else f"{', '.join(empty)}: no rows of this source are left"
        raise DataError(
            f"{which} after {stage}; {dropped} says why each was left out. Mend the rows or the rules, or take the source out."
        )
