"""Personal data and secrets, masked where their form proves them: checksums, prefixes, separators.

::

    "Mail bob@corp.cn or call 13812345678."    ->  "Mail [EMAIL] or call [PHONE]."
    "version 1.2.3.4, ISBN 9787302511625"      ->  the same: no address, no card

Names and street addresses are not found: they have no form. What is found is masked, and the rule says how often.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from sft.curate.chat import Chat
from sft.curate.rules.base import Role, RuleBase, of_roles
from sft.curate.rules.prose import prose

Kind = Literal["email", "phone", "id", "card", "key", "ip"]


class PiiRule(RuleBase):
    """Masks e-mail addresses, phone numbers, identity and card numbers, keys and tokens, and public IPv4 addresses.

    It drops nothing. Keys are masked everywhere, in code and in addresses too; the others in prose only, unless ``code`` says otherwise.
    """

    kind: Literal["pii"] = "pii"
    mask: tuple[Kind, ...] = Field(default=("email", "phone", "id", "card", "key", "ip"), min_length=1)
    """What is masked: ``email``, ``phone`` (international, American, Chinese), ``id`` (Chinese with its check digit, American social
    security), ``card`` (known issuers, Luhn), ``key`` (keys of well-known services, private keys, signed tokens), ``ip``."""
    code: bool = False
    """Mask in code and web addresses too. A number in code is mostly no phone number."""
    roles: tuple[Role, ...] = Field(default=("system", "user", "assistant"), min_length=1)
    """Whose turns are masked."""

    def apply(self, chat: Chat) -> Chat:
        return of_roles(self.roles, self._masked, chat)

    def _masked(self, text: str) -> str:
        """Again until nothing is found: what is masked may have hidden its neighbour. A mask holds nothing that is masked, so this ends."""
        before = None
        while before != text:
            before, bare = text, None
            for form in FORMS:
                if form.kind not in self.mask or not form.hinted(text):
                    continue
                if not self.code and form.kind != "key":
                    bare = prose(text) if bare is None else bare
                masked = form.masked(text, text if self.code or form.kind == "key" or bare is None else bare)
                bare = bare if masked == text else None
                text = masked
        return text


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of data with a form.

    Attributes:
        kind: what a recipe calls it; the mask is ``[KIND]``.
        hint: a pattern, or pieces of text, that every text with one holds; quickly looked for.
        pattern: finds candidates.
        sound: whether a candidate is one.
    """

    kind: Kind
    hint: re.Pattern[str] | tuple[str, ...]
    pattern: re.Pattern[str]
    sound: Callable[[re.Match[str]], bool]

    def hinted(self, text: str) -> bool:
        """Whether it is worth looking closely."""
        return any(piece in text for piece in self.hint) if isinstance(self.hint, tuple) else bool(self.hint.search(text))

    def masked(self, text: str, searched: str) -> str:
        """The text with a mask in place of each that stands in ``searched``, the same text with some of it blanked out."""
        parts, end = [], 0
        for found in self.pattern.finditer(searched):
            if self.sound(found):
                parts += [text[end : found.start()], f"[{self.kind.upper()}]"]
                end = found.end()
        return "".join(parts) + text[end:] if parts else text


# --- keys: a prefix that only they have, and enough of a random text behind it
_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:sk-(?:proj-|ant-[a-z0-9]+-|or-v1-|live-|test-)?[A-Za-z0-9_-]{20,}|"
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}|"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{40,}|xox[abeoprs]-[A-Za-z0-9-]{20,}|hf_[A-Za-z0-9]{30,}|"
    r"npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{50,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{30,}|LTAI[A-Za-z0-9]{12,20}|"
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})(?![A-Za-z0-9_-])|"
    r"(?P<block>-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----.{40,8000}?-----END (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----))",
    re.S,
)


def _is_key(found: re.Match[str]) -> bool:
    """No placeholder: a real one mixes digits and letters and repeats few of them (``sk-xxxxxxxx``, ``sk-your-api-key-here``)."""
    if found["block"]:
        return True
    body = found[0]
    return sum(map(str.isdigit, body[3:])) >= 2 and sum(map(str.isalpha, body[3:])) >= 4 and len(set(body)) >= 10


# --- e-mail
_EMAIL = re.compile(
    r"(?<![\w.+%-])(?:[A-Za-z0-9](?:[\w.+%-]{0,62}[A-Za-z0-9_+-])?@(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}))"
    r"(?![\w@-]|\.\w|[(:/]\w)",
    re.ASCII,
)
_RESERVED = re.compile(
    r"(?:.*\.)?(?:example(?:\.(?:com|org|net|edu|cn))?|test|invalid|localhost|(?:your|my)-?(?:company|domain|email|site|website)\.com|"
    r"(?:company|domain)\.com)",
    re.I,
)


def _is_email(found: re.Match[str]) -> bool:
    """None of those that documentation uses, and no ``file@2x.png``."""
    domain = found["domain"].casefold()
    return not _RESERVED.fullmatch(domain) and not domain.endswith(
        (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".js", ".css")
    )


# --- IPv4
_IP = re.compile(r"(?<![\w.:/-])(?<!\d,)(?:(?:\d{1,3}\.){3}\d{1,3})(?![\w/-]|\.\d|,\d)", re.ASCII)
_VERSION = re.compile(
    r"(?:\b(?:v|ver|versions?|release|build|section|chapter|firmware|driver|clause|rev|update|from|to)\.?|版本号?|固件|第)[ :：=]*$",
    re.I,
)
_RESOLVERS = frozenset(
    {"1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9", "114.114.114.114", "223.5.5.5", "223.6.6.6", "119.29.29.29"}
)


def _is_ip(found: re.Match[str]) -> bool:
    """A public address with no small first part, as versions have it, and none that everybody knows."""
    said = found[0]
    try:
        address = ipaddress.IPv4Address(said)
    except ValueError:
        return False
    before = found.string[max(0, found.start() - 16) : found.start()]
    small = all(int(part) < 20 for part in said.split("."))
    return address.is_global and not small and said not in _RESOLVERS and not _VERSION.search(before)


# --- identity numbers
_ID = re.compile(
    r"(?<![\w.-])(?:(?P<cn>[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx])|"
    r"(?P<us>(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}))(?![\w-]|\.\d)",
    re.ASCII,
)
_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _is_id(found: re.Match[str]) -> bool:
    """Chinese: a real date of birth and the check digit of GB 11643. American: its separators and ranges."""
    said = found["cn"]
    if not said:
        return found["us"] not in ("123-45-6789", "078-05-1120", "219-09-9999")
    try:
        datetime.date(int(said[6:10]), int(said[10:12]), int(said[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(said[:17], _WEIGHTS, strict=True))
    return "10X98765432"[total % 11] == said[17].upper()


# --- cards
_CARD = re.compile(
    r"(?<![\w.-])(?:(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|62\d{2}|6011|65\d{2}|35\d{2})(?P<gap>[ -]?)\d{4}(?P=gap)\d{4}(?P=gap)\d{4}"
    r"(?:(?P=gap)\d{3})?|3[47]\d{2}(?P<gap2>[ -]?)\d{6}(?P=gap2)\d{5})(?![\w-]|\.\d)",
    re.ASCII,
)


def _is_card(found: re.Match[str]) -> bool:
    digits = [int(character) for character in found[0] if character.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) if place % 2 else digit for place, digit in enumerate(reversed(digits)))
    return sum(doubled) % 10 == 0 and len(set(digits)) > 2


# --- phones
_PHONE = re.compile(
    r"(?<![\w.+@#$€£¥=/-])(?:"
    r"(?:(?:\+|00)86[ -]?)?1[3-9]\d(?P<gap>[ -]?)\d{4}(?P=gap)\d{4}|"  # Chinese mobile
    r"(?:\(0\d{2,3}\) ?|0\d{2,3}[- ])\d{7,8}|"  # Chinese landline
    r"\+(?!0)\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}\d|"  # international
    r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}(?P<us>[ .-]))[2-9]\d{2}(?:(?P=us)|(?<=\) \d{3})[ .-]|(?<=\)\d{3})[ .-])\d{4}"  # American
    r")(?![\w@%]|[.-]\d|-\w|,\d{3})",
    re.ASCII,
)
_TOLL_FREE = re.compile(r"(?:\+?1[ .-]?)?\(?8(?:00|33|44|55|66|77|88)\)?[ .-]")  # hotlines are nobody's own
_NO_PHONE = re.compile(
    r"(?:\bISBN(?:-1[03])?|\bISSN|\bDOI|\bPMID|\barXiv|\bRFC|\bNo\.?|\bid|\border|订单号?|编号|书号|单号|流水号)[ :：#=]*$",
    re.I,
)


def _is_phone(found: re.Match[str]) -> bool:
    """Seven to fifteen digits, not all alike, and not behind words that say what the number is instead."""
    said = found[0]
    digits = [character for character in said if character.isdigit()]
    before = found.string[max(0, found.start() - 16) : found.start()]
    fits = 10 <= len(digits) <= 15 if not said.startswith("+") else 8 <= len(digits) <= 15
    return fits and len(set(digits[-8:])) > 2 and not _TOLL_FREE.match(said) and not _NO_PHONE.search(before)


_KEY_PIECES = (
    *(
        "sk-",
        "sk_",
        "rk_",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        "glpat-",
        "AKIA",
        "ASIA",
        "AIza",
        "ya29.",
        "xox",
        "hf_",
        "npm_",
    ),
    *("pypi-", "SG.", "LTAI", "eyJ", "PRIVATE KEY"),
)
FORMS: Final = (
    Form("key", _KEY_PIECES, _KEY, _is_key),
    Form("email", ("@",), _EMAIL, _is_email),
    Form("ip", re.compile(r"\d\.\d{1,3}\.\d"), _IP, _is_ip),
    Form("id", re.compile(r"\d\d\d(?:\d{14}|-\d\d-)"), _ID, _is_id),
    Form("card", re.compile(r"\d{4}[ -]?\d{4}"), _CARD, _is_card),
    Form("phone", re.compile(r"\d[\d. ()-]{6,}\d"), _PHONE, _is_phone),
)
"""In the order in which they are masked: what has the stricter form first."""
