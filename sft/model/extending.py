"""What ``tokenizer.extend`` of a recipe makes of its tokenizer, and of the rows of its model. See :mod:`sft.model.extend` for how."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft import files
from sft.errors import TokenizerError
from sft.model.extend import Base, Extension, learn, listed, origins, tokens_per_character
from sft.recipe import ExtendSection, Recipe, Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_CODE_VERSION = 1
"""Of what is learnt from given texts; part of the name that it is kept under."""
_SAMPLE = 1_000
"""Texts that tokens per character are told of."""
MOST_CHARACTERS = 20_000_000
"""Of texts that are learnt from, in equal parts of each source, from its start: words are held in memory."""


def extended(recipe: Recipe, backend: Tokenizer) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a recipe with what its ``tokenizer.extend`` adds; as it was if that is not there.

    Returns:
        The tokenizer, and what was done, one sentence if anything was.

    Raises:
        TokenizerError: it cannot be extended, or a listed token cannot be one id.
    """
    section = recipe.tokenizer.extend
    if section is None:
        return backend, []
    base = Base(backend)
    extension, said = _of_file(section, base) if section.file is not None else _of_texts(recipe, section, base)
    return base.with_(extension), [said]


def row_origins(base: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> dict[int, tuple[int, ...]]:
    """Ids that ``tokenizer.extend`` added, each with the ids of the base that spelt it before.

    Args:
        base: the tokenizer of the base model.
        tokenizer: extended, perhaps read from a run.

    Raises:
        TokenizerError: it is no extension of the base's.
    """
    first = Base(base.backend_tokenizer).first_new
    added = set(tokenizer.added_tokens_decoder)
    return {i: parts for i, parts in origins(tokenizer.backend_tokenizer, first).items() if i not in added}


def _of_texts(recipe: Recipe, section: ExtendSection, base: Base) -> tuple[Extension, str]:
    """Learnt from the texts of a recipe, or found where that was done before."""
    from sft.data import sources
    from sft.data.dataset import cache_root

    assert section.size is not None
    where = section.sources or recipe.data.sources
    given = {
        "code": _CODE_VERSION,
        "characters": MOST_CHARACTERS,
        "tokenizer": base.spec,
        "section": section.model_dump(mode="json", include={"size", "min_count"}),
        "sources": [source.model_dump(mode="json") for source in where],
        "files": [sources.fingerprint(source) for source in where],
    }
    key = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:32]
    place = cache_root(recipe.data) / "extensions" / f"{key}.json"
    found = _kept(place)
    if found is None:
        found = _learnt(section, base, _texts(where))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(place, found)
        except OSError as error:
            log.warning("%s: what the tokenizer was extended by could not be kept there: %s", place.parent, error.strerror)
    extension = Extension(tuple(found["characters"]), tuple((left, right) for left, right in found["merges"]))
    short = (
        ""
        if len(extension.pieces) == section.size
        else f" of {section.size:,} wanted, no other occurs {section.min_count} times"
    )
    return extension, (
        f"the tokenizer was extended by {_count(extension)}{short}: {found['before']:.3f} -> {found['after']:.3f} tokens per character in "
        f"{found['texts']:,} of the texts they were learnt from"
    )


def _kept(place: Path) -> dict[str, Any] | None:
    try:
        found = files.read_json(place)
    except (OSError, ValueError):
        return None  # not there, or not whole: learnt again
    return found if {"characters", "merges", "before", "after", "texts"} <= found.keys() else None


def _learnt(section: ExtendSection, base: Base, texts: Iterator[str]) -> dict[str, Any]:
    assert section.size is not None
    sample = list(itertools.islice(texts, _SAMPLE))
    extension = learn(base, itertools.chain(sample, texts), section.size, section.min_count)
    if not extension.pieces:
        raise TokenizerError(
            f"tokenizer.extend: no pair of pieces occurs {section.min_count} times in these texts; give more of them in "
            "tokenizer.extend.sources, lower min_count, or remove the section"
        )
    return {
        "characters": extension.characters,
        "merges": extension.merges,
        "before": tokens_per_character(base.backend, sample),
        "after": tokens_per_character(base.with_(extension), sample),
        "texts": len(sample),
    }


def _texts(where: Sequence[Source]) -> Iterator[str]:
    from tqdm import tqdm

    from sft.data.conversation import Drops
    from sft.data.sources import read_source

    with tqdm(desc="learning the vocabulary", unit=" rows", leave=False) as bar:
        for source in where:
            left = MOST_CHARACTERS // len(where)
            for conversation in read_source(source, Drops()):
                bar.update()
                for turn in conversation.turns:
                    if turn.content:
                        yield turn.content
                left -= sum(len(turn.content) for turn in conversation.turns)
                if left <= 0:
                    break


def _of_file(section: ExtendSection, base: Base) -> tuple[Extension, str]:
    """The tokens of a list."""
    path = Path(str(section.file))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise TokenizerError(f"tokenizer.extend.file: {path} cannot be read: {why}") from None
    wanted: dict[str, str] = {}
    empty = twice = there = 0
    special = {token["content"] for token in base.spec["added_tokens"]}
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        token = line.removesuffix("\r")
        place = f"{path}:{number}"
        if not token:
            empty += 1
        elif any(c.isspace() for c in token):
            raise TokenizerError(f"{place}: {token!r} holds a space; list words one by one (▁ stands for the space before one)")
        elif token in special:
            raise TokenizerError(f"{place}: {token!r} is a special token of this tokenizer; remove the line")
        elif token in wanted:
            twice += 1
        elif base.is_one(token):
            there += 1
        else:
            wanted[token] = place
    if not wanted:
        raise TokenizerError(f"tokenizer.extend.file: {path} has no token that is new; remove tokenizer.extend")
    extension = listed(base, list(wanted.items()))
    others = {
        "on the way to them": len(extension.pieces) - len(wanted),
        "there already": there,
        "listed twice": twice,
        "empty": empty,
    }
    more = ", ".join(f"{count:,} {what}" for what, count in others.items() if count)
    return extension, f"the tokenizer was extended by {len(wanted):,} tokens of {path.name}{f' ({more})' if more else ''}"


def _count(extension: Extension) -> str:
    pieces, characters = len(extension.pieces), len(extension.characters)
    return (
        f"{pieces:,} pieces ({characters:,} characters, {pieces - characters:,} joined)" if characters else f"{pieces:,} pieces"
    )
