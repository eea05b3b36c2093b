"""Text as the filters see it: tokens, lengths, scripts and the normal form in which two texts count as equal.

rouge_score keeps ``[a-z0-9]+`` only: it sees no token in most Chinese instructions, and cuts "poème" in two. The tokens here are the
same on ASCII text; elsewhere they are Unicode words, and single characters for scripts written without spaces between words::

    tokens("Write a Poème: 用3个词!")  ->  write a poème 用 3 个 词
"""

from __future__ import annotations

import re
import unicodedata

TOKENISER = "nfkc-lower-words-1"
"""Name of the rule in :func:`tokens`; an index made by another rule is refused."""

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
_SPACELESS = (
    HAN + KANA + HANGUL + "\u3105-\u312f\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u104f\u1780-\u17b3"
)  # Thai, Lao, Burmese, Khmer
_TOKEN = re.compile(rf"[{_SPACELESS}]|(?:(?![{_SPACELESS}])[^\W_])+")
_ASCII_TOKEN = re.compile(r"[a-z0-9]+")
_CJK = re.compile(rf"[{HAN}{KANA}{HANGUL}]")
_CJK_OR_WORD = re.compile(rf"[{HAN}{KANA}{HANGUL}]|[^\s{HAN}{KANA}{HANGUL}]+")
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")

WORD_LEFT = rf"(?<![^\W{HAN}{KANA}{HANGUL}])"
WORD_RIGHT = rf"(?![^\W{HAN}{KANA}{HANGUL}])"
"""Pattern edges of a whole word: like ``\\b``, except that a CJK character beside the word also ends it."""


def tokens(text: str) -> list[str]:
    """Tokens for overlap measures: characters of scripts without spaces singly, else lower-case Unicode words.

    On ASCII text these are rouge_score's tokens (without stemming). Other text is folded by NFKC first, so that full-width and
    composed forms equal the plain ones. Text of symbols only has no tokens.
    """
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def normal(text: str) -> str:
    """The form in which two texts count as the same: NFKC, straight quotes, case folded, white space collapsed, ends stripped."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return " ".join(text.casefold().split())


def is_cjk(text: str) -> bool:
    """Whether a text is mostly Chinese, Japanese or Korean: at least as many such characters as words between spaces of other scripts."""
    if text.isascii():
        return False
    cjk = len(_CJK.findall(text))
    return cjk > 0 and 2 * cjk >= len(_CJK_OR_WORD.findall(text))


def length(text: str) -> tuple[int, str]:
    """How long a text is, and the unit: ``words`` between white space, or ``characters`` if it is mostly CJK.

    In a CJK text every CJK character counts as one, and so does every run of other characters without a space.
    """
    if is_cjk(text):
        return len(_CJK_OR_WORD.findall(text)), "characters"
    return len(text.split()), "words"
