"""What a decision about duplicates looks like: how large the clusters are, and one pair of some of them side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sft.curate.chat import Chat, read_chat
from sft.curate.dedup import Cluster, Decision, Duplicate
from sft.curate.duplicates import STRIDE
from sft.curate.parts import near_the_change, read_part

SHOWN: Final = 8  # clusters with their pair


def describe(decision: Decision, name: Callable[[int], str], parts: Sequence[Path]) -> dict[str, Any]:
    """Clusters for the report, the same for any division into parts.

    Args:
        decision: over all rows.
        name: id of a row by its index.
        parts: the files that the indices lead into.

    Returns:
        ``sizes``: members -> clusters; ``shown``: clusters with near duplicates first, then the largest, each with ``size``, ``kept``
        (id), ``reasons`` (-> rows) and the pair that differs most: ``dropped`` and ``of`` (ids), ``reason``, ``similarity`` (None where
        it was not measured) and the texts ``before`` (of the one left out) and ``after`` (of the one that it repeats).
    """
    clusters = decision.clusters
    pairs = {cluster.kept: _pair(cluster, decision) for cluster in clusters}
    ordered = sorted(clusters, key=lambda one: (pairs[one.kept][1].reason != "near_duplicate", -len(one.dropped), one.kept))[
        :SHOWN
    ]
    texts = _texts([at for one in ordered for at in (pairs[one.kept][0], pairs[one.kept][1].of)], parts)
    shown = []
    for cluster in ordered:
        dropped, found = pairs[cluster.kept]
        before, after = near_the_change(texts[dropped], texts[found.of])
        about = {"size": len(cluster.dropped) + 1, "kept": name(cluster.kept), "dropped": name(dropped), "of": name(found.of)}
        reasons = dict(sorted(Counter(decision.duplicates[at].reason for at in cluster.dropped).items()))
        told = {"reason": found.reason, "similarity": found.similarity, "before": before, "after": after}
        shown.append({**about, "reasons": reasons, **told})
    sizes = Counter(len(cluster.dropped) + 1 for cluster in clusters)
    return {"sizes": {str(size): sizes[size] for size in sorted(sizes)}, "shown": shown}


def _pair(cluster: Cluster, decision: Decision) -> tuple[int, Duplicate]:
    """The member that is least like the one it repeats."""
    found = [(at, decision.duplicates[at]) for at in cluster.dropped]
    return min(found, key=lambda one: (one[1].reason != "near_duplicate", one[1].similarity or 0.0, one[0]))


def _texts(indices: Iterable[int], parts: Sequence[Path]) -> dict[int, str]:
    found: dict[int, str] = {}
    for index in sorted(set(indices)):
        row = next(islice(read_part(parts[index // STRIDE]), index % STRIDE, None))
        found[index] = _text(read_chat(row, row["id"]))
    return found


def _text(chat: Chat) -> str:
    return "\n\n".join(f"{message.role}: {message.text}" for message in chat.messages)
