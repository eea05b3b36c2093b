"""Near-duplicate search against datasketch and rensa in one run, and over a synthetic pool of 100,000 conversations.

``python benchmarks/dedup.py [--data FOLDER] [--rows 100000] [--sample 1000] [--processes 2]``. The folder (or ``VICUGNA_DATA``) holds
``chat/*.json`` in ShareGPT's shape and ``instructions/*.json``, lists of Alpaca rows. ``pip install datasketch rensa`` for the columns
of these two; they are no dependency of the project.

The pool is spliced: each conversation is made of paragraphs of real answers drawn at random, about 8 KB. Every 20th is a copy of an earlier
one with 3 % of its words edited, every 50th an exact copy with other white space. So it is known what must be found, and what must not.
Times are CPU seconds of the process (the machine may be shared), unless they say wall.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from sft.curate import minhash
from sft.curate.chat import Chat, Message, read_chat
from sft.curate.dedup import Decision, Deduplicator, DedupSection, NearSection, record_type, signature

_SINGLE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_TOKEN = re.compile(rf"[{_SINGLE}]|(?:(?![{_SINGLE}_])\w)+")
SECTION = DedupSection()


def chats_of(folder: Path) -> list[Chat]:
    rows = [
        (file.name, row) for file in sorted(folder.glob("chat/*.json")) for row in json.loads(file.read_text(encoding="utf-8"))
    ]
    return [read_chat(row, f"{name}:{number}") for number, (name, row) in enumerate(rows)]


def instructions_of(folder: Path) -> Iterator[Chat]:
    for file in sorted(folder.glob("instructions/*.json")):
        for number, row in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            asked = "\n\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
            yield Chat(f"{file.name}:{number}", (Message("user", asked), Message("assistant", str(row.get("output") or ""))))


def megabytes(chats: list[Chat]) -> float:
    return sum(len(m.text.encode("utf-8", "replace")) for c in chats for m in c.messages) / 1e6


def edited(chat: Chat, share: float, dice: random.Random) -> Chat:
    """So many of the words (single characters of Chinese), at least one, replaced, taken out or followed by another."""
    spans = [(number, *found.span()) for number, m in enumerate(chat.messages) for found in _TOKEN.finditer(m.text)]
    texts = [message.text for message in chat.messages]
    for number, low, high in sorted(dice.sample(spans, max(1, int(len(spans) * share))), reverse=True):
        text = texts[number]
        new = chr(dice.randrange(0x4E00, 0x9000)) if text[low] >= "\u3040" else f" new{dice.randrange(10**6)} "
        texts[number] = text[:low] + dice.choice(["", new, text[low:high] + new]) + text[high:]
    messages = tuple(Message(m.role, text) for m, text in zip(chat.messages, texts, strict=True))
    return replace(chat, messages=messages, id=f"{chat.id}-edited")


def shingles(chat: Chat, size: int = 2) -> list[str]:
    """The shingles of a conversation as strings: what a library needs, made as fast as plain Python can."""
    found = []
    for message in chat.messages:
        text = message.text.lower() if message.text.isascii() else unicodedata.normalize("NFKC", message.text).lower()
        words = _TOKEN.findall(text)
        found += [f"{message.role[0]} {one} {other}" for one, other in pairwise(words)] or words
    return found


def exact_jaccard(one: Chat, other: Chat) -> float:
    left, right = set(shingles(one)), set(shingles(other))
    return len(left & right) / max(1, len(left | right))


def near_marks(chat: Chat) -> minhash.Marks | None:
    return minhash.marks([(1 + (m.role != "user"), m.text) for m in chat.messages], "words", 2, 128)


def cpu(run: Callable[[], object], repeats: int = 3) -> float:
    """Median CPU seconds of this process."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def compare(chats: list[Chat]) -> None:
    """Text to signature, and estimates, of every way."""
    size = megabytes(chats)
    dice = random.Random(1)
    pairs = [(c, edited(c, share, dice)) for c in chats[:300] for share in (0.02, 0.05, 0.15)]
    exact = np.array([exact_jaccard(*pair) for pair in pairs])
    print(f"signatures of {len(chats)} real chats, {size:.1f} MB, one thread; estimates over {len(pairs)} edited pairs")
    print("| way | MB/s | error of the estimate: mean, root of mean square |\n|---|---|---|")

    def line(name: str, seconds: float, estimate: Callable[[Chat, Chat], float]) -> float:
        errors = np.array([estimate(*pair) for pair in pairs]) - exact
        print(f"| {name} | {size / seconds:.1f} | {errors.mean():+.4f}, {(errors**2).mean() ** 0.5:.4f} |")
        return seconds

    def ours(one: Chat, other: Chat) -> float:
        left, right = near_marks(one), near_marks(other)
        return 0.0 if left is None or right is None else float((left == right).mean())

    signature(chats[0], SECTION)
    mine = line("ours, marks alone", cpu(lambda: [near_marks(c) for c in chats]), ours)
    whole = cpu(lambda: [signature(c, SECTION) for c in chats])
    print(f"| ours, all keys of `signature` | {size / whole:.1f} | the same |")
    made = cpu(lambda: [shingles(c) for c in chats])
    print(f"| shingles as Python strings alone | {size / made:.1f} | |")
    for name, seconds in libraries(chats, line):
        print(f"  {name}: {seconds / mine:.1f} times our time")


def libraries(chats: list[Chat], line: Callable[[str, float, Callable[[Chat, Chat], float]], float]) -> list[tuple[str, float]]:
    try:
        import datasketch
        import rensa
    except ImportError as missing:
        print(f"  {missing}: not compared")
        return []
    base = datasketch.MinHash(128)

    def sketch(chat: Chat) -> datasketch.MinHash:
        found = base.copy()
        found.update_batch([s.encode("utf-8", "surrogatepass") for s in shingles(chat)])
        return found

    def rust(*some: Chat) -> list[rensa.RMinHash]:
        return rensa.RMinHash.from_token_sets([shingles(c) for c in some], 128, 42)

    def hashed(*some: Chat) -> object:
        """rensa over the shingles of our kernel."""
        flat = [our_shingles(c) for c in some]
        ends = np.cumsum([0, *map(len, flat)]).astype(np.uint64)
        return rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(flat).astype(np.uint64), ends, 128, 42
        ).to_rows()

    def rows_alike(one: Chat, other: Chat) -> float:
        left, right = np.array(hashed(one, other))
        return float((left == right).mean())

    some = chats[: max(1, len(chats) // 5)]
    times = [
        line(
            "datasketch (SHA-1, its default)",
            cpu(lambda: [sketch(c) for c in some], 1) * len(chats) / len(some),
            lambda a, b: sketch(a).jaccard(sketch(b)),
        ),
        line(
            "rensa R-MinHash, Python shingles",
            cpu(lambda: rust(*chats)),
            lambda a, b: (lambda p: p[0].jaccard(p[1]))(rust(a, b)),
        ),
        line("rensa R-MinHash, shingles of our kernel", cpu(lambda: hashed(*chats)), rows_alike),
    ]
    return list(zip(("datasketch", "rensa", "rensa over our shingles"), times, strict=True))


def our_shingles(chat: Chat) -> np.ndarray:
    texts = [unicodedata.normalize("NFKC", m.text).lower() for m in chat.messages]
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    roles = np.array([1 + (m.role != "user") for m in chat.messages], np.uint8)
    return minhash._shingle(codes, np.cumsum([len(t) for t in texts]), roles, minhash._classes("words"), 2)


def decided(chats: list[Chat], section: DedupSection) -> Decision:
    found = Deduplicator(section)
    for index, chat in enumerate(chats):
        found.add(index, signature(chat, section))
    return found.decide()


def recall(name: str, chats: list[Chat], section: DedupSection = SECTION) -> tuple[int, int]:
    """Planted copies with 3 % of the words edited; and how alike unrelated ones look."""
    own = decided(chats, section).duplicates
    long = [c for i, c in enumerate(chats) if i not in own and sum(len(_TOKEN.findall(m.text)) for m in c.messages) >= 34][
        :1000
    ]
    dice = random.Random(3)
    decision = decided([*long, *(edited(c, 0.03, dice) for c in long)], section)
    together = {frozenset((c.kept, d)) for c in decision.clusters for d in c.dropped}
    hit = sum(frozenset((i, i + len(long))) in together for i in range(len(long)))
    wrong = sum(len({i % len(long) for i in pair}) > 1 for pair in together)
    pairs, found = len(long) * (2 * len(long) - 2), f"{hit} of {len(long)} ({hit / len(long):.1%})"
    print(f"| {name} | {len(own)} of {len(chats):,} | {found} | {wrong} of {pairs:,} |")
    return hit, len(long)


@lru_cache(maxsize=1)
def paragraphs(folder: Path) -> tuple[list[str], list[str]]:
    """Of answers, and the questions."""
    chats = [c for c in chats_of(folder) if len(c.messages) > 1]
    answers = [p for c in chats for m in c.messages if m.role == "assistant" for p in m.text.split("\n\n") if len(p) > 60]
    return list(dict.fromkeys(answers)), [m.text for c in chats for m in c.messages if m.role == "user"]


def spliced(folder: Path, index: int, seed: int) -> Chat:
    """Conversation number ``index`` of the pool."""
    dice = random.Random(f"{seed}:{index}")
    if index % 20 == 19:
        return replace(edited(spliced(folder, index - 7, seed), 0.03, dice), id=str(index))
    if index % 50 == 48:
        copy = spliced(folder, index - 11, seed)
        return replace(copy, id=str(index), messages=tuple(Message(m.role, f" {m.text}\n") for m in copy.messages))
    answers, questions = paragraphs(folder)
    messages, length, wanted = [], 0, dice.lognormvariate(8.85, 0.5)
    while length < wanted:
        answer = "\n\n".join(dice.choices(answers, k=dice.randrange(2, 9)))
        messages += [Message("user", dice.choice(questions)), Message("assistant", answer)]
        length += len(answer)
    return Chat(str(index), tuple(messages))


def work(folder: Path, low: int, high: int, seed: int) -> tuple[bytes, float, float]:
    """Signatures of some conversations of the pool: records, megabytes, CPU seconds of the signatures alone."""
    chats = [spliced(folder, index, seed) for index in range(low, high)]
    start = time.process_time()
    found = b"".join(signature(c, SECTION) for c in chats)
    return found, megabytes(chats), time.process_time() - start


def at_scale(folder: Path, rows: int, processes: int, seed: int, section: DedupSection) -> None:
    found = Deduplicator(section)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = seconds = 0.0
    start = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        starts = range(0, rows, 500)
        ends = [min(rows, low + 500) for low in starts]
        for low, (records, more, spent) in zip(
            starts, pool.map(work, [folder] * len(ends), starts, ends, [seed] * len(ends)), strict=True
        ):
            found.extend(range(low, low + len(records) // record_type(section).itemsize), records)
            size, seconds = size + more, seconds + spent
    wall = time.perf_counter() - start
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, wall_start = time.process_time(), time.perf_counter()
    decision = found.decide()
    took, took_wall = time.process_time() - start, time.perf_counter() - wall_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"pool of {rows:,} spliced conversations, {size:,.0f} MB, mean {size * 1e3 / rows:.1f} KB, {processes} processes")
    print(
        f"  signatures {seconds:.1f} CPU s = {size / seconds:.1f} MB/s per process; wall {wall:.0f} s, making the pool included"
    )
    print(f"  decision {took:.2f} CPU s (wall {took_wall:.2f}); {record_type(section).itemsize} bytes per row kept")
    print(
        f"  memory of the deciding process: {before >> 10} MiB before, {held >> 10} with all signatures, {peak >> 10} at its peak"
    )
    truth = {i: i - 7 if i % 20 == 19 else i - 11 for i in range(rows) if i % 20 == 19 or i % 50 == 48}
    families = [root(truth, i) for i in range(rows)]
    seen = {i: c.kept for c in decision.clusters for i in (c.kept, *c.dropped)}
    found_exact = sum(seen.get(i, -1) == seen.get(of, -2) for i, of in truth.items() if i % 20 != 19)
    found_near = sum(seen.get(i, -1) == seen.get(of, -2) for i, of in truth.items() if i % 20 == 19)
    wrong = sum(families[i] != families[d.of] for i, d in decision.duplicates.items())
    exact, near = sum(i % 20 != 19 for i in truth), sum(i % 20 == 19 for i in truth)
    copies = f"exact copies {found_exact:,} of {exact:,}; edited copies {found_near:,} of {near:,} ({found_near / near:.3%})"
    print(f"  {copies}; others left out {wrong}")
    against_datasketch(found, min(rows, 5000), took / rows)


def decision_alone(rows: int) -> None:
    """Over random marks: one row in ten is like an earlier one. Fed in pieces, so that the memory is that of the search."""
    dice, found, step = np.random.default_rng(0), Deduplicator(SECTION), 5000
    decided(list(map(spliced_words, range(200))), SECTION)  # compiled before the memory is looked at
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for low in range(0, rows, step):
        records = np.zeros(min(step, rows - low), record_type(SECTION))
        records["exact"][:, 0] = records["id"] = records["content"] = np.arange(low + 1, low + 1 + len(records))
        records["length"], records["compared"] = dice.integers(100, 10_000, len(records)), 1
        records["marks"] = dice.integers(0, 1 << 16, records["marks"].shape, dtype=np.uint16)
        copies = np.arange(9, len(records), 10)
        kept = dice.random((len(copies), 128)) < 0.92
        records["marks"][copies] = np.where(kept, records["marks"][copies - 5], records["marks"][copies])
        found.extend(range(low, low + len(records)), records.tobytes())
    held, start, wall = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), time.perf_counter()
    decision = found.decide()
    took = f"{time.process_time() - start:.1f} CPU s (wall {time.perf_counter() - wall:.1f})"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"decision alone over random marks of {rows:,} rows: {len(decision.duplicates):,} left out of {rows // 10:,} planted, {took}"
    )
    print(f"  memory {empty >> 10} MiB empty, {held >> 10} with all signatures, {peak >> 10} at its peak")


def spliced_words(index: int) -> Chat:
    return Chat(str(index), (Message("user", " ".join(f"w{i * (index + 1)}" for i in range(50))),))


def root(of: dict[int, int], index: int) -> int:
    while index in of:
        index = of[index]
    return index


def against_datasketch(found: Deduplicator, count: int, ours: float) -> None:
    """Its LSH over the same marks: insertion and one query per row."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        return
    marks = found._columns["marks"][:count]
    sketches = [MinHash(hashvalues=row.astype(np.uint32), scheme="affine32") for row in marks]

    def run() -> None:
        index = MinHashLSH(threshold=0.8, num_perm=128)
        for number, one in enumerate(sketches):
            index.insert(str(number), one)
        for one in sketches:
            index.query(one)

    theirs = cpu(run, 1) / count
    print(f"  candidates and decision per row: {ours * 1e6:.1f} us")
    print(f"  datasketch's index, {count:,} rows: {theirs * 1e6:.0f} us per row, {theirs / ours:.0f} times")


def show_pairs(chats: list[Chat], count: int, threshold: float) -> None:
    """How many near duplicates the real rows have, and some pairs to be read."""
    for reach in ("chain", "direct"):
        decision = decided(chats, SECTION.model_copy(update={"near": NearSection(threshold=threshold, reach=reach)}))
        near = [(i, d) for i, d in decision.duplicates.items() if d.reason == "near_duplicate"]
        below = sum(d.similarity is not None and d.similarity < threshold for _, d in near)
        others = sum(not chats[i].id.startswith("identity") for i, _ in near)
        print(f"{reach}: {len(near)} near duplicates at {threshold} among {len(chats):,}, {others} of them not identity rows;")
        print(f"  {below} of them less like what stays; {decision.counts['exact_duplicate']} exact ones besides")
    for index, duplicate in random.Random(5).sample(near, min(count, len(near))):
        print(f"\n=== {duplicate.similarity:.2f}")
        for chat in (chats[index], chats[duplicate.of]):
            print(f"[{chat.id}] " + " / ".join(f"{m.role[0]}: {m.text}" for m in chat.messages)[:1200].replace("\n", " "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("VICUGNA_DATA"))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=1000, help="chats of the comparison")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--pairs", type=int, default=0, help="print so many near-duplicate pairs of the real rows, and nothing else"
    )
    parser.add_argument("--decision", type=int, default=0, help="decide over random marks of so many rows, and nothing else")
    parser.add_argument("--threshold", type=float, default=0.8, help="for --pairs")
    options = parser.parse_args()
    if options.decision:
        decision_alone(options.decision)
        return
    if not options.data:
        sys.exit("give --data FOLDER or set VICUGNA_DATA: a folder with chat/*.json and instructions/*.json")
    folder = Path(options.data)
    chats, instructions = chats_of(folder), list(instructions_of(folder))
    if options.pairs:
        show_pairs([*chats, *instructions], options.pairs, options.threshold)
        return
    real = sorted(chats, key=lambda c: -len(c.messages))[: options.sample]
    compare(real)
    print(
        "\n| rows | duplicates of their own | planted copies found | unrelated pairs taken for duplicates |\n|---|---|---|---|"
    )
    every = [recall("chats", [c for c in chats if megabytes([c]) > 0.001])]
    for name in sorted({c.id.partition(":")[0] for c in instructions}):
        every.append(recall(name, [c for c in instructions if c.id.startswith(name)]))
    print(f"all planted copies: {sum(hit for hit, _ in every)} of {sum(count for _, count in every)}\n")
    at_scale(folder, options.rows, options.processes, 0, SECTION)


if __name__ == "__main__":
    main()
