"""The novelty filter against the original's way of computing it, in one run.

``python benchmarks/novelty.py [--data FOLDER] [--rows 52000] [--million] [--agree 6000]``. The folder (or ``VICUGNA_DATA``) holds
``instructions/*.json``, lists of Alpaca rows. English instructions among them are real candidates; the rest of the stream is spliced from
them: the beginning of one and the end of another at a word that both have.

The original opens a pool of processes per candidate and scores the candidate against every row with rouge_score (stanford_alpaca,
``generate_instruction.py``). It is timed here on a few candidates at several pool sizes; its time for the whole stream is the integral of
those medians over the pool sizes that the stream met, an extrapolation. Ours is measured whole.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from rouge_score import rouge_scorer

from selfinstruct.filters.languages import language
from selfinstruct.filters.novelty import NoveltyIndex
from sft.text.tokens import tokens

SIZES = (1_000, 5_000, 20_000, 52_000)


def real_instructions(folder: Path) -> list[str]:
    """Distinct English instructions in file order."""
    found: dict[str, None] = {}
    for file in sorted(folder.glob("instructions/*.json")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            text = str(row.get("instruction") or "").strip()
            if text and language(text) in ("en", "und"):
                found[text] = None
    return list(found)


def spliced(real: list[str], dice: random.Random) -> Iterator[str]:
    """Texts made of the beginning of one instruction and the end of another, joined at a word of both; without end."""
    words = [text.split() for text in real]
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, line in enumerate(words):
        for at, word in enumerate(line):
            places[word].append((i, at))
    while True:
        first = dice.choice(words)
        if len(first) < 5:
            continue
        at = dice.randrange(len(first) // 4 + 1, len(first) - len(first) // 4)
        other, start = dice.choice(places[first[at]])
        made = first[:at] + words[other][start:]
        if words[other] is not first and 3 < len(made) < 60:
            yield " ".join(made)


def original(candidate: list[str], pool: list[list[str]], processes: int) -> float:
    """The original's highest score of one candidate."""
    with multiprocessing.Pool(processes) as workers:
        scores = workers.map(functools.partial(rouge_scorer._score_lcs, candidate), pool)
    return max(score.fmeasure for score in scores)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def build(stream: list[str], rows: int, limit: int) -> tuple[NoveltyIndex, list[int], int, float]:
    """Offer candidates until so many are kept: index, how many were kept before each candidate, candidates offered, seconds."""
    index, sizes = NoveltyIndex(), list[int]()
    ids = [str(i) for i in range(limit)]
    start = time.perf_counter()
    for id_, text in zip(ids, stream, strict=False):
        index.offer(id_, text)
        if len(index) == rows:
            break
    took = time.perf_counter() - start
    offered = int(index.ids[-1]) + 1
    kept = set(index.ids)
    for i in range(offered):
        sizes.append((sizes[-1] if sizes else 0) + (str(i) in kept))
    return index, sizes, offered, took


def spread(values: list[float], unit: float) -> str:
    ordered = sorted(values)
    p50, p90, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * q))] / unit for q in (0.5, 0.9, 0.99))
    return f"p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f}, mean {statistics.fmean(values) / unit:.1f}"


def latency(index: NoveltyIndex, probes: list[str]) -> tuple[list[float], list[float]]:
    """Seconds per decision, for new texts and for near-duplicates."""
    new, old = list[float](), list[float]()
    for text in probes:
        start = time.perf_counter()
        hit = index.check(text)
        (new if hit is None else old).append(time.perf_counter() - start)
    return new, old


def time_original(pool: list[list[str]], probes: list[list[str]], processes: int, repeats: dict[int, int]) -> dict[int, float]:
    """Median seconds per candidate at each pool size."""
    found = {}
    for size, count in repeats.items():
        if size <= len(pool):
            found[size] = statistics.median(
                seconds(lambda p=p, s=size: original(p, pool[:s], processes)) for p in probes[:count]
            )
            print(
                f"  original, {processes} processes, pool {size:>6,}: median {found[size] * 1e3:8.1f} ms of {count} candidates",
                flush=True,
            )
    return found


def integrate(medians: dict[int, float], sizes: list[int]) -> float:
    """The original's seconds for candidates that met pools of these sizes: its medians, piecewise linear."""
    points = sorted(medians.items())
    total = 0.0
    for size in sizes:
        (a, ta), (b, tb) = next(((p, q) for p, q in itertools.pairwise(points) if size <= q[0]), (points[-2], points[-1]))
        total += max(0.0, ta + (tb - ta) * (size - a) / (b - a))
    return total


def agree(real: list[str], count: int) -> None:
    """Decide real candidates by rouge_score's own code over every kept row whose length allows a hit, and compare."""
    index, kept, equal, ties, refused = NoveltyIndex(), list[list[str]](), 0, 0, 0
    from rouge_score import tokenize

    start = time.perf_counter()
    candidates = real[:count]
    foreign = 0
    for i, text in enumerate(candidates):
        words = tokenize.tokenize(text, None)
        foreign += words != tokens(text)
        m, above = len(words), False
        for row in kept:
            if 2 * min(m, len(row)) >= 0.7 * (m + len(row)) - 1e-6:
                f = rouge_scorer._score_lcs(words, row).fmeasure
                ties += abs(f - 0.7) < 1e-12
                if f > 0.7:
                    above = True
                    break
        equal += (index.offer(str(i), text) is not None) == above
        refused += above
        if not above:
            kept.append(words)
        if i % 1000 == 999:
            print(f"  {i + 1:,} decided, {equal:,} equal, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"decisions equal to rouge_score: {equal:,} of {len(candidates):,} real candidates")
    print(
        f"  ({refused:,} refused; {ties} pairs at the threshold; {foreign} candidates not in ASCII, whose tokens differ by design)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, default=os.environ.get("VICUGNA_DATA"), help="folder with instructions/*.json")
    parser.add_argument("--rows", type=int, default=52_000, help="rows to keep")
    parser.add_argument("--repeats", type=int, default=5, help="builds to take the median of")
    parser.add_argument("--processes", type=int, default=16, help="of the original, which has 16")
    parser.add_argument("--million", action="store_true", help="also decide at a pool of 1,000,000")
    parser.add_argument("--agree", type=int, default=0, metavar="N", help="only: decide N real candidates with rouge_score too")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("novelty needs --data FOLDER, or VICUGNA_DATA naming a folder with instructions/*.json")
    real = real_instructions(options.data)
    if not real:
        sys.exit(f"{options.data}/instructions/*.json holds no English instruction")
    dice = random.Random(0)
    warm = NoveltyIndex()
    first = seconds(
        lambda: (warm.offer("a", "one two three"), warm.check("one two"), warm.neighbours("one"), warm.scores("one"))
    )
    print(f"first use (imports, compiles or reads the cache): {first:.2f} s; load {os.getloadavg()[0]:.1f}")
    dice.shuffle(real)
    if options.agree:
        agree(real, options.agree)
        return
    maker = spliced(real, dice)
    limit = options.rows * 4
    stream = real + list(itertools.islice(maker, max(0, options.rows * 2 - len(real))))
    dice.shuffle(stream)
    stream += itertools.islice(maker, limit - len(stream))
    measure(options, real, stream, maker, limit)


def measure(options: argparse.Namespace, real: list[str], stream: list[str], maker: Iterator[str], limit: int) -> None:
    times = []
    for _ in range(options.repeats):
        index, sizes, offered, took = build(stream, options.rows, limit)
        times.append(took)
    ours = statistics.median(times)
    known = set(real)
    shares = sum(text in known for text in stream[:offered])
    print(
        f"pool of {len(index):,} built from {offered:,} candidates ({shares:,} real, the others spliced), {offered - len(index):,} refused"
    )
    print(
        f"  ours, one thread, tokenising included: median {ours:.2f} s of {options.repeats} ({min(times):.2f} to {max(times):.2f})"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"  memory: {index.nbytes / len(index):.0f} bytes per row in arrays; peak of the process {before / 2**10:.0f} MiB")
    probes = stream[offered : offered + 4000] or stream[:4000]
    rows = [stream[int(id_)] for id_ in index.ids]
    decided: dict[int, float] = {}
    for size in (*SIZES, options.rows):
        if size <= len(rows) and size not in decided:
            part = NoveltyIndex()
            for i, text in enumerate(rows[:size]):
                part.add(str(i), text)
            new, old = latency(part, probes)
            decided[size] = statistics.median(new + old)
            near = [seconds(lambda t=t, p=part: p.neighbours(t, 10)) for t in probes[:500]]
            print(
                f"  decision at {size:>9,}, us: new {spread(new, 1e-6)}; refused {spread(old, 1e-6)}; all p50 {decided[size] * 1e6:.1f}"
            )
            print(
                f"  top 10 at   {size:>9,}, us: {spread(near, 1e-6)}; mean of all: {seconds(lambda p=part: p.scores(probes[0])) * 1e6:.0f}"
            )
    words = [tokens(text) for text in rows]
    asked = [tokens(text) for text in probes[:24]]
    medians = time_original(words, asked, options.processes, {1_000: 12, 5_000: 8, 20_000: 6, 52_000: 5})
    if len(medians) > 1:
        whole = integrate(medians, sizes)
        print(f"  original for the whole stream, EXTRAPOLATED from these medians: {whole:,.0f} s = {whole / 3600:.1f} h")
        print(f"  ratio, extrapolated: {whole / ours:,.0f}")
        for size, median in medians.items():
            if size in decided:
                print(f"  per candidate at {size:,}: {median / decided[size]:,.0f} times")
    if options.million:
        at_a_million(maker, probes)


def at_a_million(maker: Iterator[str], probes: list[str]) -> None:
    index = NoveltyIndex()
    texts = list(itertools.islice(maker, 1_000_000))
    took = seconds(lambda: [index.add(str(i), text) for i, text in enumerate(texts)])
    new, old = latency(index, probes)
    both = statistics.median(new + old)
    print(
        f"pool of {len(index):,} spliced rows, added unchecked in {took:.1f} s; {index.nbytes / len(index):.0f} bytes per row in arrays"
    )
    print(f"  decision, us: new {spread(new, 1e-6)}; refused {spread(old, 1e-6)}; all p50 {both * 1e6:.1f}")


if __name__ == "__main__":
    main()
