"""Random inputs through formats, cleaning, templates and tokenisation: nothing may escape but the errors that are promised, and laws hold.

``python benchmarks/fuzz.py --count 1000000 [--seed 0] [--part formats cleaning templates tokenise] [--workers 1] [--hypothesis 0]``

The inputs are split over the parts by what they cost. Each is checked against laws, not only for a crash (the ``check`` methods say which),
and may take two seconds of processor time. What fails is made smaller and printed with the place that draws it again
(``--seed S --part P --block B``). Exit status 1 then.
"""

from __future__ import annotations

import argparse
import atexit
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz_law import Part, alike, failure, smallest, watch

SHARES = {"formats": 0.35, "cleaning": 0.25, "templates": 0.25, "tokenise": 0.15}
_BLOCK = 1_000  # inputs that are drawn from one seed
_NAME = re.compile(r"[\w./-]*", re.ASCII)


@dataclass(slots=True)
class Found:
    """What some inputs of a part came to.

    Attributes:
        inputs, seconds: of processor time.
        counts: what became of them, by reason.
        slowest: seconds, and the block with the input that took them.
        failures: what went wrong -> how often, and a small input for it.
    """

    inputs: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        self.inputs += other.inputs
        self.seconds += other.seconds
        self.counts += other.counts
        self.slowest = max(self.slowest, other.slowest)
        for wrong, (often, shown) in other.failures.items():
            same = next((known for known in self.failures if alike(known, wrong)), wrong)
            before, first = self.failures.get(same, (0, shown))
            self.failures[same] = (before + often, first)


@lru_cache(maxsize=4)
def part_of(name: str) -> Part:
    """A part, made once in each process."""
    watch()
    folder = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, folder)
    if name == "formats":
        from fuzz_formats import Formats

        return Formats(folder)
    if name == "cleaning":
        from fuzz_cleaning import Cleaning

        return Cleaning(folder)
    from fuzz_rendering import Templates, Tokenise

    return Templates(folder) if name == "templates" else Tokenise(folder)


def block(name: str, seed: int, number: int, count: int) -> Found:
    """Some inputs of a part, all from one seed."""
    part, found = part_of(name), Found()
    dice = random.Random(f"{seed}:{name}:{number}")
    begin = time.process_time()
    for _ in range(count):
        made = part.draw(dice)
        wrong, taken = failure(part, made, found.counts)
        if wrong == "slow":  # once more: another program may have had the processor, or something was compiled
            wrong, taken = failure(part, made, Counter())
        found.inputs += 1
        found.slowest = max(found.slowest, (taken, number))
        if wrong is not None:
            known = next((one for one in found.failures if alike(one, wrong)), None)
            shown = found.failures[known][1] if known else _shown(part, made, wrong, seed, number)
            found.failures[known or wrong] = (found.failures[known][0] + 1 if known else 1, shown)
    found.seconds = time.process_time() - begin
    return found


def _shown(part: Part, made: Any, wrong: str, seed: int, number: int) -> str:
    least = smallest(part, made, wrong) if wrong != "slow" else made
    text = repr(least)
    if len(text) > 3_000:
        text = f"{text[:1_500]} ... {text[-300:]}  ({len(text):,} characters)"
    return f"--seed {seed} --part {part.name} --block {number}\n      {text}"


def with_hypothesis(name: str, seed: int, count: int) -> Found:
    """Inputs whose texts Hypothesis writes into those that are drawn."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    part, found = part_of(name), Found()
    characters = st.text(st.characters(codec=None), max_size=30) | st.text(
        st.sampled_from("<>/pdiv \n`\"'=&;a1.-*_#|[]()"), max_size=40
    )
    places = st.tuples(st.integers(0, 2**32 - 1), st.lists(characters, min_size=1, max_size=4))

    @seeded(seed)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(places)
    def put(drawn: tuple[int, list[str]]) -> None:
        made = _with_texts(part.draw(random.Random(drawn[0])), iter(drawn[1]))
        wrong, _ = failure(part, made, found.counts)
        found.inputs += 1
        if wrong is not None and not any(alike(wrong, one) for one in found.failures):
            found.failures[wrong] = (1, _shown(part, made, wrong, seed, -1))

    begin = time.process_time()
    put()
    found.seconds = time.process_time() - begin
    return found


def _with_texts(made: Any, texts: Any) -> Any:
    """An input with texts replaced by others, as many as there are; what may name something stays."""
    if isinstance(made, str) and not _NAME.fullmatch(made):
        return next(texts, made)
    if isinstance(made, list):
        return [_with_texts(one, texts) for one in made]
    if isinstance(made, dict):
        return {key: _with_texts(one, texts) for key, one in made.items()}
    return made


def _told(name: str, found: Found, seconds: float) -> None:
    common = ", ".join(f"{reason} {number:,}" for reason, number in found.counts.most_common(14))
    print(
        f"{name}: {found.inputs:,} inputs, {seconds:.0f} s ({found.seconds:.0f} s of processor time), slowest {found.slowest[0]:.2f} s "
        f"(block {found.slowest[1]}), {sum(often for often, _ in found.failures.values())} fail\n    {common}",
        flush=True,
    )
    for wrong, (often, shown) in found.failures.items():
        print(f"  {often} x {wrong}\n    {shown}", flush=True)


def _blocks(name: str, options: argparse.Namespace, count: int) -> Iterable[tuple[str, int, int, int]]:
    if options.block is not None:
        return [(name, options.seed, options.block, _BLOCK)]
    return [(name, options.seed, at // _BLOCK, min(_BLOCK, count - at)) for at in range(0, count, _BLOCK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", nargs="+", choices=[*SHARES, "all"], default=["all"])
    parser.add_argument("--workers", type=int, default=1, help="processes; the inputs do not depend on it")
    parser.add_argument("--block", type=int, help="only this block of inputs")
    parser.add_argument("--hypothesis", type=int, default=0, help="further inputs of each part whose texts Hypothesis writes")
    options = parser.parse_args()
    parts = list(SHARES) if "all" in options.part else options.part
    whole = sum(SHARES[name] for name in parts)
    total = Found()
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for name in parts:
            begin, found = time.monotonic(), Found()
            blocks = list(_blocks(name, options, round(options.count * SHARES[name] / whole)))
            columns = list(zip(*blocks, strict=True)) or [()] * 4
            for some in (map if options.workers == 1 else pool.map)(block, *columns):
                found.add(some)
            if options.hypothesis:
                found.add(with_hypothesis(name, options.seed, options.hypothesis))
            _told(name, found, time.monotonic() - begin)
            total.add(found)
    print(f"{total.inputs:,} inputs in all, {total.seconds:.0f} s of processor time, {len(total.failures)} faults")
    sys.exit(int(bool(total.failures)))


if __name__ == "__main__":
    main()
