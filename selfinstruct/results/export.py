"""The data set in the shapes that other tools read, with a card that says where it came from.

::

    alpaca     train.json      [{"instruction", "input", "output"}]
    sharegpt   train.json      [{"id", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}]
    messages   train.jsonl     {"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}]}
    parquet    train.parquet   id, instruction, input, output, lineage (JSON text)
    each with  README.md       YAML head, teacher, prompts, counts, yield, cost, licence

An export is a new folder of one format, so that a reader of the folder meets every row once; nothing is ever overwritten. Where the
shape has no place for an input it follows the instruction after a blank line, as training folds it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, get_args

from selfinstruct.results.rundir import SURPLUS, Row, RunData, read_dataset, read_run
from sft.data.jsonl import write_jsonl_atomic
from sft.errors import DataError

Format = Literal["alpaca", "sharegpt", "messages", "parquet"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
_FILES: Final[Mapping[Format, str]] = {
    "alpaca": "train.json",
    "sharegpt": "train.json",
    "messages": "train.jsonl",
    "parquet": "train.parquet",
}
_BATCH = 8192  # rows held while a .parquet is written
_TERMS = (
    "The answers were written by the teacher named above. Its provider's terms may restrict what they may be used for, such as training "
    "models that compete with it; read them before you publish this data or a model tuned on it."
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: the data file, its card, and the number of rows."""

    path: Path
    card: Path
    rows: int


def export_run(run_dir: str | Path, out: str | Path, format: Format, *, licence: str | None = None) -> Exported:
    """Write a run's rows into a new folder.

    Args:
        run_dir: a run directory.
        out: the folder to make; its parent must exist.
        format: one of :data:`FORMATS`.
        licence: identifier for the card's head, such as ``cc-by-4.0``; ``other`` if None.

    Raises:
        DataError: ``out`` is taken or cannot be made, the run has no rows or damaged files, or a row holds a character that the
            format cannot carry.
    """
    out = Path(out)
    if format not in _FILES:
        raise DataError(f"unknown export format {format!r}; use one of {', '.join(FORMATS)}")
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: already there; nothing is overwritten, so name a new folder")
    run = read_run(run_dir)
    if not run.rows:
        raise DataError(f"{run.path / 'dataset.jsonl'}: no rows to export")
    draft = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir()
        count = _write(run.path, draft / _FILES[format], format)
        if count != len(run.rows):
            raise DataError(
                f"{run.path / 'dataset.jsonl'}: {len(run.rows)} rows at first, {count} now; is the run still writing?"
            )
        (draft / "README.md").write_text(card(run, format, licence=licence), encoding="utf-8", errors="backslashreplace")
        if out.exists():  # renaming onto an empty folder would succeed
            raise DataError(f"{out}: somebody made it meanwhile; nothing is overwritten, so name a new folder")
        draft.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(out / _FILES[format], out / "README.md", count)


def _write(run_dir: Path, path: Path, format: Format) -> int:
    rows = read_dataset(run_dir)
    if format == "messages":
        return write_jsonl_atomic(path, (_messages(row) for row in rows))
    if format == "parquet":
        return _write_parquet(path, rows)
    return _write_list(path, (_alpaca(row) if format == "alpaca" else _sharegpt(row) for row in rows))


def _asked(row: Row) -> str:
    return f"{row.instruction}\n\n{row.input}" if row.input else row.instruction


def _alpaca(row: Row) -> dict[str, Any]:
    return {"instruction": row.instruction, "input": row.input, "output": row.output}


def _sharegpt(row: Row) -> dict[str, Any]:
    return {"id": row.id, "conversations": [{"from": "human", "value": _asked(row)}, {"from": "gpt", "value": row.output}]}


def _messages(row: Row) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": _asked(row)}, {"role": "assistant", "content": row.output}]}


def _write_list(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """A JSON list, one item at a time; an item with a lone surrogate is escaped, since UTF-8 cannot carry it."""
    count = 0
    with path.open("x", encoding="utf-8", newline="\n") as file:
        for row in rows:
            item = json.dumps(row, ensure_ascii=False, indent=1)
            if re.search("[\ud800-\udfff]", item):
                item = json.dumps(row, indent=1)
            file.write(("[\n" if count == 0 else ",\n") + item)
            count += 1
        file.write("\n]\n" if count else "[]\n")
    return count


def _write_parquet(path: Path, rows: Iterator[Row]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("id", "instruction", "input", "output", "lineage")
    schema = pa.schema([(name, pa.string()) for name in names])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _BATCH)):
            texts = [(r.id, r.instruction, r.input, r.output, json.dumps(dict(r.lineage), sort_keys=True)) for r in batch]
            try:
                columns = [pa.array([text[at] for text in texts], pa.string()) for at in range(len(names))]
            except UnicodeEncodeError:
                bad = next(
                    row.id for row, text in zip(batch, texts, strict=True) if re.search("[\ud800-\udfff]", "".join(text))
                )
                raise DataError(
                    f"row {bad} holds a lone surrogate, which parquet cannot carry; export another format"
                ) from None
            writer.write_table(pa.table(columns, schema=schema))
            count += len(batch)
    return count


def card(run: RunData, format: Format, *, licence: str | None = None) -> str:
    """The data set card: a YAML head as the Hugging Face Hub reads it, then what a reader must know, in Markdown."""
    import yaml

    languages = run.facts.get("language")
    head = {
        "license": licence or "other",
        **({"language": [languages]} if isinstance(languages, str) else {}),
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "instruction-tuning", "self-instruct"],
        "size_categories": [_size(len(run.rows))],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": _FILES[format]}]}],
    }
    return "\n".join(
        (
            "---",
            yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {_plain(run.name)}",
            "",
            *_made(run, format),
            "",
            "## Yield",
            "",
            *_yield(run),
            "",
            "## Licence",
            "",
            *(f"{_plain(note)}\n" for note in [run.facts.get("licence_note")] if isinstance(note, str) and note),
            _TERMS,
            "",
        )
    )


def _made(run: RunData, format: Format) -> list[str]:
    teacher, usage, cost, seeds = (run.section(key) for key in ("teacher", "usage", "cost", "seeds"))
    models = teacher.get("models")
    with_input = sum(bool(row.input) for row in run.rows)
    lines = [
        ("rows", f"{len(run.rows):,}, {with_input:,} of them with an input"),
        ("format", format),
        ("strategy", run.facts.get("strategy")),
        ("teacher", ", ".join(map(str, models)) if isinstance(models, list) else None),
        ("seed tasks", f"{seeds['path']} (sha256 {seeds.get('sha256', 'not recorded')})" if "path" in seeds else None),
        *((f"prompt {name}", f"fingerprint {fingerprint}") for name, fingerprint in run.section("prompts").items()),
        ("requests", usage.get("requests")),
        (
            "tokens",
            f"{usage.get('prompt_tokens', '?')} asked, {usage.get('completion_tokens', '?')} answered" if usage else None,
        ),
        ("cost", f"{cost['money']:.4g} {cost.get('currency', '')}" if isinstance(cost.get("money"), (int, float)) else None),
        ("made", run.facts.get("created")),
    ]
    rows = [f"| {_plain(key)} | {_plain(value if value is not None else 'not recorded')} |" for key, value in lines]
    return ["| | |", "|---|---|", *rows]


def _yield(run: RunData) -> list[str]:
    pieces = len(run.judged) + len(run.failures)
    kept = sum(item.accepted for item in run.judged)
    rows = ["| step | refused | left | reasons |", "|---|---|---|---|"]
    for stage in run.funnel():
        reasons = ", ".join(
            f"{reason} {count:,}" for reason, count in sorted(stage.reasons.items(), key=lambda item: (-item[1], item[0]))
        )
        name = "more than wanted" if stage.name == SURPLUS else stage.name
        rows.append(f"| {_plain(name)} | {stage.refused:,} | {stage.left:,} | {_plain(reasons)} |")
    share = f" ({kept / pieces:.1%})" if pieces else ""
    return [f"{kept:,} of {pieces:,} proposed tasks were accepted{share}.", "", *rows]


def _plain(value: object) -> str:
    """Text for one line of Markdown: what could be markup, in Markdown or HTML, is escaped."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f\u2028\u2029]", " ", str(value)).split())
    return re.sub(r"([\\`*\[\]<>|~#$&])", r"\\\1", line)


def _size(rows: int) -> str:
    """The Hub's size category of a number of rows."""
    for limit, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")):
        if rows < limit:
            return name
    return "10M<n<100M"
