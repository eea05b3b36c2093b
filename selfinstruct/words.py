"""What an instruction asks for: its root verb and the noun that the verb takes, in English and Chinese, without any model.

The figure of the Self-Instruct paper shows both, from a constituency parser. Here word lists and the order of words do it:

    "Please write a short, funny poem about rain."      ->  write, poem
    "Given the table, list three facts."                ->  list, fact
    "How do magnets work?"                              ->  None, a question has no root verb in this sense
    "请写一首关于春天的诗。"                                ->  写, 诗
    "把下面的句子翻译成英文。"                              ->  翻译, 句子

English takes the first verb of :data:`VERBS` that opens a main clause, then the head of the noun phrase behind it. Chinese takes the
verb of :data:`VERBS_ZH` that opens the sentence behind polite words, then the last two characters of its object (of the part
after the last 的). tests/selfinstruct/test_words.py states how often they agree with a reader.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Root(NamedTuple):
    """A verb in its base form and the head noun of its object, in the singular; ``noun`` is empty where there is none."""

    verb: str
    noun: str


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


VERBS = _set(
    """
    abbreviate act adapt add address adjust advise aggregate alphabetise alphabetize analyse analyze annotate anonymise
    answer apologise apologize append apply appraise argue arrange ask assemble assess assign assume balance begin bold
    brainstorm break brighten build calculate call capitalise capitalize categorise categorize change chart check choose
    cite clarify classify clean code coin collect combine come comment compare compile complete compose compress compute
    condense conduct consider construct continue contrast convert convince correct count crack craft create criticise
    critique customise customize cut debate debug decide decipher decline decode deduce define delete demonstrate derive
    describe design detect determine develop devise diagnose differentiate discuss distil distill distinguish divide do
    document draft draw dream edit elaborate eliminate encode encrypt enumerate estimate evaluate evoke examine expand
    explain explicate explore express extend extract factor factorise fetch fill find finish fix flag flip fold follow
    form format formulate gather generate give gloss grade greet group guess help highlight hypothesise identify
    illustrate imagine implement improve include increase indicate infer inform insert instruct integrate interpolate
    interpret introduce invent investigate itemise join judge justify keep label let link list locate look make mark
    match measure mediate memorise mention merge modify multiply name narrate negotiate normalise normalize note number
    offer optimise optimize order organise organize outline output pair paraphrase parse pen perform persuade phrase
    pick pitch place plan plot point port portray post practise predict prepare present pretend prioritise prioritize
    process produce prompt pronounce proofread propose prove provide punctuate put query quote raise rank rate
    re-arrange re-order re-word re-write read rearrange recall recast recite recognise recognize recommend reconstruct
    record recreate redact redesign reduce refactor reformat reformulate reframe remove rename render reorder reorganise
    reorganize repair repeat rephrase replace reply report represent research resolve respond restate restructure retell
    retrieve return reveal reverse review revise reword rewrite rhyme roll round run say scale schedule score search
    seat select separate set share shorten show simplify simulate sketch soften solve sort specify spell split spot
    stand start state stress structure sub-edit substitute suggest sum summarise summarize supply support suppose swap
    synthesise synthesize tag take talk tally teach tell test think total trace transcribe transform translate transpose
    trim turn typeset unpack unscramble update use utilise utilize validate vary verify visualise walk weigh work write
    """
)
_SKIP = _set(
    """
    please kindly now then next first finally also just simply briefly carefully concisely clearly politely and could
    can would will you i want need like to me us for help let's
    """
)
_QUESTION = _set(
    """
    what why how when where who whom whose which is are was were does did has have should may might must do can could
    would will if
    """
)
_OPENERS = _set(
    """
    given using based in with from for by on as when if after before without considering imagine assuming suppose
    pretend under at within following consulting
    """
)
_DETERMINERS = _set(
    """
    a an the this that these those my your his her its our their some any each every all both no another such several
    many few more most other own one two three four five six seven eight nine ten eleven twelve twenty whichever me us
    him them it following given above below provided entire whole same exactly about only up out at least around roughly
    """
)
_ADJECTIVES = _set(
    """
    ancient bad basic best better big blunt brief clear cold common complete concise correct creative detailed different
    dry easy everyday fair famous final firm first fitting formal free friendly full funny good great hard heavy
    imaginary important informal interesting kind large last likely local long main missing modern negative new next old
    ordinary original plain polite popular positive possible quiet random real right safe second short similar simple
    small strong suitable sunny third unique vivid warm weak wrong young
    """
)
_ENDS = _set(
    """
    of in for from to with by on at about into onto as that which who whose if when where why how what whether and or
    but using between under over per so than because while until since after before within without through during
    against among like via towards toward is are was were has have can could should would may might will does do did
    given described stated listed named called and/or out up back aloud above below again here there too instead not it
    them
    """
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d[\d.,]*|[.,:;?!()\"“”…—–]")
_SUFFIXES = ("ful", "ous", "ive", "ic", "able", "ible", "less", "ish", "al")
_LONGEST = 24  # letters; what is longer is no English word, and would burst a figure
_IRREGULAR = {
    "children": "child", "people": "person", "men": "man", "women": "woman", "mice": "mouse", "feet": "foot", "teeth": "tooth",
    "analyses": "analysis", "theses": "thesis", "hypotheses": "hypothesis", "crises": "crisis", "criteria": "criterion", "geese": "goose",
    "leaves": "leaf", "knives": "knife", "lives": "life", "series": "series", "species": "species", "news": "news", "lens": "lens",
    "gas": "gas", "bus": "bus", "physics": "physics", "mathematics": "mathematics", "pros": "pro", "matrices": "matrix", "movies": "movie",
    "cookies": "cookie", "statistics": "statistics", "halves": "half", "wolves": "wolf", "synopses": "synopsis", "phenomena": "phenomenon",
}  # fmt: skip


def singular(noun: str) -> str:
    """The singular of an English noun, by its ending; a noun that is singular already stays as it is."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("sses", "shes", "ches", "xes", "zes")):
        return noun[:-2]
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and len(noun) > 3:
        return noun[:-1]
    return noun


def root_english(instruction: str) -> Root | None:
    """Root verb and object of an English instruction; None for a question and where no verb of :data:`VERBS` opens a clause."""
    words = _WORD.findall(instruction.split("\n", 1)[0])
    lower = [word.lower().replace("’", "'") for word in words]
    start = _opening(lower)
    if start is None:
        return None
    return Root(lower[start], _object(lower[start + 1 :]))


def _opening(words: list[str]) -> int | None:
    """Where the root verb is: behind polite words, or behind the comma, colon or stop that ends an opening phrase."""
    at = 0
    while at < len(words):
        begin = at
        while begin < len(words) and words[begin] in _SKIP and not (words[begin] == "let" or _is_root(words, begin)):
            begin += 1
        if begin < len(words) and _is_root(words, begin):
            return begin
        if at == 0 and words[0] in _QUESTION and words[0] not in {"can", "could", "would", "will", "if"} | _OPENERS:
            return None
        at = next((k + 1 for k in range(at, len(words)) if words[k] in {",", ":", ".", ";", "?", "!", "—", "–"}), len(words))
    return None


def _is_root(words: list[str], at: int) -> bool:
    # "help me write", "want you to act": the verb behind is meant
    if words[at] == "help" and words[at + 1 : at + 2] in (["me"], ["us"]):
        return not any(word in VERBS for word in words[at + 2 : at + 4])
    # "Suppose all mirrors vanished. Describe ...": a scene is set, the task comes after it
    if words[at] in {"imagine", "suppose", "assume", "pretend", "consider", "read"} and "." in words[at:-1]:
        rest = words[words.index(".", at) + 1 :]
        return not (rest and rest[0] in VERBS)
    if at == 0 and words[at] in _OPENERS and words[at] != "imagine":
        return False
    return words[at] in VERBS


def _object(words: list[str]) -> str:
    """The head of the noun phrase that follows a verb, or nothing."""
    head = ""
    for at, word in enumerate(words):
        if not word[0].isalnum():
            if word == "," and head and _adjective(words[at - 1]) and at + 1 < len(words):
                continue
            if word in '("“”' and not head:
                continue
            break
        if word in _DETERMINERS and not head:
            continue
        if word[0].isdigit() and not head:
            continue
        if word in _ENDS:
            if word in {"and", "but"} and head and _adjective(words[at - 1]):
                continue
            # "down to", "out the cost": a particle before any noun belongs to the verb
            if not head and word in {"out", "up", "back", "about", "at", "it", "them", "as", "into", "given", "named"}:
                continue
            break
        if head and word.endswith("ly") and word not in {"family", "reply", "assembly", "supply"}:
            break
        head = word
    return singular(head) if head and len(head) <= _LONGEST and not _adverb(head) else ""


def _adjective(word: str) -> bool:
    return word in _ADJECTIVES or word.endswith(_SUFFIXES)


def _adverb(word: str) -> bool:
    return word.endswith("ly") and word not in {"family", "reply", "assembly", "supply", "butterfly"}


_ZH_SINGLE = "写译填求解编选列画教数取猜谈讲拟撰作算答给改排挑说"
VERBS_ZH = tuple(
    sorted(
        _set(
            """
            写出 写下 编写 撰写 创作 起草 草拟 拟定 拟写 列出 列举 举出 举例 解释 说明 讲明 阐述 讲解 讲述 介绍 描述 描写
            形容 概括 总结 归纳 简述 概述 翻译 译成 译出 改写 重写 修改 润色 扩写 缩写 缩短 精简 续写 仿写 补全 补充 补齐
            完成 填写 回答 计算 算出 求出 证明 推导 估算 估计 比较 对比 区分 分辨 判断 判定 辨别 辨认 识别 分类 归类 归入
            分析 评价 评估 点评 评论 设计 制定 制作 规划 安排 策划 提出 提供 给出 推荐 建议 选择 选出 挑选 挑出 排序 排列
            排出 找出 指出 寻找 查找 提取 提炼 抽取 摘录 转换 转化 换算 换成 改成 改为 变成 生成 产生 构思 想象 假设 扮演
            模拟 造句 检查 纠正 改正 修正 修复 修好 校对 标出 标注 注上 命名 起名 预测 推测 推断 讨论 论述 反驳 说服 劝说
            安慰 感谢 道歉 邀请 告诉 说出 背诵 朗读 拼写 统计 合并 拆分 整理 理顺 汇总 替换 删除 添加 实现 优化 重构 调试
            定义 表达 组织 回复 回应 复述 查询 记录 拓展 扩展 简化 制表 压缩 翻成 配上 设想 创建 创造 建立 构建 开发 搭建
            研究 调查 输出 输入 确定 找到 鉴定 去掉 删掉 准备 评分 打分 想出 发送 加入 插入 举例说明 安装 解决 引入 重组 收集
            改进 回顾 预订 描绘
            """
        ),
        key=lambda verb: (-len(verb), verb),
    )
)
"""Verbs of two characters; the single ones of ``_ZH_SINGLE`` count only at the head of a clause or before a number or 出, 成, 个."""
_ZH_VERB = re.compile("|".join((*VERBS_ZH, f"[{_ZH_SINGLE}]")))
_ZH_VERB_INSIDE = re.compile("|".join((*VERBS_ZH, f"[{_ZH_SINGLE}](?=[一二两三四五六七八九十几\\d出成个段条首篇份封句则副])")))
_ZH_POLITE = re.compile(
    r"^(?:请问|请你|请您|请|麻烦你|麻烦|帮我|帮忙|帮|你能不能|你能否|你能|能不能|能否|可以|可否|我想让你|我需要你|我想|我要|给我|代我|为我|替我|试着|尝试|"
    r"简单地?|简要地?|详细地?|再|仔细|先|只|然后|顺便|并)+"
)
_ZH_COVERB = re.compile(r"(?P<word>把|将|对|为|给|就|从|在|用|使用|以|根据|依据|按照|按|照|针对|替)")
_ZH_MEASURE = re.compile(
    r"^(?:出|下|成|为|着)?(?:这|那|每)?(?:[一二两三四五六七八九十百几多]+|\d+)?(?:[首篇段个句条种封份则组道本张幅副些项名位款件部套场支轮家](?![子称件目数置法票]))?"
)
_ZH_COUNTED = re.compile(r"^(?:[一二两三四五六七八九十百几多]+|\d+)[首篇段个句条种封份则组道本张幅副些项名位款件部套场支轮家]")
_ZH_LEAD = re.compile(r"^(?:什么是|何为|何谓|以下|下面|下列|给定|如下|上述|一下|有关|关于|如何|怎样|为什么|常见的?)+")
_ZH_STOP = re.compile(r"[，。：:；！？,.!?、\n（(“\"「《]|并且|并|以及|不超过")
_ZH_CLAUSE = re.compile(r"[，。：:；！？,!?\n]")


def root_chinese(instruction: str) -> Root | None:
    """The verb of the first clause that begins with one, and the last characters (at most two) of its object; None if no clause does.

    A clause may begin with polite words, and with a coverb and its noun: the object of 把 and 将 is the verb's, that of others is not.
    """
    text = instruction.strip().split("\n", 1)[0]
    start = 0
    for stop in [*(match.start() for match in _ZH_CLAUSE.finditer(text)), len(text)]:
        clause, rest = text[start:stop].strip(), text[start:].strip()
        start = stop + 1
        cut = len(clause) - len(_ZH_POLITE.sub("", clause))
        clause, rest = clause[cut:], rest[cut:]
        coverb = _ZH_COVERB.match(clause)
        inside = _ZH_VERB_INSIDE.search(clause, coverb.end() + 1) if coverb else None
        if coverb and inside:
            moved = coverb["word"] in {"把", "将"}
            return Root(inside[0], _object_chinese(clause[coverb.end() : inside.start()] if moved else rest[inside.end() :]))
        verb = _ZH_VERB.match(clause)
        if verb and not coverb:
            return Root(verb[0], _object_chinese(rest[verb.end() :]))
    return None


def _object_chinese(rest: str) -> str:
    rest = _ZH_LEAD.sub("", _ZH_MEASURE.sub("", rest, count=1))
    rest = _ZH_STOP.split(rest, maxsplit=1)[0]
    head = rest.rsplit("的", 1)[-1] or rest
    han = re.sub(r"[^\u3400-\u4dbf\u4e00-\u9fff]", "", _ZH_COUNTED.sub("", head) or head)
    return han[-2:]
