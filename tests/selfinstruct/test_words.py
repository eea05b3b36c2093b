"""Root verbs and nouns, against a reader's labels; and what the seed tasks' variety is beside that of the published ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from selfinstruct.results.words import Root, root_english, singular
from selfinstruct.results.words_zh import root_chinese

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "data"
RULES = {"en": root_english, "zh": root_chinese}
# Of the labelled instructions: how many there are, verbs right, verb and noun right. English: 50 seed tasks and 50 quickstart tasks drawn
# by a fixed seed, labelled before the rules saw them (98 and 90 then; "aggregate" was added since). Chinese: 50 seed tasks, which
# the rules were tried on; they are worded on purpose in uncommon ways. Of 50 published ones that the rules had not seen: 49 and 47.
ACCURACY = {"en": (100, 99, 91), "zh": (50, 44, 37)}
# The published seed sets by the same rules: different verbs, different (verb, noun) pairs, and the share of the 20 commonest verbs among
# all that were found. Self-Instruct's 175 (156 with a verb) and BELLE's 175 (161 with a verb).
PUBLISHED = {"en": (50, 117, 0.737), "zh": (63, 135, 0.665)}
# Ours open with a verb in 154 and 128 cases. Among the Chinese there are therefore fewer pairs (109), which says nothing on variety.
OURS = {"en": "seed_tasks.jsonl", "zh": "seed_tasks_zh.jsonl"}


def _labelled(language: str) -> list[tuple[Root | None, str]]:
    rows = []
    for line in (HERE / f"roots_{language}.tsv").read_text(encoding="utf-8").splitlines():
        verb, noun, instruction = line.split("\t")
        rows.append((None if verb == "-" else Root(verb, "" if noun == "-" else noun), instruction))
    return rows


@pytest.mark.parametrize("language", RULES)
def test_agreement_with_a_reader(language: str) -> None:
    rows = _labelled(language)
    found = [RULES[language](instruction) for _, instruction in rows]
    verbs = sum((a.verb if a else None) == (b.verb if b else None) for (a, _), b in zip(rows, found, strict=True))
    both = sum(a == b for (a, _), b in zip(rows, found, strict=True))
    assert (len(rows), verbs, both) == ACCURACY[language]


@pytest.mark.parametrize("language", RULES)
def test_seed_tasks_ask_for_more_kinds_of_things_than_the_published_ones(language: str) -> None:
    lines = (DATA / OURS[language]).read_text(encoding="utf-8").splitlines()
    roots = [root for line in lines if (root := RULES[language](json.loads(line)["instruction"]))]
    verbs = Counter(root.verb for root in roots)
    published_verbs, published_pairs, published_share = PUBLISHED[language]
    assert len(verbs) > published_verbs
    assert sum(count for _, count in verbs.most_common(20)) / len(roots) < published_share
    if language == "en":
        assert len({root for root in roots if root.noun}) > published_pairs


@pytest.mark.parametrize(
    ("instruction", "root"),
    [
        ("Please write a short, funny poem about rain.", Root("write", "poem")),
        ("Given the table, list three facts.", Root("list", "fact")),
        ("My boiler has failed. Write my landlord an e-mail.", Root("write", "e-mail")),
        ("Could you help me plan a birthday party?", Root("plan", "party")),
        ("Explain why the sky is blue.", Root("explain", "")),
        ("Give feedback\nWrite nothing else.", Root("give", "feedback")),
        (f"Write a {'poem' * 1000}.", Root("write", "")),
        ("How do magnets work?", None),
        ("The sea was calm.", None),
        ("", None),
        ("???", None),
    ],
)
def test_english(instruction: str, root: Root | None) -> None:
    assert root_english(instruction) == root


@pytest.mark.parametrize(
    ("instruction", "root"),
    [
        ("请写一首关于春天的诗。", Root("写", "诗")),
        ("把下面的句子翻译成英文。", Root("翻译", "句子")),
        ("用一句话概括这段文字的中心思想。", Root("概括", "思想")),
        ("列出五种常见的水果", Root("列出", "水果")),
        ("生成一个句子。", Root("生成", "句子")),
        ("我要去面试，帮我写一份自我介绍。", Root("写", "介绍")),
        ("你能帮我写一首诗吗？", Root("写", "诗")),
        ("礼貌地回复这封信。", Root("回复", "信")),
        ("介绍（不超过五十字）你的家乡。", Root("介绍", "家乡")),
        ("重新排列这些词。", Root("重新排列", "词")),
        # a coverb and its noun, then the verb
        ("给妈妈写一封信。", Root("写", "信")),
        ("给我三个理由。", Root("给", "理由")),
        ("为新店起一个名字。", Root("起", "名字")),
        ("用“春风”造句。", Root("造句", "")),
        ("将句子按长短顺序排列。", Root("排列", "句子")),
        ("对这些词语进行分类。", Root("进行", "分类")),
        ("用给定的数据计算平均数。", Root("计算", "均数")),
        ("为工作查询写一封信。", Root("写", "信")),
        ("通过举例来解释重力。", Root("解释", "重力")),
        ("就如何省水提出三点建议。", Root("提出", "建议")),
        ("使用“忽然”一词。", Root("使用", "词")),
        ("使用下面的词语，编一个故事。", Root("编", "故事")),
        # a scene is set first
        ("给定一个句子，输出其长度。", Root("输出", "长度")),
        ("请根据以下要点，撰写一份总结。", Root("撰写", "总结")),
        ("想象你是一名船长。描述一场风暴。", Root("描述", "风暴")),
        # an object ends where a purpose or another clause begins
        ("编写一个函数来求和。", Root("编写", "函数")),
        ("解释为什么海水是咸的。", Root("解释", "")),
        ("说出“冷”的反义词。", Root("说出", "义词")),
        # a verb of no list, before a noun phrase
        ("雕刻一个苹果。", Root("雕刻", "苹果")),
        # questions, and what only looks like a verb
        ("为什么天是蓝的？", None),
        ("摩擦如何帮助我们行走？", None),
        ("在面试中如何回答这个问题？", None),
        ("如何煮鸡蛋", None),
        ("运行程序需要什么？", None),
        ("计算机是什么", None),
        ("设计师的工作有哪些？", None),
        ("这道题怎么解？写出步骤。", Root("写出", "步骤")),
        ("苹果和梨的区别", None),
        ("", None),
    ],
)
def test_chinese(instruction: str, root: Root | None) -> None:
    assert root_chinese(instruction) == root


def test_singular() -> None:
    plural = "stories boxes children analyses glass bus series words churches species"
    assert " ".join(map(singular, plural.split())) == "story box child analysis glass bus series word church species"
