"""A synthetic dump of ShareGPT: conversations whose answers are the page's HTML, and beside it the Markdown that they were made of.

``python benchmarks/sharegpt_dump.py OUT.json [--conversations 100000] [--seed 0] [--texts FILE ...] [--processes 2]`` writes ``OUT.json``,
a list of ShareGPT rows, and ``OUT.truth.jsonl``, ``{"id": ..., "answers": [Markdown, ...]}`` row by row. Conversation ``i`` depends on the
seed and ``i`` alone; nothing is held in memory. Answers are made here, a third of them Chinese, of paragraphs, lists (nested, with
code), code, tables, formulas, quotes; or drawn from the answers of ``--texts`` (ShareGPT files). Questions are plain text, with
code, tags and identifiers that cleaning must not touch. The page (:mod:`sharegpt_page`) is rendered by markdown-it-py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path

from sharegpt_page import shared

_ENGLISH = """the a of to and in is for that with it as on are be this by from or an at which can may will more most such when each set value
function list number result order time part case system data model word line table name user file change example question answer
water sugar recipe city river history energy market light sound plant animal doctor school music letter snake_case my_var_name
__init__ 1/2 x_1 it's 3.5 don't"""
_CHINESE = """我们 可以 使用 这个 方法 来 解决 问题 例如 首先 然后 最后 需要 注意 的 是 数据 函数 列表 变量 结果 时间 系统 模型 学习 语言 城市
历史 能量 市场 植物 动物 医生 学校 音乐 因此 如果 但是 并且 以及 通过 一个 两个 非常 重要 简单 复杂 不同 相同"""
ENGLISH, CHINESE = _ENGLISH.split(), _CHINESE.split()
LANGUAGES = ("python", "javascript", "cpp", "java", "bash", "sql", "html", "json", "rust", "go", "c++", "text", "")
FORMULAS = (
    r"E=mc^2",
    r"\frac{a}{b} < 1",
    r"x_1 + x_2 = \sqrt{b^2 - 4ac}",
    r"\sum_{i=1}^{n} i = \frac{n(n+1)}{2}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"f(x) = \int_0^x e^{-t^2} dt",
    r"\pi r^2",
    r"a \& b \% c",
)


class Answers:
    """Markdown drawn by chance, in English or Chinese."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.chinese = dice.random() < 1 / 3

    def words(self, low: int, high: int) -> str:
        count = self.dice.randint(low, high)
        if self.chinese:
            return "".join(self.dice.choices(CHINESE, k=count))
        return " ".join(self.dice.choices(ENGLISH, k=count))

    def inline(self) -> str:
        """A phrase with at most one thing in it."""
        dice, phrase = self.dice, self.words(2, 9)
        kinds = (
            f"**{self.words(1, 4)}**",
            f"*{self.words(1, 3)}*",
            f"`{dice.choice(('vector<int>', 'my_var_name', 'a || b', 'git add .', 'x * y', '<div>', 'a  b', '&amp;', '__init__'))}`",
            f"[{self.words(1, 3)}](https://example.org/{dice.randrange(999)}_a?b=1&c=2)",
            f"${dice.choice(FORMULAS)}$",
            f"~~{self.words(1, 2)}~~",
            f"![{self.words(1, 2)}](https://example.org/{dice.randrange(99)}.png)",
            dice.choice(
                (
                    "1 / 2 cup",
                    "a < b & c > d",
                    "List<String>",
                    "x -> y",
                    "100%",
                    "C:\\new",
                    "snake_case_name",
                    "（见下文）",
                    "3 * 4 * 5",
                )
            ),
        )
        if dice.random() < 0.55:
            return phrase
        return f"{phrase} {dice.choice(kinds)} {self.words(1, 6)}"

    def paragraph(self) -> str:
        parts = [self.inline() for _ in range(self.dice.randint(1, 5))]
        text = ("，" if self.chinese else ", ").join(parts) + ("。" if self.chinese else ".")
        if self.dice.random() < 0.1:
            text += self.dice.choice(("  \n", "\n")) + self.inline()
        return text[0].upper() + text[1:]

    def code(self) -> str:
        dice = self.dice
        names = [f"{dice.choice(ENGLISH[30:50])}_{dice.randrange(99)}" for _ in range(4)]
        lines = []
        for _ in range(dice.randint(1, 14)):
            name, other = dice.choice(names), dice.choice(names)
            indent = dice.choice(("", "", "    ", "  ", "        ", "\t"))
            lines.append(
                indent
                + dice.choice(
                    (
                        f"def {name}({other}, *args, **kwargs):",
                        f"if ({name} < {other} && {other} > {dice.randrange(99)}) return &{name};",
                        f'print("{self.words(1, 4)}: <b>{name}</b>", {other}[{dice.randrange(9)}])  # {self.words(1, 5)}',
                        f"std::vector<std::map<int, {name}>> {other};",
                        f"SELECT * FROM {name} WHERE {other} <> '{dice.randrange(9)}' AND x = 1 / 2;",
                        f'<div class="{name}">&nbsp;{other} &amp; more</div>',
                        f"for (let {name} = 0; {name} < 10; {name}++) {{ {other}.push(`${{{name}}}`); }}",
                        f"const {name} = {other} ?? 'it\\'s';" + dice.choice(("", "", "   ")),
                        f"// {self.words(2, 6)}",
                        f"$ pip install {name} && {other} --help",
                    )
                )
            )
            lines += [""] * dice.choice((0, 0, 0, 0, 1, 2, 3))
        while lines[-1] == "" and dice.random() < 0.95:
            lines.pop()
        if dice.random() < 0.04:
            lines += ["```", "a fence within", "```"]
        return "\n".join(lines)

    def fenced(self) -> str:
        code = self.code()
        ticks = "````" if "```" in code else "```"
        return f"{ticks}{self.dice.choice(LANGUAGES)}\n{code}\n{ticks}"

    def items(self, depth: int = 0) -> str:
        dice = self.dice
        ordered, loose = dice.random() < 0.4, dice.random() < 0.4
        bullet, start = dice.choice("-*"), dice.choice((1, 1, 1, 3))
        found = []
        for number in range(dice.randint(2, 5)):
            mark = f"{start + number}. " if ordered else f"{bullet} "
            body = [f"**{self.words(1, 3)}**: {self.inline()}" if dice.random() < 0.3 else self.inline()]
            if depth < 2 and dice.random() < 0.25:
                body.append(self.items(depth + 1))
            if loose and dice.random() < 0.2:
                body.append(self.fenced())
            if loose and dice.random() < 0.15:
                body.append(self.paragraph())
            tight = not loose and not body[-1][0].isdigit()
            found.append(mark + indented(("\n" if tight else "\n\n").join(body), len(mark)))
        return ("\n\n" if loose else "\n").join(found)

    def table(self) -> str:
        dice, width = self.dice, self.dice.randint(2, 4)
        cells = lambda: " | ".join(  # noqa: E731  # a row is one expression
            dice.choice(
                (self.words(1, 3), "`a \\|\\| b`", "x \\| y", "**" + self.words(1, 2) + "**", "", "1 / 2", f"${FORMULAS[0]}$")
            )
            for _ in range(width)
        )
        head = " | ".join(self.words(1, 2) for _ in range(width))
        rule = " | ".join(dice.choice(("---", ":---", "---:", ":---:")) for _ in range(width))
        return "\n".join(f"| {row} |" for row in (head, rule, *(cells() for _ in range(dice.randint(1, 5)))))

    def block(self) -> str:
        draw = self.dice.random()
        if draw < 0.45:
            return self.paragraph()
        if draw < 0.65:
            return self.items()
        if draw < 0.80:
            return self.fenced()
        if draw < 0.86:
            return "#" * self.dice.randint(1, 4) + " " + self.words(1, 5)
        if draw < 0.91:
            return self.table()
        if draw < 0.95:
            return f"$$\n{self.dice.choice(FORMULAS)}\n$$"
        if draw < 0.98:
            return "\n".join(f"> {line}" if line else ">" for line in f"{self.paragraph()}\n\n{self.paragraph()}".split("\n"))
        return "---"

    def answer(self) -> str:
        return "\n\n".join([self.paragraph(), *(self.block() for _ in range(self.dice.choice((0, 1, 2, 3, 4, 6, 9))))])

    def question(self) -> str:
        """Plain text, as people type and paste it."""
        dice = self.dice
        text = self.words(4, 20) + ("？" if self.chinese else "?")
        return dice.choice(
            (text, text, f"{text}\n\n{self.code()}", f"    {self.code()}\n{text}", f"<p>{text}</p> <b>1 / 2</b> vector<int>")
        )


def indented(text: str, width: int) -> str:
    return "\n".join(" " * width + line if line and i else line for i, line in enumerate(text.split("\n")))


def conversation(job: tuple[int, int, list[str]]) -> tuple[str, str]:
    """The row and its truth, as JSON."""
    seed, index, texts = job
    dice = random.Random(f"{seed}:{index}")
    turns, truth = [], []
    made = Answers(dice)
    for _ in range(dice.choice((1, 1, 2, 2, 3, 4))):
        answer = dice.choice(texts) if texts else made.answer()
        truth.append(answer)
        turns += [{"from": "human", "value": made.question()}, {"from": "gpt", "value": shared(answer, dice)}]
    row = {"id": f"synthetic_{index}", "conversations": turns}
    return json.dumps(row, ensure_ascii=False), json.dumps({"id": row["id"], "answers": truth}, ensure_ascii=False)


def rows(count: int, seed: int, texts: list[str], processes: int) -> Iterator[tuple[str, str]]:
    """All conversations in order."""
    jobs = ((seed, index, texts) for index in range(count))
    if processes < 2:
        yield from map(conversation, jobs)
        return
    with multiprocessing.Pool(processes) as pool:
        for batch in iter(lambda: list(itertools.islice(jobs, 4_000)), []):  # a bounded number in flight
            yield from pool.imap(conversation, batch, chunksize=100)


def answers_of(files: list[Path]) -> list[str]:
    """Distinct answers of ShareGPT files."""
    values = (turn for file in files for row in json.loads(file.read_text(encoding="utf-8")) for turn in row["conversations"])
    return list(dict.fromkeys(turn["value"] for turn in values if turn["from"] == "gpt" and turn["value"].strip()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    start, count = time.perf_counter(), 0
    truth = options.out.with_suffix(".truth.jsonl")
    with options.out.open("w", encoding="utf-8") as dump, truth.open("w", encoding="utf-8") as side:
        dump.write("[")
        for row, told in rows(options.conversations, options.seed, answers_of(options.texts), options.processes):
            dump.write(f"{',' if count else ''}\n{row}")
            side.write(f"{told}\n")
            count += 1
        dump.write("\n]\n")
    size = options.out.stat().st_size / 1e6
    print(
        f"{count:,} conversations, {size:,.1f} MB and {truth.stat().st_size / 1e6:,.1f} MB of truth, {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
