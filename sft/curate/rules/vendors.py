"""Names of other assistants and of their makers: a model that is trained on their answers would take their name.

::

    "I'm ChatGPT, made by OpenAI."    ->  "I'm Ada, made by the Lab."
    "import openai"                   ->  the same: code, addresses and e-mail addresses are left alone
    "Claude Monet was a painter."     ->  the same: Claude counts only where somebody says who the assistant is

What ``replace`` cannot do: it writes names, it does not understand what is said of them. A question and its denial are rewritten alike::

    "Are you ChatGPT?"  "No, I am Vicuna, trained by LMSYS."    ->  "Are you Ada?"  "No, I am Ada, trained by the Lab."
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pydantic
from pydantic import Field

from sft.config import KeyedError
from sft.curate.chat import Chat, Message
from sft.curate.rules.base import ASSISTANT, Role, RuleBase, no_blanks, place, read_list, refuse, shown
from sft.curate.rules.prose import prose
from sft.data.conversation import Drop
from sft.text.tokens import is_cjk

_LEFT = r"(?<![a-z0-9_@.\\$#&])"
_RIGHT = r"(?![a-z0-9_@\\]|[.:][a-z0-9_])"
"""Edges of a name: no part of a word, an identifier, a file name or an e-mail address. A CJK character beside it ends it.

Beside a hyphen or a slash a name in small letters is a package (``openai-python``), another one is a word (``ChatGPT-like``)."""

_JOINTS = ("-", "/")
# Sentences that say who the assistant is: in its own words, and in those of a user or a system message.
_I = re.compile(
    r"\b(?:i am|i['’]m|im|i was|i have been|i['’]ve been|my name is|my name['’]s|call me|i go by|i am called|"
    r"my (?:creators?|developers?|makers?|training))\b|\bas an? (?:[\w-]+ ){0,4}?(?:ai|language model|assistant|chatbot|model)\b|"
    r"我(?:是|叫|的名字|就是|由|来自|的开发|的训练|只是|并不是|不是)|作为",
    re.I,
)
_YOU = re.compile(
    r"\b(?:are you|you are|you['’]re|aren['’]t you|were you|who (?:made|created|trained|developed|built) you|act as|pretend (?:to be|you)|"
    r"hi|hello|hey|dear)\b|你(?:是|叫|就是|好|由|不是)|您是",
    re.I,
)
# What stands directly before an ambiguous name, where it is the assistant's.
_NAMED = (
    r"(?:\b(?:i am|i['’]m|im|my name is|my name['’]s|call me|i go by|i go by the name(?: of)?|known as|called|named|are you|you are|you['’]re|"
    r"as|hi|hello|hey|dear|act as)|我是|我叫|名字是|名字叫|就是|你是|你叫|你好|作为)[ ,，]*(?:really |just |actually |the |一个|叫)?[\"“「*]*"
)
_MADE = (
    r"(?:\b(?:trained|developed|created|made|built|designed|programmed|owned|powered|launched|fine-?tuned)(?: and \w+)? (?:by|at) "
    r"(?:the |a )?(?:[\w-]+ ){0,4}?|由|来自)[\"“「*]*"
)
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:\.(?=\w)[^.!?。！？\n]+)*[.!?。！？]*|\n")


class VendorNamesRule(RuleBase):
    """``vendor_name``: a conversation that names another assistant or its maker.

    The names are in ``sft/curate/lists/vendors.txt``. Ambiguous ones (Claude, Gemini, Google) count only where somebody says who the
    assistant is. Code, addresses, identifiers and file names are left alone unless ``code`` says otherwise.
    """

    kind: Literal["vendor_names"] = "vendor_names"
    action: Literal["drop_chat", "drop_round", "replace"] = "drop_chat"
    """Leave the conversation out, take out the exchange, or write ``name`` and ``organisation`` in their place."""
    scope: Literal["anywhere", "itself"] = "anywhere"
    """Names anywhere, or only in sentences that say who the assistant is. With ``replace`` the latter keeps facts about others true."""
    roles: tuple[Role, ...] = Field(default=("system", "user", "assistant"), min_length=1)
    """Whose turns are searched."""
    code: bool = False
    """Search code and addresses too, as the original does."""
    name: str | None = None
    """What the assistant is called, for ``replace``."""
    organisation: str | None = None
    """Who made it, for ``replace``."""
    also_names: tuple[str, ...] = ()
    """Further names of assistants, searched anywhere."""
    also_organisations: tuple[str, ...] = ()
    """Further names of makers, searched anywhere."""
    allowed: tuple[str, ...] = ()
    """Names of the list that may stay."""

    @pydantic.model_validator(mode="after")
    def _complete(self) -> VendorNamesRule:
        no_blanks("also_names", self.also_names)
        no_blanks("also_organisations", self.also_organisations)
        if self.action != "replace":
            return self
        for key in ("name", "organisation"):
            value = getattr(self, key)
            if value is None or not value.strip():
                raise KeyedError(key, f"is required by 'action: replace'; say what stands in place of another's {key}")
            names = _names(self.also_names, self.also_organisations, self.allowed)
            if found := next((known for known in names.every if _overlaps(value, known)), None):
                raise KeyedError(
                    key, f"{value!r} shares text with {found!r}, which is replaced; add it to 'allowed' or take another"
                )
        return self

    def apply(self, chat: Chat) -> Chat | Drop:
        names = _names(self.also_names, self.also_organisations, self.allowed)
        if self.action == "replace":
            made = tuple(Message(m.role, self._replaced(m, names)) if m.role in self.roles else m for m in chat.messages)
            return chat.with_messages(made)
        return refuse(chat, self.action, lambda chat, at: self._judged(chat, at, names))

    def _judged(self, chat: Chat, at: int, names: _Names) -> tuple[str, str] | None:
        message = chat.messages[at]
        found = next(self._found(message.role, message.text, names), None) if message.role in self.roles else None
        return None if found is None else ("vendor_name", f"{place(chat, at)} names {shown(found.said)}")

    def _found(self, role: str, text: str, names: _Names) -> Iterator[_Found]:
        """Names in a text, in order, none inside another."""
        lowered = text.lower()
        if not any(map(lowered.__contains__, names.pieces if text.isascii() else names.all_pieces)):
            return
        itself = _I if role == ASSISTANT else _YOU
        bare = text if self.code else prose(text)
        found = list(_all(names.plain, bare, 0)) if self.scope == "anywhere" else []
        for sentence in _SENTENCE.finditer(bare):
            if itself.search(sentence[0]):
                found += _all(names.of_itself, sentence[0], sentence.start())
                found += _all(names.plain, sentence[0], sentence.start()) if self.scope == "itself" else []
        end = 0
        for one in sorted(found, key=lambda one: (one.start, -one.end)):
            if one.start >= end:
                yield one
                end = one.end

    def _replaced(self, message: Message, names: _Names) -> str:
        """Again until no name is left, since what is put in may complete another one. It holds none itself, so this ends."""
        text = message.text
        while found := list(self._found(message.role, text, names)):
            parts, end, before = [], 0, None
            for one in found:
                between, behind = text[end : one.start].strip(), text[one.end : one.end + 1]
                if before is not None and before.of_assistant == one.of_assistant and between + behind in ("()", "（）"):
                    end, before = one.end + 1, None  # a short form in brackets behind the long one
                    continue
                parts += [text[end : one.start], str(self.name if one.of_assistant else self.organisation)]
                end, before = one.end, one
            text = "".join(parts) + text[end:]
        return text


@dataclass(frozen=True, slots=True)
class _Found:
    """A name in a text: from where to where, and whether it is an assistant's (else a maker's)."""

    start: int
    end: int
    of_assistant: bool
    said: str


def _all(pattern: re.Pattern[str], text: str, offset: int) -> Iterator[_Found]:
    for one in pattern.finditer(text):
        group = one.lastgroup
        assert group is not None
        start, end = one.span(group)
        if one[group].islower() and (
            text[start - 1 : start] in _JOINTS or (text[end : end + 1] in _JOINTS and text[end + 1 : end + 2].isalnum())
        ):
            continue
        yield _Found(offset + start, offset + end, group == "name", one[group])


@dataclass(frozen=True, slots=True)
class _Names:
    """Compiled lists.

    Attributes:
        every: all names as written.
        pieces: lower-case texts one of which stands in every ASCII text with a name.
        all_pieces: the same for any text.
        plain: unmistakable names; the group that matched is ``name`` or ``organisation``.
        of_itself: ambiguous names behind words that make them the assistant's or its maker's.
    """

    every: tuple[str, ...]
    pieces: tuple[str, ...]
    all_pieces: tuple[str, ...]
    plain: re.Pattern[str]
    of_itself: re.Pattern[str]


@lru_cache(maxsize=8)
def _names(names: tuple[str, ...], organisations: tuple[str, ...], allowed: tuple[str, ...]) -> _Names:
    listed = read_list("vendors")
    left_out = {name.casefold() for name in allowed}

    def kept(section: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
        return tuple(name for name in (*listed[section], *more) if name.casefold() not in left_out)

    plain_names, plain_makers = kept("name", names), kept("organisation", organisations)
    own_names, own_makers = kept("name of itself"), kept("organisation of itself")
    every = (*plain_names, *plain_makers, *own_names, *own_makers)
    return _Names(
        every,
        tuple(piece for piece in _pieces(every) if piece.isascii()),
        _pieces(every),
        re.compile(f"(?P<name>{_one_of(plain_names)})|(?P<organisation>{_one_of(plain_makers)})", re.I),
        re.compile(f"{_NAMED}(?P<name>{_one_of(own_names)})|{_MADE}(?P<organisation>{_one_of(own_makers)})", re.I),
    )


def _pieces(names: Iterable[str]) -> tuple[str, ...]:
    """What a text must hold, in lower case, to hold a name: few and short ones, since each is looked for in every text."""
    parted = [re.split(r"[ -]", name.lower()) for name in names]
    found = {parts[0] for parts in parted if len(parts) == 1}
    for parts in parted:
        if not any(piece in part for piece in found for part in parts):
            # of a name of three words the longest: they may be joined in many ways
            found |= {max(parts, key=len)} if len(parts) > 2 else {joint.join(parts) for joint in ("", " ", "-")}
    return tuple(sorted(piece for piece in found if not any(other != piece and other in piece for other in found)))


def _one_of(names: Iterable[str]) -> str:
    """A pattern for any of some names, the longest first; nothing where there are none."""
    made = [r"[ -]?".join(map(re.escape, re.split(r"[ -]", name))) for name in sorted(names, key=len, reverse=True)]
    latin = "|".join(one for one in made if not is_cjk(one))
    cjk = "|".join(one for one in made if is_cjk(one))
    return "|".join([*([f"{_LEFT}(?:{latin}){_RIGHT}"] if latin else []), *([cjk] if cjk else [])]) or "(?!)"


def _overlaps(one: str, other: str) -> bool:
    one, other = one.casefold(), other.casefold()
    return one in other or other in one
