"""Cleaning under fuzz: every rule with its options, HTML to Markdown, the split by length, duplicates."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import fuzz_draws as draws
from fuzz_law import require

from sft.curate.chat import Chat, Message, Rule, read_chat
from sft.curate.clean import Cleaner
from sft.curate.dedup import Deduplicator, DedupSection, NearSection, signature
from sft.curate.html.reader import to_markdown
from sft.curate.html.tags import is_html
from sft.curate.parts import Batch, PartReport
from sft.curate.recipe import rules_of
from sft.curate.rules.html import HtmlRule
from sft.curate.split import SplitSection, Splitter
from sft.data.conversation import Drop
from sft.data.jsonl import RawRow
from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import InputError
from tests.builders import byte_level, sentencepiece_like
from tests.curate.test_markdown import Visible, words

_REMOVAL = ["drop_round", "drop_chat"]
_ROLES = [["assistant"], ["user"], ["system", "user", "assistant"]]
_RULES: dict[str, dict[str, list[Any]]] = {
    "html": {"roles": [["assistant"], ["user", "assistant"], ["system"]], "others": ["site", "never"]},
    "role_repair": {"doubled": ["merge", "keep_last", "drop_chat"], "separator": ["\n\n", "", " "]},
    "empty_turn": {"action": ["cut", "drop_chat"]},
    "min_length": {"characters": [0, 1, 40], "turns": [0, 2, 3]},
    "single_round": {},
    "notice": {"action": ["cut", "drop_chat"], "also": [[], ["hello"], ["1 / 2"]]},
    "refusal": {"action": _REMOVAL, "longest": [1, 500, 5_000], "also": [[], ["what"]]},
    "vendor_names": {
        "action": [*_REMOVAL, "replace"],
        "scope": ["anywhere", "itself"],
        "code": [True, False],
        "roles": _ROLES,
        "name": ["Ada", "小助", "A", "Hey"],
        "organisation": ["the Lab", "实验室", "B C"],
        "also_names": [[], ["xyz", "a b"]],
        "also_organisations": [[], ["q-r"]],
        "allowed": [[], ["openai"]],
    },
    "repetition": {
        "action": _REMOVAL,
        "roles": _ROLES,
        "digits": [0, 1, 2, 20],
        "characters": [0, 1, 30],
        "lines": [0, 1, 8],
        "phrase": [0, 1, 80],
    },
    "broken_list": {"action": ["renumber", *_REMOVAL], "items": [2, 3]},
    "language": {"keep": [["en", "zh"]], "certainty": [0.6, 0.9], "unknown": ["keep", "drop"], "characters": [100, 300]},
    "model": {"keep": [["gpt*"], ["*"]], "skip": [[], ["[a", "?"]], "missing": ["keep", "drop"]},
    "field": {
        "field": ["lang", "plugins", "a.b", "value"],
        "keep": [["en"], ["*"]],
        "skip": [[], ["[!x]*"]],
        "missing": ["keep", "drop"],
    },
    "pii": {
        "mask": [["email", "phone", "id", "card", "key", "ip"], ["ip"], ["email", "key"]],
        "code": [True, False],
        "roles": _ROLES,
    },
    "contamination": {
        "action": _REMOVAL,
        "ngram": [4, 13],
        "code": [True, False],
        "roles": [["user", "assistant"], ["system"]],
    },
}
_WEIGHTS = {"language": 0.25}  # the detector takes longer than all others together


@lru_cache(maxsize=20_000)
def _rules(plain: str) -> tuple[Rule, ...]:
    return rules_of(json.loads(plain))


class Cleaning:
    """Each input is a row with rules, a text to convert, conversations to split, or conversations to compare; see :meth:`check`."""

    name = "cleaning"

    def __init__(self, folder: Path) -> None:
        self._evaluation = folder / "evaluation.jsonl"
        rows = [{"question": one} for one in draws.SENTENCES if one.strip() and len(one) > 3]
        self._evaluation.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        golden = sorted((Path(__file__).resolve().parent.parent / "tests" / "golden" / "html").glob("*.txt"))
        self._pages = [path.read_text(encoding="utf-8").split("\n----\n")[0] for path in golden]
        self._encoders = [
            RowEncoder(byte_level(), load_template("chatml")),
            RowEncoder(sentencepiece_like(), load_template("vicuna_v1.1")),
            RowEncoder(sentencepiece_like(), load_template("chinese_vicuna_chat"), "last"),
        ]

        _cleaned(
            Cleaner(_rules('[{"kind": "language", "keep": ["en"]}]'), {"s": ("sharegpt", {})}), draws.sharegpt(random.Random(0))
        )

    def draw(self, dice: random.Random) -> Any:
        kind = dice.random()
        if kind < 0.4:
            many = dice.choice((1, 1, 1, 2, 4, 8))
            return ["rules", [self._rule(dice) for _ in range(many)], draws.sharegpt(dice)]
        if kind < 0.52:
            return ["soup", draws.soup(dice)]
        if kind < 0.67:
            return ["tree", "".join(draws.tree(dice) for _ in range(dice.randint(1, 3)))]
        if kind < 0.9:
            text = draws.page(dice) if dice.random() < 0.7 else draws.mutated(dice, dice.choice(self._pages))
            return ["page", draws.mutated(dice, text) if dice.random() < 0.3 else text]
        if kind < 0.906:
            long = draws.stretched(dice, 40_000)
            row = {"model": "m", "conversations": [{"from": who, "value": long} for who in ("human", "gpt")]}
            if dice.random() < 0.3:  # many turns, few words
                row["conversations"] = draws.sharegpt(dice)["conversations"] * 60
            return ["rules", [self._rule(dice)], row] if dice.random() < 0.6 else ["page", long]
        if kind < 0.95:
            chats = [self._talk(dice) for _ in range(dice.choice((1, 1, 2)))]
            return [
                "split",
                dice.randrange(len(self._encoders)),
                chats,
                dice.choice((8, 20, 60, 100, 200)),
                dice.choice(("keep", "drop", "error")),
            ]
        return ["dedup", [draws.sharegpt(dice) for _ in range(dice.choice((1, 2, 3)))], self._section(dice), dice.random()]

    def _rule(self, dice: random.Random) -> dict[str, Any]:
        kind = dice.choices(list(_RULES), [_WEIGHTS.get(name, 1.0) for name in _RULES])[0]
        rule = {key: dice.choice(values) for key, values in _RULES[kind].items() if dice.random() < 0.6}
        if kind == "vendor_names" and rule.get("action") == "replace":
            rule = {"name": "Ada", "organisation": "the Lab", **rule}
        if kind == "contamination":
            rule["files"] = [str(self._evaluation)]
        if kind == "language":
            rule["keep"] = ["en", "zh"]
        if kind in ("model", "field"):
            rule = {"keep": ["gpt*"], **({"field": "lang"} if kind == "field" else {}), **rule}
        return {"kind": kind, **rule}

    def _talk(self, dice: random.Random) -> list[str]:
        """The texts of a conversation by turns; the last of an odd number is a system message."""
        return [draws.clean_text(dice) for _ in range(dice.randint(2, 11))]

    def _section(self, dice: random.Random) -> dict[str, Any]:
        near = {
            "shingle": dice.choice(("words", "characters")),
            "size": dice.choice((None, 1, 3)),
            "reach": dice.choice(("direct", "chain")),
        }
        return {
            "exact": dice.random() < 0.8,
            "same_id": dice.choice(("drop", "keep", "rename")),
            "first_exchange": dice.random() < 0.5,
            "near": {**near, "permutations": 16} if dice.random() < 0.7 else None,
            "keep": dice.choice(("longest", "first")),
        }

    def check(self, made: Any, counts: Counter[str]) -> None:
        getattr(self, f"_check_{made[0]}")(*made[1:], counts=counts)

    def _check_rules(self, plain: list[dict[str, Any]], row: dict[str, Any], counts: Counter[str]) -> None:
        """One row in: one row out that cleaning leaves as it is, or a drop with its reason. No rule alone needs more than one round."""
        try:
            rules = _rules(json.dumps(plain))
        except ValueError:  # a section that refuses its own options
            counts["rule refused"] += 1
            return
        cleaner = Cleaner(rules, {"s": ("sharegpt", {})})
        once, report = _cleaned(cleaner, row)
        require(len(once) + len(report.dropped) == 1, "a row comes out or is listed")
        counts.update(report.counts)
        if len(rules) == 1:
            require("unstable" not in report.counts, f"rule {plain[0]['kind']} comes to an end")
            _alone(rules[0], row)
        if once:
            counts["changed" if report.changed else "left as it is"] += 1
            again, after = _cleaned(cleaner, once[0])
            require(not after.dropped, "what is clean stays in")
            require(again == once, "cleaned twice is cleaned once")

    def _check_soup(self, page: str, counts: Counter[str]) -> None:
        """No word is lost or moved, and the result is no HTML."""
        counts["converted"] += 1
        expected = re.findall(r"q\d+z", page)
        markdown = to_markdown(page)
        require(re.findall(r"q\d+z", markdown) == expected, "no word is lost or moved")
        require(not is_html(markdown), "what was converted is no HTML")

    def _check_tree(self, page: str, counts: Counter[str]) -> None:
        """Of well-formed markup, the words that a browser shows."""
        if not draws.is_tree(page):  # what a smaller input may be
            return
        counts["converted"] += 1
        seen = "".join(Visible(page).parts).replace("<br>", "\n")
        require(
            words(to_markdown(page).replace("<br>", "\n")) == words(seen), "the words that are seen are those that are written"
        )

    def _check_page(self, page: str, counts: Counter[str]) -> None:
        """Any text is read; the result is no HTML; the rule changes it once."""
        counts["converted"] += 1
        require(not is_html(to_markdown(page)), "what was converted is no HTML")
        rule = HtmlRule(roles=("assistant", "user"))
        chat = Chat("c", (Message("user", page), Message("assistant", page)))
        once = rule.apply(chat)
        require(rule.apply(once) is once, "converted twice is converted once")

    def _check_split(self, which: int, chats: list[list[str]], longest: int, overflow: str, counts: Counter[str]) -> None:
        """Each exchange comes out in one row or is listed; no row is too long."""
        encoder = self._encoders[which]
        made = [_chat(f"c{i}", texts) for i, texts in enumerate(chats)]
        report = PartReport("", 0, "s")
        values = {"model": {"name_or_path": "x"}, "template": {"name": "chatml"}, "max_length": longest, "overflow": overflow}
        try:
            out = list(Splitter(encoder, SplitSection.model_validate(values)).split(made, report))
        except InputError:
            require(overflow == "error", "only 'error' stops")
            counts["stopped"] += 1
            return
        counts.update(reason for _, reason, _ in report.dropped)
        counts["rows"] += len(out)
        listed: Counter[tuple[str, str]] = Counter()
        owners = {chat.id: chat for chat in made}
        for place, _, _ in report.dropped:
            name, _, number = place.partition("#")
            pairs = _pairs(owners[name])
            listed.update(pairs[int(number) : int(number) + 1] if number else pairs)
        came = Counter(pair for chat in made for pair in _pairs(chat))
        went = Counter(pair for chat in out for pair in _pairs(chat))
        require(came == went + listed, "each exchange is in one row or listed")
        for part in out:
            turns = read_chat(part.to_row(), "").messages
            require(
                [m for m in turns if m.role == "system"]
                == [m for m in owners[part.id.partition("#")[0]].messages if m.role == "system"],
                "the system message is repeated",
            )

    def _check_dedup(self, rows: list[dict[str, Any]], plain: dict[str, Any], order: float, counts: Counter[str]) -> None:
        """Deciding again over what stays drops nothing; the order of rows changes nothing but under ``first``; spaces do not matter."""
        near = None if plain["near"] is None else NearSection.model_validate(plain["near"])
        section = DedupSection(**{**plain, "near": near})
        chats = [read_chat(row, f"f:{i}") for i, row in enumerate(rows) if _is_readable(row)]
        chats += [Chat(chat.id, tuple(Message(m.role, f" {m.text}\n") for m in chat.messages)) for chat in chats[:1]]
        signs = [signature(chat, section) for chat in chats]
        decided = _decided(section, signs, range(len(signs)))
        counts.update(found.reason for found in decided.values())
        require(not section.exact or not chats or len(decided) > 0, "white space makes no other conversation")
        left = [i for i in range(len(signs)) if i not in decided]
        require(not _decided(section, signs, left), "nothing that stays repeats what stays")
        shuffled = random.Random(order).sample(range(len(signs)), len(signs))
        require(set(_decided(section, signs, shuffled)) == set(decided), "order does not matter")


def _is_readable(row: Any) -> bool:
    return not isinstance(row.get("system"), (int, bool, list)) and all(
        turn["from"] in ("human", "gpt", "user", "assistant", "system") for turn in row["conversations"]
    )


def _decided(section: DedupSection, signs: list[bytes], order: Any) -> dict[int, Any]:
    found = Deduplicator(section)
    for index in order:
        found.add(index, signs[index])
    return dict(found.decide().duplicates)


def _cleaned(cleaner: Cleaner, row: Any) -> tuple[list[dict[str, Any]], PartReport]:
    report = PartReport("", 0, "s")
    return list(cleaner(Batch(0, "s", "", rows=(RawRow("f:1", row),)), report)), report


def _alone(rule: Rule, row: Any) -> None:
    """A rule changes nothing more in its own result."""
    try:
        once = rule.apply(read_chat(row, "f:1"))
    except Exception:  # unreadable: the cleaner has listed it
        return
    require(isinstance(once, Drop) or rule.apply(once) is once, f"rule {rule.kind} changes nothing more in its own result")


def _chat(name: str, texts: list[str]) -> Chat:
    head = (Message("system", texts[-1]),) if len(texts) % 2 else ()
    turns = texts[:-1] if head else texts
    return Chat(name, (*head, *(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns))))


def _pairs(chat: Chat) -> list[tuple[str, str]]:
    rest = [message.text for message in chat.messages if message.role != "system"]
    return list(zip(rest[::2], rest[1::2], strict=True))
