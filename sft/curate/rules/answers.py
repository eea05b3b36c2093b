"""Rules about what an answer says instead of answering: notices of the site, refusals."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

import pydantic
from pydantic import Field

from sft.curate.chat import Chat
from sft.curate.rules.base import ASSISTANT, Removal, RuleBase, cut, no_blanks, place, read_list, refuse, shown
from sft.data.conversation import Drop
from sft.text.model_speech import speaks_as_model
from sft.text.tokens import HAN, KANA, normal

_EDGES = " \t\n!！*_#>`\"'.。…,，:：~-⚠️❗[]()（）【】"


class NoticeRule(RuleBase):
    """``notice``: an answer that is a message of the site: a rate limit, an error banner, the cursor of one still being written.

    The phrases are in ``sft/curate/lists/notices.txt``: some count at the start of an answer, some only as the whole of it (within a
    longer answer "network error" is a topic) or as its last line.
    """

    kind: Literal["notice"] = "notice"
    action: Literal["cut", "drop_chat"] = "cut"
    """End the conversation before the question that got the notice, or leave it out as the original does."""
    also: tuple[str, ...] = ()
    """Further phrases that an answer may not begin with."""

    @pydantic.model_validator(mode="after")
    def _no_blanks(self) -> NoticeRule:
        no_blanks("also", tuple(phrase.strip(_EDGES) for phrase in self.also))
        return self

    def apply(self, chat: Chat) -> Chat | Drop:
        for at, message in enumerate(chat.messages):
            if message.role != ASSISTANT:
                continue
            found = _notice(message.text, self.also)
            if found is not None:
                detail = f"{place(chat, at)} is a notice of the site: {shown(found)}"
                return chat.drop("notice", detail) if self.action == "drop_chat" else cut(chat, at, "notice", detail)
        return chat


_HEAD = 240  # characters; longer than any phrase in its normal form
_BLOCKS = "▀▁▂▃▄▅▆▇█▉▊▋▌▍▎▏▐░▒▓"  # a bar of blocks may end in half a one
_BLANKS = re.compile(r"\s*\n\s*")


def _notice(text: str, also: tuple[str, ...]) -> str | None:
    """The notice that a text is, in its own words."""
    start, whole, end, cursor = _notices(also)
    bare = text.strip()
    for mark in cursor:
        if bare.startswith(mark) or (bare.endswith(mark) and bare[-2] not in _BLOCKS):
            return mark
    head = _bare(bare[:_HEAD])
    if start.match(head):
        return head
    if len(bare) < _HEAD and head in whole:
        return head
    last = _bare(_BLANKS.split(bare[-_HEAD:])[-1])
    return last if last in end else None


def _bare(text: str) -> str:
    return normal(text).strip(_EDGES)


@lru_cache(maxsize=8)
def _notices(also: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[str], frozenset[str], tuple[str, ...]]:
    phrases = read_list("notices")
    start = "|".join(re.escape(_bare(phrase)) for phrase in (*phrases["start"], *also))
    return (
        re.compile(rf"(?:error\W+)?(?:{start})(?![a-z])"),
        frozenset(map(_bare, phrases["whole"])),
        frozenset(map(_bare, phrases["end"])),
        phrases["cursor"],
    )


class RefusalRule(RuleBase):
    """``refusal``: an answer that only refuses: it begins so, or owns up to being a model that cannot, and then stops.

    One that refuses and helps all the same passes: it is longer than ``longest``, or holds code, a table or a list of three items. So
    does one about refusals, or with an apology for something else ("I'm sorry to hear that").
    """

    kind: Literal["refusal"] = "refusal"
    action: Removal = "drop_round"
    """Take out the question with its answer, or leave the conversation out."""
    longest: int = Field(default=500, ge=1)
    """Characters of an answer that can be nothing but a refusal; a Chinese or Japanese one counts as three."""
    also: tuple[str, ...] = ()
    """Further openings of refusals."""

    @pydantic.model_validator(mode="after")
    def _no_blanks(self) -> RefusalRule:
        no_blanks("also", self.also)
        return self

    def apply(self, chat: Chat) -> Chat | Drop:
        return refuse(chat, self.action, self._judged)

    def _judged(self, chat: Chat, at: int) -> tuple[str, str] | None:
        message = chat.messages[at]
        asked = chat.messages[at - 1].text if at else ""
        found = self.refusal(asked, message.text) if message.role == ASSISTANT else None
        return None if found is None else ("refusal", f"{place(chat, at)} only refuses: {shown(found)}")

    def refusal(self, asked: str, text: str) -> str | None:
        """The words of refusal, if an answer to what was asked is nothing else; None if it is more, or none."""
        bare = text.strip()
        if len(bare) > self.longest or _width(bare) > self.longest or _STRUCTURE.search(bare) or _helps(bare):
            return None
        plain = _plain(bare)
        opening = _openings(self.also).match(plain)
        if opening:
            end = _SENTENCE_END.search(plain, opening.end())
            if _TRADE.search(plain[: end.start() if end else len(plain)]):
                return opening[0]
        first = "".join(_SENTENCE.findall(bare)[:2])
        spoken = speaks_as_model(first)
        if spoken is None or not _DENIES.search(normal(first)) or _OF_THE_MODEL.search(normal(asked[-400:])):
            return None
        return spoken


_ADVERBS = re.compile(
    r"\b(?:really|very|so|truly|terribly|extremely|deeply|sincerely|just|currently|actually|genuinely) |^(?:oh|hi|hello|hmm|well|ah)[,.!] "
)
_LONG = (("i am ", "i'm "), ("cannot", "can't"), ("can not", "can't"), ("do not", "don't"), ("will not", "won't"))
_STRUCTURE = re.compile(
    r"^ *```|^ *\|.*\|.*\|.*\n|(?:^ *(?:\d{1,2}[.)、]|[-*•]) *\S.*\n(?:\s*\n)*){2} *(?:\d{1,2}[.)、]|[-*•]) *\S", re.M
)
_DENIES = re.compile(
    r"\b(?:cannot|can't|unable|not (?:able|capable|programmed|designed|possible|in a position)|lack|won't|will not|must decline|"
    r"(?:do not|don't|does not|doesn't) (?:\w+ )?(?:have|possess|hold|know|feel|experience|engage|provide|support|condone|think)|"
    r"no (?:access|personal|feelings|opinions?|emotions?|way))\b|无法|不能|没有|不会|不具[备有]|做不到|没法|不可以"
)
_TRADE = re.compile(
    r"\b(?:access|advice|advise|ai|answer|assist|assistance|assistant|browse|comply|content|create|data|disclose|discuss|display|draw|"
    r"engage|execute|facilitate|feelings|fulfill?|generate|help|images?|information|instructions|internet|language model|links?|lyrics|"
    r"opinions?|perform|personal|predict|produce|provide|quote|real-time|recognize|request|requests|respond|search|share|speculate|"
    r"support|text|training|urls?|verify|view|websites?|write)\b|回答|提供|协助|帮助|帮忙|满足|完成|生成|访问|浏览|讨论|请求|信息|内容|"
    r"模型|人工智能|ai|执行|支持|查询|预测|判断|评价|问题|识别|权限|实时|感情|情感|意见|创作|上网|图片|链接"
)
# A question about the model itself: "As an AI, I don't have feelings" is then an answer.
_OF_THE_MODEL = re.compile(
    r"\b(?:are|do|can|have|could|would|will|did|were) you\b[^.?!\n]{0,40}\b(?:think|thinking|feel|feelings?|conscious|consciousness|"
    r"sentient|alive|human|person|robots?|ai|emotions?|dreams?|self-aware|lonely|happy|sad|born)\b|你(?:们|是|有|会|能|可以|真的|自己)*"
    r"[^。?!\n]{0,12}(?:感情|情感|感觉|情绪|意识|思考|人类|真人|机器人|人工智能|ai|生命|做梦|灵魂)"
)
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？\n]*")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|[。！？]")
_TURNS_TO_HELP = re.compile(
    r"\b(?:however|nevertheless|that said|but (?:i can\b(?!['’]t)|here|if)|in the meantime|instead)\b|不过|但是|然而|但(?:我可以|如果|可以)",
    re.I,
)
_OFFERS = re.compile(
    r"\b(?:feel free|let me know|if you|if there|would you|could you|can you|please|provide me|happy to|glad to|help you|assist you|"
    r"how about|i suggest|recommend|refer to|consult|check|i (?:can|am able to) (?:\w+ )?(?:provide|offer|help|assist|summari[sz]e|give|"
    r"try|generate|create|discuss|guide))\b|如果您|如果你|请|帮助您|帮助你|帮您|帮你|为您|为你|您可以|你可以|建议",
    re.I,
)
_LEAST_HELP = 60  # characters that are more than an offer of help


def _helps(text: str) -> bool:
    """Whether a text turns from refusing to something that is more than an offer: "However, the average is around 8 degrees"."""
    turn = _TURNS_TO_HELP.search(text)
    rest = _SENTENCE.findall(text[turn.start() :]) if turn else []
    return sum(_width(sentence.strip()) for sentence in rest if not _OFFERS.search(sentence)) >= _LEAST_HELP


def _plain(text: str) -> str:
    """The form in which openings are compared."""
    text = normal(text)
    for long, short in _LONG:
        text = text.replace(long, short)
    return _ADVERBS.sub("", text)


_WIDE = re.compile(f"[{HAN}{KANA}]")


def _width(text: str) -> int:
    return len(text) if text.isascii() else len(text) + 2 * len(_WIDE.findall(text))


@lru_cache(maxsize=8)
def _openings(also: tuple[str, ...]) -> re.Pattern[str]:
    phrases = (_plain(phrase) for phrase in (*read_list("refusals")["opening"], *also))
    return re.compile("|".join(map(re.escape, sorted(phrases, key=len, reverse=True))))
