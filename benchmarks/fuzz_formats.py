"""Readers under fuzz: row shapes, files of rows in any chunks, damaged packed files, shared conversations, recipes."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import fuzz_draws as draws
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fuzz_law import Broken, require

from selfinstruct.recipe import load_recipe as load_generation
from sft.curate.chat import read_chat
from sft.curate.recipe import load_curate_recipe
from sft.data import chunks
from sft.data.conversation import Drops
from sft.data.fields import RowFault
from sft.data.formats import FORMATS, check_columns, detect_format
from sft.data.jsonl import RawRow, read_rows
from sft.data.sources import read_source
from sft.errors import DataError, RecipeError
from sft.recipe import Source, load_recipe

_REASON = re.compile(r"[a-z0-9_]+")
_READ = re.compile(r"(invalid_json|duplicate_key|not_finite|not_utf8|broken_file): .", re.DOTALL)
_COLUMNS = [
    {},
    {},
    {},
    {"instruction": "prompt", "output": "text"},
    {"from": "role", "value": "content"},
    {"id": "text"},
    {"x": "y"},
]
_WHOLE = chunks._CHUNK
_LOADERS = {"": load_recipe, "curate": load_curate_recipe, "generate": load_generation}


class Formats:
    """Each input is a decoded row, a file, a packed file, a shared row, or a recipe; see :meth:`check`."""

    name = "formats"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        recipes = Path(__file__).resolve().parent.parent / "recipes"
        self._recipes = [path.read_text(encoding="utf-8").split("\n") for path in sorted(recipes.glob("*.yaml"))]

    def draw(self, dice: random.Random) -> Any:
        kind = dice.random()
        if kind < 0.5:
            return ["row", draws.row(dice), dice.choice(list(FORMATS)), dice.choice(_COLUMNS)]
        if kind < 0.62:
            made = draws.sharegpt(dice)
            return ["chat", draws.shaken(dice, made) if dice.random() < 0.3 else made]
        if kind < 0.96:
            ending = dice.choice((".jsonl", ".json", ".json"))
            return ["file", draws.file_text(dice), ending, dice.choice((1, 2, 3, 5, 17, 100)), dice.choice(["auto", *FORMATS])]
        if kind < 0.98:
            return ["packed", *_packed(dice)]
        return [
            "recipe",
            dice.choice(list(_LOADERS)),
            self._recipe(dice),
            dice.choice(([], ["train.seed=1"], ["a.b[0].c=x"], ["=", "x=[", "model=~"])),
        ]

    def _recipe(self, dice: random.Random) -> str:
        """A few lines of a recipe, shuffled, cut and mixed with what YAML minds."""
        lines = dice.choice(self._recipes)
        begin = dice.randrange(len(lines))
        out = "\n".join(lines[begin : begin + dice.randint(1, 14)])
        odd = (
            "&a x",
            "*a",
            "!!python/name:x",
            "? [a]",
            "{a: 1, a: 2}",
            "[[[[",
            "%YAML 9.9\n---\n",
            "0x" + "f" * 4_000,
            "9" * 4_400,
            ".nan",
            "1e999",
        )
        odd += (
            '"\\ud800"',
            '"\\U00110000"',
            '"\\UFFFFFFFF"',
            "\t",
            "<<: {}",
            "- - -",
            "|\n  x",
            "'",
            "\x07",
            "\ud800",
            "--- \n...",
            "[" * 600,
            "é: ü",
        )
        while dice.random() < 0.6:
            at = dice.randint(0, len(out))
            out = out[:at] + dice.choice(odd) + out[at:] if dice.random() < 0.6 else draws.mutated(dice, out)
        return out

    def check(self, made: Any, counts: Counter[str]) -> None:
        getattr(self, f"_check_{made[0]}")(*made[1:], counts=counts)

    def _check_row(self, value: Any, name: str, columns: dict[str, str], counts: Counter[str]) -> None:
        """Refused with a reason, or turns that say what the row says, and that the plainest shape reads back unchanged."""
        names = [name]
        try:
            names += filter(None, [detect_format(value, columns)])
        except DataError:
            counts["several formats fit"] += 1
        for one in names:
            try:
                check_columns(one, columns)
            except DataError:
                counts["columns refused"] += 1
            try:
                parsed = FORMATS[one](value, columns)
            except RowFault as fault:
                require(_REASON.fullmatch(fault.reason) is not None and bool(fault.detail), "a refusal has a reason")
                counts[fault.reason] += 1
                continue
            counts["read"] += 1
            said = set(_strings(value))
            for turns in parsed.conversations:
                whole = one in ("moss", "moss_plugin", "messages", "prompt_completion")
                require(whole or all(turn.content in said for turn in turns), "texts are those of the row")
                require(turns[-1].role == "assistant", "the last turn is an answer")
                require(all(_is_text(turn.content) for turn in turns), "no NUL and no half character is read")
                spoken = [turn.content for turn in turns if turn.role in ("user", "assistant")]
                require(all(text.strip() for text in spoken), "nobody says nothing")
                if (
                    all(turn.role != "input" for turn in turns) and one != "moss_plugin"
                ):  # thoughts and commands are two in a row
                    entries = [{"role": t.role, "content": t.content, "train": t.train} for t in turns]
                    again = FORMATS["messages"]({"messages": entries}, {}).conversations
                    require(again == (turns,), "messages read back are the same turns")

    def _check_chat(self, value: Any, counts: Counter[str]) -> None:
        """Refused with a reason, or written and read back unchanged."""
        try:
            chat = read_chat(value, "f:1")
        except RowFault as fault:
            counts[fault.reason] += 1
            return
        counts["read"] += 1
        require(read_chat(chat.to_row(), "f:1") == chat, "a chat that was written is read back unchanged")

    def _check_file(self, data: bytes, ending: str, chunk: int, name: str, counts: Counter[str]) -> None:
        """The same rows in any chunks; what Python's reader, held to the standard, takes is read, and nothing else; no row is lost."""
        path = self._folder / f"rows{ending}"
        path.write_bytes(data)
        try:
            rows = _rows(path, _WHOLE)
        except DataError:
            counts["file refused"] += 1
            require(data.startswith((b"\xff\xfe", b"\xfe\xff")), "only UTF-16 is refused as a whole")
            return
        require(_rows(path, chunk) == rows, "chunks do not matter")
        whole = [row.where for row in rows if not (row.error or "").startswith("broken_file")]
        require(len(set(whole)) == len(whole), "each row has a place of its own")
        for row in rows:
            require(
                row.error is None or (row.value is None and _READ.match(row.error) is not None), "a row is read or has a reason"
            )
        counts.update("rows read" if row.error is None else row.error.partition(":")[0] for row in rows)
        expected = _lines(data) if ending == ".jsonl" else _list(data)
        if expected is not None:
            require(len(expected) == len(rows), "as many rows as Python's reader finds")
            for row, (good, value) in zip(rows, expected, strict=True):
                require(
                    (row.error is None) == good and (not good or _same(row.value, value)),
                    "rows are as Python's reader has them",
                )
        drops = Drops()
        try:
            kept = list(read_source(Source(path=str(path), format=name), drops))  # type: ignore[arg-type]  # one of the names
        except DataError:
            counts["no format fits"] += 1
            require(name == "auto", "a named format refuses row by row")
            return
        require(len({one.where for one in kept}) + drops.total == len(rows), "a row is kept or counted as dropped")

    def _check_packed(self, data: bytes, ending: str, counts: Counter[str]) -> None:
        """Rows, or a damaged file that is refused as a whole."""
        path = self._folder / f"packed{ending}"
        path.write_bytes(data)
        try:
            counts["rows read of packed files"] += len(list(read_rows(path)))
        except DataError:
            counts["packed file refused"] += 1

    def _check_recipe(self, kind: str, text: str, overrides: list[str], counts: Counter[str]) -> None:
        """A recipe, or all its faults."""
        path = self._folder / "recipe.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            _LOADERS[kind](path, overrides)
        except RecipeError as error:
            require(bool(error.faults) and all(fault.message for fault in error.faults), "a refused recipe has faults")
            counts["recipe refused"] += 1
            return
        counts["recipe read"] += 1


def _packed(dice: random.Random) -> tuple[bytes, str]:
    """A compressed or a Parquet file with a few bytes lost, changed or put in, and its ending."""
    packing = dice.choice((".gz", ".zst", ".parquet"))
    if packing == ".parquet":
        lists = [["a", None], [], None] if dice.random() < 0.5 else ["x", "y", None]
        table = pa.table({"instruction": [draws.clean_text(dice) for _ in range(3)], "output": lists})
        pq.write_table(table, made := io.BytesIO(), compression=dice.choice(("none", "snappy", "zstd")))
        data, ending = made.getvalue(), packing
    else:
        plain = draws.file_text(dice)
        data = gzip.compress(plain, mtime=0) if packing == ".gz" else zstandard.ZstdCompressor().compress(plain)
        ending = dice.choice((".json", ".jsonl")) + packing
    for _ in range(dice.choice((0, 1, 1, 2, 5))):
        at = dice.randrange(len(data) + 1)
        data = (
            data[:at] + bytes(dice.choices(range(256), k=dice.randint(0, 3))) + data[at + dice.choice((0, 1, 8, len(data))) :]
        )
    return data, ending


def _is_text(text: str) -> bool:
    return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for one in inner for found in _strings(one)]


def _rows(path: Path, chunk: int) -> list[RawRow]:
    chunks._CHUNK = chunk
    try:
        return list(read_rows(path))
    finally:
        chunks._CHUNK = _WHOLE


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return made


def _finite(text: str) -> float:
    if abs(found := float(text)) == float("inf"):
        raise ValueError("too large")
    return found


def _refuse(text: str) -> None:
    raise ValueError(text)


def _strict(text: str) -> tuple[bool, Any]:
    """Whether a text is strict JSON, and its value."""
    try:
        return True, json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def _lines(data: bytes) -> list[tuple[bool, Any]]:
    """Whether each line that is not blank is strict JSON, and its value."""
    found = []
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.strip(b" \t\r"):
            try:
                found.append(_strict(line.decode("utf-8")))
            except UnicodeDecodeError:
                found.append((False, None))
    return found


def _list(data: bytes) -> list[tuple[bool, Any]] | None:
    """The rows of a file that is one sound list, or an object around one; None for any other."""
    try:
        good, value = _strict(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError:
        return None
    items = value.get("data") if isinstance(value, dict) else value
    return [(True, item) for item in items] if good and isinstance(items, list) else None


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # 1 is not 1.0, nor is -0.0 zero


__all__ = ["Broken", "Formats"]
