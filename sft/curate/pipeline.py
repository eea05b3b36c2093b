"""A curation from top to bottom: read this first.

::

    RUN/recipe.yaml      what was asked for
    RUN/clean/           rules applied, in parts            sources -> 00000.jsonl + 00000.json, 00001...
    RUN/signatures/      of every row, for dedup/
    RUN/dedup/           without duplicates                 one part for each part of clean/
    RUN/split/           cut to the length of training      one part for each part of dedup/
    RUN/tokenizer/       trained on those rows, if the model to be tuned is made from scratch
    RUN/identity.jsonl   rows about the model's own name, if the recipe asks for them
    RUN/train.jsonl      mixed; RUN/holdout.jsonl if rows are held out
    RUN/dropped.jsonl    every row and exchange that was left out: {stage, place, reason, detail}
    RUN/run.json         counts of all stages; fingerprints of input, rules and code
    RUN/report.html

Results of an earlier call are removed before the first row is read: whatever stands belongs to the recipe that stands beside it. A
stopped curation is run again with the same command: parts that are whole and made from the same rows by the same rules are taken as
they stand. So the bytes do not depend on where it was stopped, nor on how many processes worked, nor on which machines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml
from tqdm import tqdm

from sft.config import Document
from sft.curate import clean, clusters, duplicates, refusals, split
from sft.curate.fingerprint import code_fingerprint
from sft.curate.identity import identity_chats
from sft.curate.mixing import write_mix
from sft.curate.parts import (
    Batch,
    LocalWorkers,
    PartReport,
    Work,
    Workers,
    digest,
    file_digest,
    part_path,
    rows_key,
    run_parts,
    total,
)
from sft.curate.recipe import IDENTITY, CurateRecipe, OutputSection
from sft.curate.scratch import with_tokenizer
from sft.curate.shapes import as_json
from sft.data.jsonl import RawRow, ending, write_jsonl_atomic
from sft.data.sources import fingerprint, raw_rows, resolve_files, with_format
from sft.errors import InputError
from sft.files import remove_drafts, write_json
from sft.recipe import Source

Stage = Literal["clean", "dedup", "split", "mix"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
RESULTS: Final = ("run.json", "report.html", "train.jsonl", "holdout.jsonl", "dropped.jsonl", "identity.jsonl")
"""Files of a run directory that say or are what came out of the recipe there, the record first."""


@dataclass(slots=True)
class Curation:
    """What a curation did.

    Attributes:
        folder: the run directory.
        stages: name -> all its parts as one report.
        parts: name -> parts, and how many of them were there already.
        mixed: source label -> rows, as :class:`sft.curate.mix.MixPlan` counts them; empty before that stage.
        unmixed: rows that limits and weights left out, as ``[place, reason, detail]``.
        clusters: of duplicates, as :func:`sft.curate.clusters.describe` tells them; empty without that stage.
        fingerprints: name -> what the result depends on.
        seconds: name -> wall time of this call, parts that were there already included.
        fresh: name -> bytes of text that went into the parts made by this call.
    """

    folder: Path
    stages: dict[str, PartReport] = field(default_factory=dict)
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    mixed: dict[str, dict[str, int]] = field(default_factory=dict)
    unmixed: list[list[str]] = field(default_factory=list)
    clusters: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    fresh: dict[str, int] = field(default_factory=dict)


def curate(recipe: CurateRecipe, *, until: Stage = "mix", progress: bool = True, document: Document | None = None) -> Curation:
    """Run the stages of a recipe up to one of them.

    Args:
        recipe: what to do.
        until: the last stage.
        progress: show a bar for each stage.
        document: the file of the recipe, for the places in messages.

    Raises:
        RecipeError: all that can be refused before anything is read or written.
        DataError: sources that cannot be read, no rows left, or a refusal of a stage.
        InputError: ``output.ray`` without a cluster there, or a run directory that cannot be made.
    """
    faults, absent = refusals.problems(recipe)
    refusals.raise_all([*faults, *absent], document)
    for rule in recipe.rules:
        rule.prepare()
    prints = _split_prints(recipe, document) if until in ("split", "mix") else {}
    with _workers(recipe.output) as workers:
        return _curate(recipe, until, workers, progress, prints, document)


def _split_prints(recipe: CurateRecipe, document: Document | None) -> dict[str, str]:
    """Fingerprints of tokenizer and template: they are loaded once before the first row is read, not hours later."""
    if recipe.split is None or recipe.split.model.scratch is not None:
        return {}
    try:
        return split.fingerprints(recipe.split)
    except InputError as error:
        refusals.raise_all([refusals.within_split(error)], document)
        raise


def _workers(section: OutputSection) -> Workers:
    if section.ray is None:
        return LocalWorkers(section.workers or os.cpu_count() or 1)
    from sft.curate.ray_workers import RayWorkers  # here: Ray is an extra, and few have more than one machine

    return RayWorkers(section.ray, section.workers, code_fingerprint())


def _curate(
    recipe: CurateRecipe, until: Stage, workers: Workers, progress: bool, prints: Mapping[str, str], document: Document | None
) -> Curation:
    folder = _opened(recipe)
    done = Curation(folder)
    code = code_fingerprint()

    def stage(name: str, batches: Iterator[Batch], make: Callable[[Any], Work], settings: Any) -> list[PartReport]:
        begun = time.monotonic()
        with tqdm(desc=name, unit=" rows", disable=not progress, leave=False) as bar:
            reports, reused = run_parts(folder / name, batches, make, settings, workers=workers, progress=bar.update)
        done.stages[name], done.parts[name] = total(reports), (len(reports), reused)
        done.seconds[name] = time.monotonic() - begun
        done.fresh[name] = sum(report.bytes_in for report in reports if not report.reused)
        _refuse(recipe, done, name, reports, document)
        return reports

    formats: dict[str, tuple[str, Mapping[str, str]]] = {}
    settings = {"rules": [rule.model_dump(mode="json") for rule in recipe.rules], "formats": formats}
    source_rows = _source_rows(recipe, formats)
    made = digest(code, settings["rules"], _files_of(recipe))
    last, reports = "clean", stage("clean", _batches(source_rows, recipe, made, formats, workers), clean.make_clean, settings)
    if until != "clean" and recipe.dedup is not None:
        section = recipe.dedup.model_dump(mode="json")
        before = list(_following(folder / last, reports, digest(code, section)))
        stage("signatures", iter(before), duplicates.make_signatures, section)
        decision, name = duplicates.decide(recipe.dedup, folder / "signatures", len(before))
        done.clusters = clusters.describe(decision, name, [part_path(folder / last, batch.index) for batch in before])
        last, reports = "dedup", stage("dedup", duplicates.leave_out(decision, name, before), duplicates.make_leave_out, {})
    if until in ("split", "mix") and recipe.split is not None:
        wanted = with_tokenizer(recipe.split, folder, folder / last, reports, code)
        done.fingerprints |= prints or split.fingerprints(wanted)
        made = digest(code, recipe.split.model_dump(mode="json"), done.fingerprints)
        following = _following(folder / last, reports, made)
        settings = {"section": wanted.model_dump(mode="json"), "fingerprints": done.fingerprints}
        last, reports = "split", stage("split", following, split.make_split, settings)
    if until == "mix":
        written = [(part_path(folder / last, r.index), r.source) for r in reports]
        done.mixed, done.unmixed = write_mix(recipe, folder, [*written, *_identity(recipe, folder)])
    _record(recipe, done, code)
    return done


def _opened(recipe: CurateRecipe) -> Path:
    """The run directory with the recipe in it. Results of an earlier call are gone, so that none stands beside what is not its own:
    whenever this call ends, what is there was made by the recipe that is there. Parts stay: each says what it was made from.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(recipe.output.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a read-only disk, a name that the file system cannot take
        raise InputError(f"output.dir: {folder} cannot be made: {error.strerror}; choose another") from None
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    remove_drafts(folder)
    draft = folder / ".recipe.yaml.partial"
    draft.write_text(as_yaml(recipe), encoding="utf-8")
    draft.replace(folder / "recipe.yaml")
    return folder


def _refuse(recipe: CurateRecipe, done: Curation, name: str, reports: Sequence[PartReport], document: Document | None) -> None:
    """Refusals behind a stage; the list of what was left out so far is written first."""
    if name == "signatures":
        return
    read, out = ({source.label: 0 for source in recipe.sources} for _ in range(2))
    for report in reports:
        read[report.source] += report.rows_in
        out[report.source] += report.rows_out
    try:
        if name == "clean":
            refusals.refuse_unread(recipe, done.stages[name], read, document)
        refusals.refuse_emptied(out, name, done.folder / "dropped.jsonl")
    except InputError:
        _list_dropped(done)
        raise


def _identity(recipe: CurateRecipe, folder: Path) -> list[tuple[Path, str]]:
    """The file of the rows about the model's own name. They join behind ``dedup``, which would take their templates for duplicates."""
    path, who = folder / "identity.jsonl", recipe.identity
    if who is None:
        path.unlink(missing_ok=True)
        return []
    write_jsonl_atomic(path, (chat.to_row() for chat in identity_chats(who.name, who.organisation, who.languages)))
    return [(path, IDENTITY)]


def as_yaml(recipe: CurateRecipe) -> str:
    """The recipe with all its values, as a file that :func:`sft.curate.recipe.load_curate_recipe` reads."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _files_of(recipe: CurateRecipe) -> list[str]:
    """Hashes of the files that rules read, such as evaluation sets."""
    names = sorted({name for rule in recipe.rules for name in rule.reads})
    return [file_digest(path) for name in names for path in resolve_files(Source(path=name))]


def _source_rows(recipe: CurateRecipe, formats: dict[str, tuple[str, Mapping[str, str]]]) -> list[tuple[str, Iterator[RawRow]]]:
    """Each source's label and rows; fills in what shape they have, which the first row tells where the recipe does not."""
    found = []
    for source in recipe.sources:
        is_table = source.hub is not None or any(ending(path) == ".parquet" for path in resolve_files(source))
        read = map(as_json, raw_rows(source)) if is_table else raw_rows(source)
        name, rows = with_format(source, islice(read, source.limit))
        formats[source.label] = (name, source.columns)
        found.append((source.label, rows))
    return found


def _batches(
    sources: Sequence[tuple[str, Iterator[RawRow]]],
    recipe: CurateRecipe,
    made: str,
    formats: Mapping[str, Any],
    workers: Workers,
) -> Iterator[Batch]:
    """The rows of the sources in batches; none holds rows of two sources."""
    index, size = 0, recipe.output.rows_per_part
    for source, (label, rows) in zip(recipe.sources, sources, strict=True):
        why = (made, label, formats[label])
        if (sliced := workers.batches(source, why, size, index)) is not None:
            for batch in sliced:
                yield batch
                index += 1
            continue
        while some := tuple(islice(rows, size)):
            yield Batch(index, label, rows_key(why, some), rows=some)
            index += 1


def _following(folder: Path, reports: Sequence[PartReport], made: str) -> Iterator[Batch]:
    """The parts of the stage before as the batches of the next one."""
    for report in reports:
        yield Batch(report.index, report.source, digest(made, report.sha256), path=part_path(folder, report.index))


def _list_dropped(done: Curation) -> None:
    by_stage = (*((name, report.dropped) for name, report in done.stages.items()), ("mix", done.unmixed))
    dropped = (
        {"stage": name, "place": place, "reason": reason, "detail": detail}
        for name, entries in by_stage
        for place, reason, detail in entries
    )
    write_jsonl_atomic(done.folder / "dropped.jsonl", dropped)


def _record(recipe: CurateRecipe, done: Curation, code: str) -> None:
    _list_dropped(done)
    about = {
        "recipe": recipe.model_dump(mode="json"),
        "fingerprints": {
            "sources": [fingerprint(source) for source in recipe.sources],
            "rules": digest([rule.model_dump(mode="json") for rule in recipe.rules]),
            "code": code,
            **done.fingerprints,
        },
        "stages": {name: {**report.to_json(), "dropped": len(report.dropped)} for name, report in done.stages.items()},
        "parts": {name: list(counts) for name, counts in done.parts.items()},
        "mixed": done.mixed,
        "clusters": done.clusters,
        "seconds": {name: round(seconds, 3) for name, seconds in done.seconds.items()},
        "fresh": done.fresh,
    }
    write_json(done.folder / "run.json", about)


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a curation.

    Raises:
        OSError, ValueError: there is none.
    """
    value: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return value
