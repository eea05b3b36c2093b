"""The novelty index decides as the rouge_score package does, ties included, for any order of adding, and after a reload."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from selfinstruct.filters.novelty import Neighbour, NoveltyIndex
from sft.errors import DataError
from sft.text.tokens import tokens

SEEDS = Path(__file__).resolve().parents[2] / "data" / "seed_tasks.jsonl"
SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def _f(a: str, b: str) -> float:
    return float(SCORER.score(a, b)["rougeL"].fmeasure)


def _seeds() -> list[str]:
    return [json.loads(line)["instruction"] for line in SEEDS.read_text(encoding="utf-8").splitlines()]


def _mutants(texts: list[str], count: int) -> list[str]:
    """Texts a few words away from one another."""
    dice, out = random.Random(7), list(texts)
    words = [word for text in texts for word in text.split()]
    while len(out) < count:
        text = dice.choice(out).split()
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(text) + 1)
            text[place : place + dice.randint(0, 2)] = dice.choices(words, k=dice.randint(0, 2))
        if text:
            out.append(" ".join(text))
    return out


def _against_rouge_score(texts: list[str], threshold: float) -> tuple[int, int]:
    """Offer the texts to both; (refused, exact ties met). Every decision and every score must agree."""
    index, kept = NoveltyIndex(threshold), list[str]()
    refused = ties = 0
    for i, text in enumerate(texts):
        scores = {f"{j}": _f(text, texts[j]) for j in map(int, index.ids)}
        ties += threshold in scores.values()
        hit = index.offer(f"{i}", text)
        assert (hit is not None) == any(score > threshold for score in scores.values()), text
        if hit is None:
            kept.append(text)
        else:
            refused += 1
            assert hit.score == scores[hit.id] > threshold
    assert len(index) == len(kept)
    return refused, ties


def test_decisions_are_those_of_rouge_score_on_seeds_and_their_variations() -> None:
    refused, _ = _against_rouge_score(_mutants(_seeds()[::2], 250), 0.7)
    assert 50 < refused < 150


_WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=0, max_size=12).map(" ".join)


@settings(max_examples=60)
@given(st.lists(_WORDS, min_size=2, max_size=25), st.sampled_from([0.7, 0.5, 2 / 3, 0.3, 0.0, 1.0]))
@example(["a b c d e f g h i j", "a b c d e f g x y z"], 0.7)  # 2 * 7 / 20: exactly the threshold
def test_decisions_on_random_words(texts: list[str], threshold: float) -> None:
    _against_rouge_score(texts, threshold)


def test_ties_fall_as_in_rouge_score() -> None:
    words = [f"w{i}" for i in range(80)]
    met = 0
    for m in range(1, 41):
        for n in range(1, 41):
            for common in {7 * (m + n) // 20, 7 * (m + n) // 20 + 1}:
                if 0 < common <= min(m, n):
                    a = " ".join(words[:m])
                    b = " ".join(words[:common] + [f"x{i}" for i in range(n - common)])
                    index = NoveltyIndex()
                    index.add("a", a)
                    tie = 20 * common == 7 * (m + n)
                    met += tie
                    hit = index.check(b)
                    above = _f(a, b) > 0.7 if tie else 20 * common > 7 * (m + n)
                    assert (hit is not None) == above, (m, n, common)
    assert met == 40
    assert NoveltyIndex(0.7).offer("a", " ".join(words[:10])) is None


@pytest.mark.parametrize("size", [63, 64, 65, 127, 128, 129, 254, 255, 256, 300])
def test_long_texts(size: int) -> None:
    dice = random.Random(size)
    base = [f"w{dice.randrange(60)}" for _ in range(size)]
    near, far = list(base), list(base)
    for place in dice.sample(range(size), size // 5):
        near[place] = "new"
    for place in dice.sample(range(size), size // 2):
        far[place] = f"v{place}"
    texts = [" ".join(words) for words in (base, near, far, base[: size // 2], base[::-1])]
    index = NoveltyIndex(0.7)
    for i, text in enumerate(texts):
        assert index.scores(text).tolist() == [_f(text, other) for other in texts[:i]]
        assert (index.check(text) is not None) == any(_f(text, other) > 0.7 for other in texts[:i])
        index.add(str(i), text)


def test_neighbours_are_the_exact_highest_scores() -> None:
    texts = _mutants(_seeds(), 300)
    index = NoveltyIndex()
    for i, text in enumerate(texts):
        if i % 10 == 0:
            scores = [_f(text, other) for other in texts[:i]]
            ranked = sorted((-score, j) for j, score in enumerate(scores) if score > 0)
            for k in (1, 10):
                assert index.neighbours(text, k) == [Neighbour(str(j), -score) for score, j in ranked[:k]]
            assert index.scores(text).tolist() == scores
        index.add(str(i), text)
    assert index.neighbours(texts[0], 0) == []
    assert len(index.neighbours(texts[0], 10_000)) <= 300


def test_chinese_near_duplicates_are_seen() -> None:
    index = NoveltyIndex()
    index.add("a", "请写一首关于春天的短诗，每行五个字。")
    assert index.check("请写一首关于秋天的短诗，每行五个字。") == Neighbour("a", 15 / 16)
    assert index.check("计算4乘以5。") is None
    index.add("b", "计算 4 乘以 5")
    assert index.check("列出 5 种动物") is None


def test_texts_without_tokens() -> None:
    index = NoveltyIndex()
    assert index.offer("a", "!!!") is None
    assert index.offer("b", "!!!") is None
    assert index.neighbours("???") == []
    assert index.neighbours("words") == []
    assert index.scores("words").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"the novelty threshold is an F measure from 0 to 1, got -?[01]\.1"):
        NoveltyIndex(threshold)


# --- on disk


def _index(texts: list[str]) -> NoveltyIndex:
    index = NoveltyIndex()
    for i, text in enumerate(texts):
        index.offer(f"{i}", text)
    return index


def test_a_loaded_index_decides_as_the_saved_one(tmp_path: Path) -> None:
    texts = [*_mutants(_seeds(), 600), "请写一首关于春天的短诗", "!!!", "word " * 300]
    straight, first = _index(texts), _index(texts[:300])
    first.save(tmp_path / "novelty.bin", "made of seeds")
    loaded = NoveltyIndex.load(tmp_path / "novelty.bin")
    assert (loaded.threshold, loaded.note, len(loaded)) == (0.7, "made of seeds", len(first))
    for i, text in enumerate(texts[300:], 300):
        assert loaded.offer(f"{i}", text) == first.offer(f"{i}", text)
    assert list(loaded.ids) == list(straight.ids)
    assert loaded.neighbours(texts[5]) == straight.neighbours(texts[5])
    loaded.save(tmp_path / "a.bin")
    straight.save(tmp_path / "b.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert NoveltyIndex.load(tmp_path / "a.bin", 0.5).threshold == 0.5


def test_an_empty_index_is_saved_and_loaded(tmp_path: Path) -> None:
    NoveltyIndex(0.6).save(tmp_path / "novelty.bin")
    assert len(NoveltyIndex.load(tmp_path / "novelty.bin")) == 0


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "novelty.bin"
    _index(_seeds()[:20]).save(path)
    data = path.read_bytes()
    for place in range(24, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DataError, match=r"novelty\.bin: the novelty index is damaged .* delete it"):
            NoveltyIndex.load(path)
    for end in (30, 100, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match="the novelty index is damaged"):
            NoveltyIndex.load(path)


def test_a_foreign_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "novelty.bin"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(DataError, match=r"novelty\.bin: not a novelty index of this version; delete it"):
        NoveltyIndex.load(path)
    with pytest.raises(DataError, match=r"gone\.bin: the novelty index cannot be read: No such file"):
        NoveltyIndex.load(tmp_path / "gone.bin")
    with monkeypatch.context() as patch:
        patch.setattr("selfinstruct.filters.novelty.TOKENISER", "older")
        NoveltyIndex().save(path)
    with pytest.raises(DataError, match=r"made with the tokenisation 'older', this is 'nfkc"):
        NoveltyIndex.load(path)
    with pytest.raises(DataError, match="the novelty index cannot be written"):
        NoveltyIndex().save(tmp_path / "no" / "folder.bin")


def test_memory_grows_with_the_rows_only() -> None:
    dice = random.Random(1)

    def held(rows: int) -> float:
        index = NoveltyIndex()
        for i in range(rows):
            index.add(str(i), " ".join(f"w{min(int(dice.paretovariate(0.7)), 3000)}" for _ in range(10)))
        return index.nbytes / rows

    few, many = held(2_000), held(16_000)
    assert many < 1.1 * few
    assert many < 400


def test_numba_is_imported_only_for_an_index() -> None:
    code = "import sys, selfinstruct.filters.novelty, selfinstruct.filters.chain; assert not {'numba', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokens_are_what_is_compared() -> None:
    index = NoveltyIndex()
    index.add("a", "Write a Poem, please!")
    assert tokens("Write a Poem, please!") == tokens("write a poem please")
    assert index.check("write a poem please") == Neighbour("a", 1.0)


@pytest.mark.parametrize("threshold", [0.7, 0.5, 0.0])
def test_frequent_tokens_are_searched_in_parts(threshold: float) -> None:
    """Every token ends up with hundreds of postings, of rows of all lengths; the search agrees with measuring every row."""
    dice, index, texts, hits = random.Random(11), NoveltyIndex(threshold), list[str](), 0
    for i in range(1500):
        words = [
            f"w{min(int(dice.paretovariate(0.5)), 40)}" for _ in range(dice.choice([3, 6, 9, 12, 20, 62, 63, 64, 70, 260]))
        ]
        if texts and dice.random() < 0.3:
            words = dice.choice(texts).split()
            for _ in range(len(words) // 5 + 1):
                words[dice.randrange(len(words))] = "w99"
        text = " ".join(words)
        if i % 3 == 0 or i > 1400:
            hit, scores = index.check(text), index.scores(text)
            assert (hit is not None) == bool((scores > threshold).any())
            hits += hit is not None
            best = sorted(zip((-scores).tolist(), range(i), strict=True))[:5]
            assert index.neighbours(text, 5) == [Neighbour(str(row), -score) for score, row in best if score < 0]
        index.add(str(i), text)
        texts.append(text)
    assert hits > 100
