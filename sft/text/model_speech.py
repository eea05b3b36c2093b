"""Whether a text speaks as an AI model about itself, in English or Chinese: "As an AI, I don't have feelings", 作为AI，我没有感情.

A text about AI must pass, so a name of the kind is not enough. What is looked for is a first person that owns up to it::

    "As an AI language model, I cannot browse."         speaks: as a ... I, in one sentence
    "As an AI engineer, I train models."                does not: an engineer is no AI
    "An AI language model predicts the next word."      does not: nobody speaks
    "I'm just an AI."                                   speaks: just, only, merely
    "I am an AI that keeps a lighthouse."               does not: a story; with "I cannot ..." in the sentence it would
    'The robot said: "I am just an AI."'                does not: quoted; neither do the lines of a dialogue
"""

from __future__ import annotations

import re

from sft.text.tokens import normal

_MOST = 80  # characters of a match that are given as evidence
_QUOTED = re.compile(r'"[^"]{1,400}"|[「『《][^」』》]{1,400}[」』》]')
_SPEAKER = re.compile(
    r"\s*[*\-]*(?!(?:answer|response|output|note|result|回答|答案?|输出|注意?|结果)\W)\w[\w .'-]{0,20}[*]*\s*[:：]", re.I
)

# --- English, in the form that sft.text.tokens.normal gives
_AI = (
    r"(?:(?:advanced|conversational|digital|generative|helpful|humble|large|mere|open-source|powerful|responsible|simple|text-based|"
    r"virtual|highly|very)[ -])*"
    r"(?:ai|a\.i\.|artificial intelligence|language model|llm)(?:[ -](?:powered|based|driven))?"
    r"(?:[ -](?:ai|agent|assistant|bot|chat|chatbot|language|model|program|system|tool|itself|myself))*"
)
_MADE = r"(?:developed|created|trained|designed|built|made|programmed|based|running)"
_DENIES = r"(?:\b(?:not|cannot|unable|lack|no|never|without)\b|n't\b|\b(?:so|and) i (?:only|just)\b|\b(?:designed|programmed|here) to\b)"
_NO_NOUN = rf"(?! (?!(?:and|but|here|or|so|that|which|who|without|{_MADE})\b)\w)"  # an AI engineer is no AI
_NOT_LIKENED = r"(?<!such )(?<!well )(?<!same )(?<!known )"  # "such as an AI", "as well as an AI"
_ENGLISH = tuple(
    map(
        re.compile,
        (
            # As an AI (trained by us), I ...
            rf"\b{_NOT_LIKENED}as an? {_AI}(?=,|:| [-–—]| i\b| {_MADE}\b| and\b)[^.!?]{{0,120}}?\b(?:i|my|me|myself)\b",
            # I am just an AI
            rf"\b(?:i am|i'm|im) (?:just|only|merely|simply|but) an? {_AI}\b{_NO_NOUN}",
            # I am an AI language model
            rf"\b(?:i am|i'm|im) (?:also |actually |still )?an? {_AI}(?:, an? {_AI})?(?<=language model)\b{_NO_NOUN}",
            # I am an AI, so I cannot
            rf"\b(?:i am|i'm|im) (?:also |actually |still )?an? {_AI}(?=[,;]| and\b| so\b| {_MADE}\b| without\b)[^.!?]{{0,120}}?{_DENIES}",
        ),
    )
)

# --- Chinese; normal() has turned ， into a comma and left 。 as it is
_KIND = (
    r"(?:(?:大型|大规模|文本|文字|语言|聊天|智能|虚拟|对话|先进|友好|积极|生成式|预训练|基于文本|纯文本)型?的? ?)*"
    r"(?:ai|人工智能|语言模型|(?:聊天|文本|语言|对话)机器人|智能助[手理])"
    r"(?: ?(?:ai|大|语言|聊天|对话|智能|模型|助手|助理|程序|系统|机器人|工具))*"
)
_CANNOT = r"(?:无法|不能|没有|不会|不具[备有]|并不|并没有|没法|做不到)"
_ONE = r"(?:一?[个名款位台种]| ?)? ?"
_CHINESE = tuple(
    map(
        re.compile,
        (
            # 作为AI，我没有感情；作为人工智能的一个分支 and 作为AI工程师，我 are none
            rf"(?<![你您他她它们])(?:作为|身为){_ONE}{_KIND}(?:本身)? ?"
            rf"(?:,? ?{_CANNOT}|,? ?很?抱歉|(?:(?:[,:;]|如果)[^。!?]{{0,40}}?)?(?<!自)我(?!们|国))",
            rf"(?<=我)(?:作为|身为){_ONE}{_KIND}(?= ?[,是]| ?{_CANNOT})",
            # 我只是一个AI
            rf"我(?:只|仅|仅仅|只不过|不过|毕竟)是{_ONE}{_KIND}(?=[,。.!;、 ]|$|而已|罢了|{_CANNOT})",
            # 我是一个AI语言模型
            rf"我是{_ONE}(?:由[^,。]{{1,20}}的)?{_KIND}(?<=语言模型)(?=[,。.!;、 ]|$|{_CANNOT})",
            # 我是AI，没有感情
            rf"我是{_ONE}(?:由[^,。]{{1,20}}的)?{_KIND}(?=[,; ]|所以|因此|{_CANNOT})[^。!?]{{0,40}}?(?:{_CANNOT}|旨在)",
        ),
    )
)


def speaks_as_model(text: str) -> str | None:
    """The passage in which a text speaks as an AI model, in normal form, at most 80 characters of it; None if it does not."""
    said = normal(_monologue(text))
    bare = _QUOTED.sub(" ", said)
    said = bare if any(map(str.isalpha, bare)) else said
    for pattern in (*_ENGLISH, *_CHINESE):
        found = pattern.search(said)
        if found:
            return found[0][:_MOST].strip()
    return None


def _monologue(text: str) -> str:
    """A text without the lines of a dialogue, if it holds one: two lines or more that name their speaker."""
    lines = text.split("\n")
    spoken = [bool(_SPEAKER.match(line)) for line in lines]
    return "\n".join(line for line, is_spoken in zip(lines, spoken, strict=True) if not is_spoken) if sum(spoken) > 1 else text
