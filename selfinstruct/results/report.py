"""``report.html``: one page per generation run, drawn from run.json, candidates.jsonl and dataset.jsonl alone.

No network and no scripts, which the page's own content policy also forbids; everything from data is escaped. The same figures go to
``report.json`` as numbers and to ``plots/`` as PNG files.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfinstruct.results import plots, words, words_zh
from selfinstruct.results.display import evidence, sample, shown
from selfinstruct.results.rundir import SURPLUS, Judged, RunData, Stage, read_run
from sft.text.tokens import is_cjk, length, tokens

_TEMPLATE = Path(__file__).parent / "report.html.jinja"
_EXAMPLES = 3  # refused candidates shown per reason
_KEPT = 12  # rows shown
_SEED = 0  # of the draw of examples
_KNOWN = {
    *("name", "strategy", "teacher", "prompts", "seeds", "filters", "usage", "cost", "errors", "waits", "recipe", "versions"),
    *("language", "target", "licence_note"),
}


@dataclass(frozen=True, slots=True)
class Roots:
    """Root verbs and nouns of the rows.

    Attributes:
        language: ``en`` or ``zh``: whose rules were used.
        pairs: how often each verb took each noun ("" where it took none).
        total: rows looked at.
    """

    language: str
    pairs: Counter[tuple[str, str]]
    total: int

    @property
    def found(self) -> int:
        return self.pairs.total()

    def verbs(self) -> Counter[str]:
        """How often each verb occurs."""
        verbs: Counter[str] = Counter()
        for (verb, _), count in self.pairs.items():
            verbs[verb] += count
        return verbs


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``plots/*.png`` into a run directory; older ones are replaced.

    Returns:
        The page.

    Raises:
        DataError: the run's files are missing or damaged.
    """
    run = read_run(run_dir)
    nearest = nearest_seed(run)
    roots = find_roots([row.instruction for row in run.rows])
    drawn = plots.render(_figures(run, nearest, roots), run.path / "plots")
    numbers = summary(run, nearest, roots)
    _replace(run.path / "report.json", json.dumps(numbers, ensure_ascii=False, indent=1) + "\n")
    page = run.path / "report.html"
    _replace(page, _page(run, numbers, drawn))
    return page


def nearest_seed(run: RunData) -> list[float]:
    """For each row the highest ROUGE-L F of its instruction with any seed instruction; empty if ``run.json`` names no seeds.

    F of the longest common subsequence over :func:`sft.text.tokens.tokens`. The tokens become characters of one alphabet, so that
    rapidfuzz compares all pairs (52K rows with 175 seeds: some seconds).
    """
    import numpy as np
    from rapidfuzz import process
    from rapidfuzz.distance import LCSseq

    seeds = [value for value in _list(run.section("seeds").get("instructions")) if isinstance(value, str)]
    if not seeds or not run.rows:
        return []
    alphabet: dict[str, str] = {}

    def spelled(instruction: str) -> str:
        # 0xE000 is the first code point past the surrogates; a million tokens fit
        return "".join(alphabet.setdefault(token, chr(0xE000 + len(alphabet))) for token in tokens(instruction))

    known = [spelled(seed) for seed in seeds]
    scores: list[float] = []
    for start in range(0, len(run.rows), 4096):
        asked = [spelled(row.instruction) for row in run.rows[start : start + 4096]]
        common = process.cdist(asked, known, scorer=LCSseq.similarity, dtype=np.int32)
        sizes = np.add.outer([len(a) for a in asked], [len(k) for k in known])
        scores += (2 * common / np.maximum(sizes, 1)).max(axis=1).tolist()
    return scores


def find_roots(instructions: Sequence[str]) -> Roots:
    """Root verbs and nouns, by the rules of the language that most of the instructions are in."""
    chinese = 2 * sum(is_cjk(instruction) for instruction in instructions) > len(instructions)
    root = words_zh.root_chinese if chinese else words.root_english
    found = (root(instruction) for instruction in instructions)
    return Roots("zh" if chinese else "en", Counter((one.verb, one.noun) for one in found if one), len(instructions))


def summary(run: RunData, nearest: Sequence[float], roots: Roots) -> dict[str, Any]:
    """Everything that the page states, as numbers, for ``report.json``."""
    stages = run.funnel()
    pieces = len(run.judged) + len(run.failures)
    accepted = sum(item.accepted for item in run.judged)
    return {
        "name": run.name,
        "rows": len(run.rows),
        "unanswered": dict(Counter(failure.reason for failure in run.unanswered)),
        "candidates": len(run.judged),
        "pieces": pieces,
        "accepted": accepted,
        "yield": accepted / pieces if pieces else 0.0,
        "funnel": [
            {"filter": stage.name, "refused": stage.refused, "left": stage.left, "reasons": dict(stage.reasons)}
            for stage in stages
        ],
        "usage": dict(run.section("usage")),
        "cost": dict(run.section("cost")),
        "with_input": sum(bool(row.input) for row in run.rows),
        "length": {
            part: _spread(value)
            for part, value in (
                ("instruction", _lengths(row.instruction for row in run.rows)),
                ("input", _lengths(row.input for row in run.rows if row.input)),
                ("output", _lengths(row.output for row in run.rows)),
            )
        },
        "nearest_seed": _spread(nearest),
        "roots": {
            "language": roots.language,
            "found": roots.found,
            "of": roots.total,
            "verbs": len(roots.verbs()),
            "pairs": sum(bool(noun) for _, noun in roots.pairs),
            "top": roots.verbs().most_common(20),
        },
    }


def _figures(run: RunData, nearest: Sequence[float], roots: Roots) -> list[plots.Figure]:
    stages = run.funnel()
    figures = [plots.funnel([(shown(stage.name, 40), stage.left, stage.refused) for stage in stages])]
    if not run.rows:
        return figures
    unit = "characters" if roots.language == "zh" else "words"
    inputs = _lengths(row.input for row in run.rows if row.input)
    figures.append(plots.histogram("instruction_length", "Instruction length", _lengths(r.instruction for r in run.rows), unit))
    if inputs:
        note = f"{len(run.rows) - len(inputs):,} rows without an input are left out."
        figures.append(plots.histogram("input_length", "Input length", inputs, unit, note=note))
    figures.append(plots.histogram("output_length", "Output length", _lengths(row.output for row in run.rows), unit))
    if nearest:
        figures.append(plots.histogram("nearest_seed", "ROUGE-L to the nearest seed", nearest, "ROUGE-L F", unit=1.0))
    paired = sum(count for (_, noun), count in roots.pairs.items() if noun)
    if paired:
        note = (
            f"The {plots.RINGS[0]} most frequent verbs, up to {plots.RINGS[1]} nouns each. Of {roots.total:,} instructions"
            f" {paired:,} have both; {roots.found - paired:,} have a verb alone,"
            f" {roots.total - roots.found:,} are questions or open with no known verb."
        )
        fonts = ("DejaVu Sans", *plots.cjk_fonts()) if roots.language == "zh" else ()
        figures.append(plots.sunburst(roots.pairs, note=note, fonts=fonts))
    return figures


def _page(run: RunData, numbers: Mapping[str, Any], drawn: Sequence[tuple[plots.Figure, str]]) -> str:
    import jinja2
    from markupsafe import Markup

    # matplotlib wrote these, and escapes the words in them
    charts = [(figure.title, figure.note, Markup(svg), figure.name) for figure, svg in drawn if figure.name != "funnel"]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.name,
        facts=facts_of(run, numbers),
        charts=charts,
        stages=run.funnel(),
        pieces=max(1, int(numbers["pieces"])),
        refused=_refused(run),
        kept=sample(run.rows, _KEPT, _SEED),
        tables=_tables(run),
        surplus=SURPLUS,
    )


def facts_of(run: RunData, numbers: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """The summary table, in the order in which a reader asks."""
    numbers = numbers if numbers is not None else summary(run, [], find_roots([]))
    usage, cost, teacher = run.section("usage"), run.section("cost"), run.section("teacher")
    target = run.facts.get("target")
    rows = f"{numbers['rows']:,}" + (f" of {target:,} wanted" if isinstance(target, int) and target != numbers["rows"] else "")
    facts = [
        ("rows", f"{rows}, {numbers['with_input']:,} of them with an input"),
        ("yield", f"{numbers['yield']:.1%}: {numbers['accepted']:,} accepted of {numbers['pieces']:,} pieces of completions"),
        ("strategy", str(run.facts.get("strategy", "not recorded"))),
        ("teacher", ", ".join(map(str, _list(teacher.get("models")))) or "not recorded"),
    ]
    if isinstance(usage.get("requests"), int):
        paid = usage.get("paid_requests")
        facts.append(
            (
                "requests",
                f"{usage['requests']:,}" + (f", {paid:,} of them paid for in this run" if isinstance(paid, int) else ""),
            )
        )
    if numbers["unanswered"]:
        facts.append(("without a reply", ", ".join(f"{code} {count:,}" for code, count in numbers["unanswered"].items())))
    if isinstance(usage.get("prompt_tokens"), int) and isinstance(usage.get("completion_tokens"), int):
        total = usage["prompt_tokens"] + usage["completion_tokens"]
        each = f"; {total / numbers['rows']:,.0f} per row" if numbers["rows"] else ""
        facts.append(("tokens", f"{usage['prompt_tokens']:,} asked, {usage['completion_tokens']:,} answered{each}"))
    money = cost.get("money")
    if isinstance(money, (int, float)):
        currency = str(cost.get("currency", "")).strip()
        cap = cost.get("cap")
        line = f"{money:,.4g} {currency}" + (f" of at most {cap:,.4g}" if isinstance(cap, (int, float)) else "")
        facts.append(("cost", line + (f"; {1000 * money / numbers['rows']:,.4g} per 1,000 rows" if numbers["rows"] else "")))
    facts += [
        (key, str(value)) for key, value in run.facts.items() if key not in _KNOWN and isinstance(value, (str, int, float))
    ]
    return facts


def _refused(run: RunData) -> list[tuple[Stage, list[tuple[str, int, list[dict[str, str]]]]]]:
    """Per filter and reason, examples of what was refused."""
    by_reason: dict[tuple[str, str], list[dict[str, str]]] = {}
    for failure in run.failures:
        example = {"instruction": "", "input": "", "output": failure.detail, "evidence": f"request {failure.request_id}"}
        by_reason.setdefault(("parsing", failure.reason), []).append(example)
    refused: dict[tuple[str, str], list[Judged]] = {}
    for item in run.judged:
        if not item.accepted and item.filter != SURPLUS:
            refused.setdefault((item.filter, item.reason), []).append(item)
    for key, items in refused.items():
        by_reason[key] = [
            {"instruction": i.instruction, "input": i.input, "output": i.output, "evidence": evidence(i.evidence)}
            for i in sample(items, _EXAMPLES, _SEED)
        ]
    return [
        (
            stage,
            [
                (reason, count, sample(by_reason.get((stage.name, reason), []), _EXAMPLES, _SEED))
                for reason, count in sorted(stage.reasons.items(), key=lambda item: (-item[1], item[0]))
            ],
        )
        for stage in run.funnel()
        if stage.refused and stage.name != SURPLUS
    ]


def _tables(run: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """What else ``run.json`` tells, for the folded tables at the end; texts of seeds are left out."""
    tables = []
    for key in ("teacher", "errors", "waits", "prompts", "seeds", "recipe", "versions"):
        values = {name: value for name, value in run.section(key).items() if name != "instructions"}
        if values:
            lines = [(str(n), v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for n, v in values.items()]
            tables.append((key, lines))
    return tables


def _lengths(texts: Iterable[str]) -> list[int]:
    return [length(one)[0] for one in texts]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median and 95th percentile (nearest rank); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "mean": sum(ordered) / len(ordered),
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, 95 * len(ordered) // 100)],
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _replace(path: Path, content: str) -> None:
    """A reader sees the old page or the whole new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(content, encoding="utf-8", errors="backslashreplace")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
