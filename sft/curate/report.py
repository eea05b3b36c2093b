"""``report.html``: one page per curation, drawn from run.json alone.

No network and no scripts, which the page's own content policy also forbids; everything from data is escaped, and characters that hide or
turn other text are spelled out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.config import dotted, flatten
from sft.curate import charts
from sft.curate.parts import CUT
from sft.curate.screen import HIDDEN, mix_line, rate
from sft.curate.statistics import UNKNOWN
from sft.curate.worddiff import diff
from sft.errors import DataError
from sft.text.display import shown

_TEMPLATE = Path(__file__).parent / "report.html.jinja"
_LANGUAGES = 16  # in a chart
_LEAST_CHARACTERS = 200  # of answers in a language, below which tokens per character say nothing

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
    stages = {name: stage for name, stage in run["stages"].items() if name not in HIDDEN}
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=folder.resolve().name,
        tiles=_tiles(run, stages),
        funnel=_funnel(run, stages),
        sources=[(label, mix_line(counts)) for label, counts in run["mixed"].items()],
        changed=_changed(stages),
        dropped=_dropped(stages),
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
    """What is asked first, in large."""
    first, last = next(iter(stages.values())), list(stages.values())[-1]
    tiles = [(f"{first['rows_in']:,}", "rows read")]
    if run["mixed"]:
        tiles.append((f"{sum(counts['written'] for counts in run['mixed'].values()):,}", "rows to train on"))
        tiles.append((f"{sum(counts['held_out'] for counts in run['mixed'].values()):,}", "held out"))
    else:
        tiles.append((f"{last['rows_out']:,}", "rows out"))
    tiles.append((f"{sum(sum(stage['counts'].values()) for stage in stages.values()):,}", "left out, rows and exchanges"))
    before, after = first["characters_in"], last["characters_out"]
    tiles.append((f"{after:,}", f"characters, of {before:,} read"))
    totals = last["histograms"].get("totals", {})
    if totals:
        tiles.append((f"{totals['tokens']:,}", "tokens"))
        tiles.append((f"{totals['learnt tokens'] / max(totals['tokens'], 1):.1%}", "of them learnt"))
    return tiles


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
    clean = stages.get("clean", {}).get("histograms", {})
    last = list(stages.values())[-1]["histograms"]
    if clean.get("turns"):
        yield charts.columns("Turns per conversation", "messages, once cleaned", "conversations", clean["turns"])
        both = [(name, clean[f"characters {name}"]) for name in ("before", "after")]
        yield charts.ranges("Length of conversations, before and after cleaning", "characters", "conversations", both)
        roles = [
            (role, clean[f"characters {role}"]) for role in ("user", "assistant", "system") if f"characters {role}" in clean
        ]
        yield charts.ranges("Length of messages by who speaks", "characters", "messages", roles)
        note = "Told from the first question; ? where it is too short, or mostly code."
        yield charts.bars("Languages", "conversations", _largest(clean["languages"]), note=note)
    if last.get("tokens"):
        limit = run["recipe"]["split"]["max_length"]
        title, note = "Length of training rows", "Template and special tokens included."
        yield charts.ranges(title, "tokens", "rows", [("rows", last["tokens"])], note=note, mark=limit)
        yield charts.columns("Learnt share of each row", "percent, rounded down", "rows", last["learnt share"], step=10)
        rates = _rates(last["language tokens"], last["language characters"])
        if rates:
            note = f"Of answers, each with its stop token; languages with fewer than {_LEAST_CHARACTERS} characters left out."
            yield charts.bars("Tokens per character", "tokens per character", rates, note=note, form="{:.3f}")
    if run["clusters"].get("sizes"):
        note = "Conversations that say the same, the one that stays included."
        yield charts.columns(
            "Clusters of duplicates", "conversations in a cluster", "clusters", run["clusters"]["sizes"], note=note
        )


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


def _dropped(stages: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Each stage and reason by which rows were left out, with some of them."""
    return [
        {"stage": name, "reason": reason, "count": count, "examples": stage["left_out"].get(reason, [])}
        for name, stage in stages.items()
        for reason, count in _by_count(stage["counts"])
    ]


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
