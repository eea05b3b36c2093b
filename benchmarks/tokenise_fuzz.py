"""Random texts through interned words and through the tokenizer: ids and offsets must be equal. Prints what differs, and counts.

``python benchmarks/tokenise_fuzz.py --count 100000 [--tokenizer qwen2 sentencepiece PATH] [--vocab 8000] [FILES]``. Kinds are trained on
the files, or on words made up here. Texts are drawn from every assigned script, emoji and their joiners, combining marks, controls, runs
of blanks, digits, quotes and contractions, spelt special tokens, pieces of the files, and stand-ins of special tokens.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenisers import KINDS, load, texts_of, train_on
from tokenizers import Tokenizer

from sft.data.interning import WordEncoder, Words
from sft.data.stand_in import stand_in_tokenizer
from sft.data.vocabulary import read

BLANKS = [chr(i) for i in range(0x3001) if chr(i).isspace()]
QUOTES = ["'s", "'T", "'re", "'LL", "'ſ", "’s", "'", "''", '"', "don't", "x'd", "'v", "'lL", "'rE"]
SPELT = ["<s>", "</s>", "<unk>", "<0x0A>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "▁", "Ġ", "Ċ", "▁the"]
JOINED = ["👩‍👩‍👧", "🏳️‍🌈", "🇩🇪", "👍🏽", "1️⃣", "é", "à̖́", "क्षि", "กำ", "각", "각", "ﷺ", "Ǆ", "ﬁ"]
_BATCH = 2_000


def words(dice: random.Random) -> list[str]:
    """Made-up words of two letters and more, so that merges have something to learn."""
    parts = [
        "ka",
        "ro",
        "the",
        "ing",
        "s",
        "de",
        "un",
        "er",
        "xy",
        "中",
        "国",
        "春",
        "天",
        "é",
        "ñ",
        "ди",
        "ло",
        "12",
        "==",
        "--",
        "  ",
        "\n",
    ]
    return [" ".join("".join(dice.choices(parts, k=dice.randint(1, 5))) for _ in range(40)) for _ in range(3_000)]


def draw(dice: random.Random, points: Sequence[str], real: Sequence[str], specials: Sequence[str]) -> str:
    """One text of 0 to 40 pieces."""
    out = []
    for _ in range(dice.choice((0, 1, 2, 3, 5, 8, 13, 40))):
        kind = dice.random()
        if kind < 0.3:
            text = dice.choice(real)
            begin = dice.randrange(len(text) + 1)
            out.append(text[begin : begin + dice.randint(1, 30)])
        elif kind < 0.5:
            out.append("".join(dice.choices(points, k=dice.randint(1, 4))))
        elif kind < 0.62:
            out.append(dice.choice(BLANKS) * dice.randint(1, 5) if dice.random() < 0.5 else " " * dice.randint(1, 9))
        elif kind < 0.72:
            out.append("".join(dice.choices("0123456789٣Ⅷ½²１", k=dice.randint(1, 8))))
        elif kind < 0.82:
            out.append(dice.choice(QUOTES))
        elif kind < 0.9:
            out.append(dice.choice(JOINED))
        elif kind < 0.94:
            out.append(dice.choice(SPELT))
        elif kind < 0.97:
            out.append("".join(map(chr, dice.choices(range(0x20), k=dice.randint(1, 3)))))
        else:
            out.append(dice.choice(specials))
    return "".join(out)


def differing(ours: WordEncoder, backend: Tokenizer, texts: Sequence[str]) -> Iterator[str]:
    expected = backend.encode_batch(texts, add_special_tokens=False)
    for text, mine, theirs in zip(texts, ours.encode(texts), expected, strict=True):
        offsets = [tuple(span) for span in mine.offsets.tolist()] if isinstance(mine, Words) else mine.offsets
        if list(mine.ids) != theirs.ids or offsets != theirs.offsets:
            yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokenizer", nargs="+", default=list(KINDS))
    parser.add_argument("--count", type=int, default=100_000, help="texts for each tokenizer")
    parser.add_argument("--vocab", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    real = [text for text in texts_of(options.files) if text] if options.files else words(dice)
    every = [chr(i) for i in range(0x100000) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    # Most code points are Han and Hangul; the others are drawn as often. Planes 2 and above are left to the tokenizer: a few.
    usual = [char for char in every if char < "\U00020000"]
    small = [char for char in usual if not unicodedata.name(char, "").startswith(("CJK", "HANGUL SYLLABLE"))]
    points = usual + small * 3 + every[-100:]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tokenizer:
            path = train_on(name, real, Path(folder), options.vocab) if name in KINDS else name
            tokenizer = load(path)
            backend, stand_ins = stand_in_tokenizer(
                tokenizer, [token.content for token in tokenizer.added_tokens_decoder.values()]
            )
            ours = WordEncoder(backend, read(backend, stand_ins))
            done, characters, found = 0, 0, 0
            while done < options.count:
                batch = [draw(dice, points, real, list(stand_ins.values())) for _ in range(min(_BATCH, options.count - done))]
                for text in differing(ours, backend, batch):
                    found += 1
                    if found <= 5:
                        print(f"{name}: {text!r}")
                done += len(batch)
                characters += sum(map(len, batch))
            failed |= found > 0
            print(
                f"{Path(path).stem}: {done:,} texts, {characters:,} characters, {ours.left:,} texts left to the tokenizer, {found} differ",
                flush=True,
            )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
