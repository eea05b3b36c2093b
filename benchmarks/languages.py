"""Language detectors against each other: right answers, speed, memory.

``python benchmarks/languages.py DETECTOR [FILE:CODE ...]`` with DETECTOR one of ours (py3langid as the rule ``language`` uses it), py3langid,
lingua, lingua_low. One process for each, so that memory is its own. The sentences are those of tests/curate/languages.tsv (120 in 12
languages); files are lists of rows whose language is known, such as ``alpaca.json:en``, each row one text without its code. lingua comes
with ``pip install -c constraints.txt -e '.[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft.curate.rules.prose import prose

SENTENCES = Path(__file__).resolve().parent.parent / "tests" / "curate" / "languages.tsv"


def detector(name: str) -> Callable[[str], str]:
    """A function from a text to an ISO 639-1 code, or ``und``."""
    if name == "ours":
        from sft.curate.rules.language import languages_of

        def ours(text: str) -> str:
            shares = languages_of([text])
            best = max(shares, key=lambda code: shares[code], default="und")
            return best if shares and shares[best] >= 0.5 else "und"

        return ours
    if name == "py3langid":
        import py3langid

        return lambda text: str(py3langid.classify(text)[0])
    from lingua import LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_all_languages()
    lingua = (builder.with_low_accuracy_mode() if name == "lingua_low" else builder).build()

    def found(text: str) -> str:
        language = lingua.detect_language_of(text)
        return language.iso_code_639_1.name.lower() if language else "und"

    return found


def texts(path: Path) -> Iterator[str]:
    """One text for each row of a JSON list."""
    for row in json.loads(path.read_text(encoding="utf-8")):
        values: list[Any] = [m["value"] for m in row["conversations"]] if "conversations" in row else list(row.values())
        yield prose("\n".join(value for value in values if isinstance(value, str)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", choices=("ours", "py3langid", "lingua", "lingua_low"))
    parser.add_argument("files", nargs="*", help="FILE:CODE")
    options = parser.parse_args()
    start = time.perf_counter()
    detect = detector(options.detector)
    detect("What is this thing, and why does it stand here?")
    print(f"{options.detector}: ready after {time.perf_counter() - start:.2f} s")
    rows = [line.split("\t") for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    wrong = [(code, detect(text)) for code, text in rows if detect(text) != code]
    print(f"sentences: {len(rows) - len(wrong)} of {len(rows)} right; not: {wrong}")
    for item in options.files:
        name, _, code = item.rpartition(":")
        found = list(texts(Path(name)))
        size = sum(len(text.encode()) for text in found) / 1e6
        cpu = time.process_time()
        codes = Counter(detect(text) for text in found)
        cpu = time.process_time() - cpu
        print(f"{Path(name).name}: {codes[code]} of {len(found)} are {code}, {size / cpu:.2f} MB/s; {codes.most_common(6)}")
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
