"""A tokenizer for a model that is made from scratch: trained on the rows that are to be split, since there is none to load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft.curate.parts import PartReport, digest, part_path, read_part
from sft.curate.split import SplitSection
from sft.files import PARTIAL, publish, write_json
from sft.recipe import ModelSection

_MADE_FROM = "made_from.json"


def with_tokenizer(section: SplitSection, run: Path, stage: Path, reports: Sequence[PartReport], code: str) -> SplitSection:
    """The section with a tokenizer that can be loaded: for ``model.scratch`` one is trained and written to ``RUN/tokenizer``.

    Args:
        section: of the recipe.
        run: the run directory.
        stage: the folder whose rows are to be split.
        reports: of its parts.
        code: fingerprint of the code.

    Returns:
        The section itself where the model has a tokenizer of its own.
    """
    scratch = section.model.scratch
    if scratch is None:
        return section
    folder = run / "tokenizer"
    key = digest(code, scratch.vocab_size, section.template.model_dump(mode="json"), [report.sha256 for report in reports])
    if not _stands(folder, key):
        _train(section, scratch.vocab_size, folder, [part_path(stage, report.index) for report in reports], key)
    return section.model_copy(update={"model": ModelSection(name_or_path=str(folder))})


def _stands(folder: Path, key: str) -> bool:
    try:
        return bool(json.loads((folder / _MADE_FROM).read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _train(section: SplitSection, vocab_size: int, folder: Path, parts: Sequence[Path], key: str) -> None:
    from sft.data.template import load_template
    from sft.model.tokenizer import train_tokenizer

    template = load_template(section.template.name, system=section.template.system)
    tokenizer = train_tokenizer(_texts(parts), vocab_size, template.tokens)
    partial = folder.with_name(PARTIAL + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    write_json(partial / _MADE_FROM, {"key": key})
    publish(partial, folder)


def _texts(parts: Sequence[Path]) -> Iterator[str]:
    for path in parts:
        for row in read_part(path):
            for turn in row["conversations"]:
                yield turn["value"]
