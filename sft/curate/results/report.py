"""``report.html``: one page per curation, drawn from run.json alone.

No network and no scripts, which the page's own content policy also forbids; everything from data is escaped, and characters that hide or
turn other text are spelled out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sft.config import dotted, flatten
from sft.curate.parts import CUT, EXAMPLES
from sft.curate.results import charts
from sft.curate.results.worddiff import diff
from sft.curate.screen import rate
from sft.curate.statistics import UNKNOWN
from sft.errors import DataError
from sft.text.display import shown

_TEMPLATE = Path(__file__).parent / "report.html.jinja"
_LANGUAGES = 16  # in a chart
_LEAST_CHARACTERS = 200  # of answers in a language, below which tokens per character say nothing
_STAGES = ("clean", "dedup", "split")  # that rows pass through in parts

REASONS: Final[Mapping[str, tuple[str, ...]]] = {
    "html": (),
    "role_repair": ("no_exchange", "role_order"),
    "empty_turn": ("empty_turn",),
    "min_length": ("too_short", "too_few_turns"),
    "single_round": ("no_exchange",),
    "notice": ("notice",),
    "refusal": ("refusal",),
    "vendor_names": ("vendor_name",),
    "repetition": ("repeated_digits", "repeated_characters", "repeated_lines", "repeated_phrase"),
    "broken_list": ("broken_list",),
    "language": ("other_language", "language_unknown"),
    "model": ("other_model", "model_missing"),
    "field": ("field_value", "field_set", "field_missing"),
    "pii": (),
    "contamination": ("in_evaluation_set", "overlaps_evaluation_set"),
}
"""Kind of a rule -> what it leaves conversations out for. Where two rules of a recipe share a reason, it counts for the first of them."""

_NO_PAIR = {
    "same_id_renamed": "Another conversation has the same id; this one's got an ending made of its content (id~1a2b3c4d). No text changed.",
    "split": "Longer than split.max_length: cut between exchanges into rows called id#0, id#2, ... No text changed.",
    "exchange_too_long_kept": "One exchange is longer than split.max_length by itself. It stays whole here; the training cuts it.",
}
"""Changes that have no text before and after to show."""

Run = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` beside the record that it is drawn from.

    Args:
        folder: a run directory.

    Returns:
        The page.

    Raises:
        DataError: no record of a curation there.
    """
    import jinja2
    from markupsafe import Markup

    run = read_record(folder)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    environment.filters["number"] = lambda value: f"{value:,}"
    stages = {name: run["stages"][name] for name in _STAGES if name in run["stages"]}
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=folder.resolve().name,
        tiles=_tiles(run, stages),
        funnel=_funnel(run, stages),
        table=_table(run, stages),
        rules=_rules(run, stages),
        split="split" in stages,
        mixed=bool(run["mixed"]),
        most=EXAMPLES,
        changed=_changed(stages),
        dropped=_dropped(run, stages),
        # matplotlib wrote these from numbers and our own words
        charts=[(chart.title, chart.note, Markup(chart.svg)) for chart in _charts(run, stages)],
        clusters=_clusters(run["clusters"]),
        files=_files(run["fingerprints"]["sources"]),
        fingerprints=[(name, value) for name, value in run["fingerprints"].items() if name != "sources"],
        recipe=[(dotted(key), _plain(value)) for key, value in flatten(run["recipe"])],
    )
    out = folder / "report.html"
    out.write_text(page, encoding="utf-8", errors="backslashreplace")
    return out


def read_record(folder: Path) -> Run:
    """``run.json`` of a curation.

    Raises:
        DataError: there is none, or it is that of something else.
    """
    path = folder / "run.json"
    try:
        run: Run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no run.json here; give the directory that sft data run wrote (its output.dir)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; run the curation again") from None
    if not isinstance(run, dict) or not {"stages", "mixed", "fingerprints", "clusters", "recipe"} <= run.keys():
        raise DataError(f"{path}: not the record of a curation; give the directory that sft data run wrote")
    return run


# --- numbers ------------------------------------------------------------------------------------------------------------


def _tiles(run: Run, stages: Mapping[str, Run]) -> list[tuple[str, str]]:
    """What is asked first, in large; each says of which rows it speaks."""
    (began, first), (ended, last) = next(iter(stages.items())), list(stages.items())[-1]
    mixed = run["mixed"].values()
    tiles = [
        (first["rows_in"], "rows read"),
        (sum(sum(stage["counts"].values()) for stage in stages.values()), _left_out(stages)),
    ]
    if mixed:
        tiles.append((sum(counts["held_out"] for counts in mixed), "rows held out"))
        tiles.append((sum(counts["written"] for counts in mixed), "rows to train on, copies by weight included"))
    behind = f"the {last['rows_out']:,} rows behind {ended}"
    tiles.append((first["characters_in"], f"characters in the conversations that {began} could read"))
    tiles.append((last["characters_out"], f"characters in {behind}"))
    found = [(f"{number:,}", label) for number, label in tiles]
    if totals := last["histograms"].get("totals", {}):
        share = totals["learnt tokens"] / max(totals["tokens"], 1)
        found.append((f"{totals['tokens']:,}", f"tokens in {behind}, {share:.1%} of them learnt"))
    return found


def _left_out(stages: Mapping[str, Run]) -> str:
    names = list(stages)
    return "rows and exchanges left out by " + " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _table(run: Run, stages: Mapping[str, Run]) -> dict[str, Any] | None:
    """Rows of each source behind each stage; None of a record that does not tell."""
    if not all("sources" in stage for stage in stages.values()):
        return None
    mixed, first = run["mixed"], next(iter(stages.values()))["sources"]
    columns = ["read", *(f"behind {name}" for name in stages)]
    of_mix: dict[str, str] = {}
    if mixed:
        limited, thinned = _left_out_by_mix(mixed).values()
        of_mix = {"within its limit": "within_limit"} if limited else {}
        of_mix |= (
            {"held out": "held_out"} | ({"left out by weight": "by_weight"} if thinned else {}) | {"to train on": "written"}
        )
    rows: list[tuple[str, list[int | None]]] = []
    for label in dict.fromkeys([*first, *mixed]):
        counts = [first.get(label, [None])[0], *(stage["sources"].get(label, [None, None])[1] for stage in stages.values())]
        rows.append((label, [*counts, *(mixed.get(label, {}).get(key) for key in of_mix.values())]))
    if len(rows) > 1:
        rows.append(("all", [sum(filter(None, column)) for column in zip(*(counts for _, counts in rows), strict=True)]))
    return {"columns": [*columns, *of_mix], "rows": rows, "joined": [label for label in mixed if label not in first]}


def _left_out_by_mix(mixed: Run) -> dict[str, int]:
    """Rows of all sources that ``mix.limits``, and weights below 1, leave out."""
    limited = sum(counts["rows"] - counts["within_limit"] for counts in mixed.values())
    return {"limit": limited, "weight": sum(counts.get("by_weight", 0) for counts in mixed.values())}


def _rules(run: Run, stages: Mapping[str, Run]) -> list[dict[str, Any]]:
    """The rules in their order: conversations that each kind changed, and left out."""
    stage = stages.get("clean", {"changed": {}, "counts": {}})
    kinds = Counter(rule["kind"] for rule in run["recipe"]["rules"])
    told: set[str] = set()
    found = []
    for kind, times in kinds.items():
        reasons = [reason for reason in REASONS.get(kind, ()) if reason not in told]
        told.update(reasons)
        dropped = sum(stage["counts"].get(reason, 0) for reason in reasons)
        name = kind if times == 1 else f"{kind}, {times} rules together"
        found.append({"name": name, "changed": stage["changed"].get(kind, 0), "dropped": dropped})
    return found


def _funnel(run: Run, stages: Mapping[str, Run]) -> list[dict[str, Any]]:
    """A line per stage. Splitting gives more rows than come in, so the bars are of characters."""
    most = max([1, *(stage["characters_in"] for stage in stages.values())])
    found = []
    for name, stage in stages.items():
        parts, reused = run["parts"][name]
        found.append(
            {
                "name": name,
                "rows_in": stage["rows_in"],
                "dropped": sum(stage["counts"].values()),
                "rows_out": stage["rows_out"],
                "kept": 100 * stage["characters_out"] / most,
                "lost": 100 * max(0, stage["characters_in"] - stage["characters_out"]) / most,
                "parts": f"{parts:,}" + (f", {reused:,} as they stood" if reused else ""),
                "speed": rate(run["fresh"][name], run["seconds"][name]),
            }
        )
    return found


def _charts(run: Run, stages: Mapping[str, Run]) -> Iterator[charts.Chart]:
    yield from _cleaned(stages.get("clean", {}))
    yield from _cut(stages.get("split", {}), run)
    if run["clusters"].get("sizes"):
        note = "In dedup: conversations that say the same, the one that stays included."
        yield charts.columns(
            "Clusters of duplicates", "conversations in a cluster", "clusters", run["clusters"]["sizes"], note=note
        )


def _cleaned(stage: Run) -> Iterator[charts.Chart]:
    """Charts of the conversations as they were read, and as ``clean`` leaves them."""
    counted = stage.get("histograms", {})
    if not counted.get("turns"):
        return
    read, kept = sum(counted["characters before"].values()), sum(counted["turns"].values())
    behind = f"Behind clean: {kept:,} conversations."
    yield charts.columns("Turns per conversation", "messages", "conversations", counted["turns"], note=behind)
    both = [(name, counted[f"characters {name}"]) for name in ("before", "after")]
    note = f"In clean: {read:,} conversations as they were read (markup included), {kept:,} as they stay."
    yield charts.ranges("Length of conversations, before and after cleaning", "characters", "conversations", both, note=note)
    roles = [
        (role, counted[f"characters {role}"]) for role in ("user", "assistant", "system") if f"characters {role}" in counted
    ]
    yield charts.ranges("Length of messages by who speaks", "characters", "messages", roles, note=behind)
    note = f"{behind} Told from the first question; ? where it is too short, or mostly code."
    yield charts.bars("Languages", "conversations", _largest(counted["languages"]), note=note)


def _cut(stage: Run, run: Run) -> Iterator[charts.Chart]:
    """Charts of the rows that ``split`` makes, before any is held out, repeated or left to a limit."""
    counted = stage.get("histograms", {})
    if not counted.get("tokens"):
        return
    behind = f"Behind split: {stage['rows_out']:,} rows, those held out included."
    limit, note = run["recipe"]["split"]["max_length"], f"{behind} Template and special tokens included."
    yield charts.ranges("Length of rows", "tokens", "rows", [("rows", counted["tokens"])], note=note, mark=limit)
    yield charts.columns(
        "Learnt share of each row", "percent, rounded down", "rows", counted["learnt share"], note=behind, step=10
    )
    rates = _rates(counted["language tokens"], counted["language characters"])
    if rates:
        note = f"Behind split: answers, each with its stop token; no languages with fewer than {_LEAST_CHARACTERS} characters."
        yield charts.bars("Tokens per character", "tokens per character", rates, note=note, form="{:.3f}")


def _largest(counts: Mapping[str, int]) -> list[tuple[str, float]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_LANGUAGES:])
    named: list[tuple[str, float]] = [(name, count) for name, count in ordered[:_LANGUAGES]]
    return [*named, ("others", rest)] if rest else named


def _rates(tokens: Mapping[str, int], characters: Mapping[str, int]) -> list[tuple[str, float]]:
    told = [code for code in tokens if code != UNKNOWN and characters[code] >= _LEAST_CHARACTERS]
    found = [(code, tokens[code] / characters[code]) for code in told]
    return sorted(found, key=lambda item: (-characters[item[0]], item[0]))[:_LANGUAGES]


# --- rows ---------------------------------------------------------------------------------------------------------------


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _changed(stages: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Each stage and rule that changed rows, with some of them before and after."""
    return [
        {
            "stage": name,
            "reason": reason,
            "count": count,
            "told": _NO_PAIR.get(reason, ""),
            "examples": [
                {"place": place, "sides": _sides(before, after)} for place, before, after in stage["examples"].get(reason, [])
            ],
        }
        for name, stage in stages.items()
        for reason, count in _by_count(stage["changed"])
    ]


def _sides(before: str, after: str) -> Sequence[list[tuple[str, bool]]]:
    whole = not (before.endswith(CUT) or after.endswith(CUT))
    return [[(shown(text, 4000), marked) for text, marked in side] for side in diff(before, after, whole=whole)]


def _dropped(run: Run, stages: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Each stage and reason by which rows were left out, with some of them; the mix says only how many."""
    mixed = [
        {"stage": "mix", "reason": reason, "count": count, "examples": []}
        for reason, count in _left_out_by_mix(run["mixed"]).items()
        if count
    ]
    return [
        {"stage": name, "reason": reason, "count": count, "examples": stage["left_out"].get(reason, [])}
        for name, stage in stages.items()
        for reason, count in _by_count(stage["counts"])
    ] + mixed


def _clusters(clusters: Run) -> list[dict[str, Any]]:
    found = []
    for cluster in clusters.get("shown", ()):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in cluster["reasons"].items())
        alike = "" if cluster["similarity"] is None else f", similarity {cluster['similarity']:.2f}"
        same = cluster["before"] == cluster["after"]
        found.append(
            {
                "title": f"{cluster['size']:,} conversations: {reasons}",
                "left": f"{cluster['dropped']}, left out ({cluster['reason']}{alike})",
                "right": cluster["of"]
                if cluster["of"] == cluster["kept"]
                else f"{cluster['of']}, itself left out for {cluster['kept']}",
                "same": same,
                "sides": [[(cluster["after"], False)]] * 2 if same else _sides(cluster["before"], cluster["after"]),
            }
        )
    return found


def _files(sources: Sequence[Run]) -> list[tuple[str, str]]:
    """What each source consisted of."""
    found = []
    for source in sources:
        for file in source.get("files", ()):
            found.append((f"{source['label']}: {file['name']}", f"{file['bytes']:,} bytes, sha256 {file['sha256']}"))
        if "hub" in source:
            places = (f"{key} {source[key]}" for key in ("hub", "subset", "revision", "split") if source.get(key))
            found.append((source["label"], ", ".join(places)))
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
