"""Text as the filters see it: tokens, lengths, scripts, language and the normal form in which two texts count as equal.

rouge_score keeps ``[a-z0-9]+`` only: it sees no token in most Chinese instructions, and cuts "poème" in two. The tokens here are the
same on ASCII text; elsewhere they are Unicode words, and single characters for scripts written without spaces between words::

    tokens("Write a Poème: 用3个词!")  ->  write a poème 用 3 个 词
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

TOKENISER = "nfkc-lower-words-1"
"""Name of the rule in :func:`tokens`; an index made by another rule is refused."""

_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
_SPACELESS = (
    _HAN + _KANA + _HANGUL + "\u3105-\u312f\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u104f\u1780-\u17b3"
)  # Thai, Lao, Burmese, Khmer
_TOKEN = re.compile(rf"[{_SPACELESS}]|(?:(?![{_SPACELESS}])[^\W_])+")
_ASCII_TOKEN = re.compile(r"[a-z0-9]+")
_CJK = re.compile(rf"[{_HAN}{_KANA}{_HANGUL}]")
_CJK_OR_WORD = re.compile(rf"[{_HAN}{_KANA}{_HANGUL}]|[^\s{_HAN}{_KANA}{_HANGUL}]+")
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")

WORD_LEFT = rf"(?<![^\W{_HAN}{_KANA}{_HANGUL}])"
WORD_RIGHT = rf"(?![^\W{_HAN}{_KANA}{_HANGUL}])"
"""Pattern edges of a whole word: like ``\\b``, except that a CJK character beside the word also ends it."""

_SCRIPTS = (
    ("han", re.compile(rf"[{_HAN}]")),
    ("kana", re.compile(rf"[{_KANA}]")),
    ("hangul", re.compile(rf"[{_HANGUL}]")),
    ("cyrillic", re.compile("[\u0400-\u052f]")),
    ("arabic", re.compile("[\u0600-\u06ff\u0750-\u077f]")),
    ("devanagari", re.compile("[\u0900-\u097f]")),
    ("thai", re.compile("[\u0e01-\u0e4e]")),
    ("greek", re.compile("[\u0370-\u03ff]")),
    ("hebrew", re.compile("[\u0590-\u05ff]")),
)
_QUOTED = re.compile(r"\"[^\"\n]*\"|(?<!\w)'[^'\n]*'(?!\w)|[“「『《‘][^”」』》’\n]*[”」』》’]|`[^`\n]*`|&#?\w+;")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]+")
# Words that one of these languages uses all the time and the others do not.
_FUNCTION_WORDS = {
    "en": "the and of to is are in that for with this what how your write give you it on from be as by which following",
    "fr": "le la les des une est et du dans que pour avec vous sur qui ce cette aux votre quelle écrivez",
    "de": "der die das und ist nicht ein eine mit für von den dem zu auf wie werden sie sich wurde",
    "es": "el los las una y en que por para con del es como su cuál qué escribe más sobre",
    "pt": "os um uma e em que não para com do da dos das é como sua qual escreva mais",
    "it": "il gli della di che è per con una sono nel come più scrivi quale le degli",
    "nl": "de het een van en is op voor met niet dat zijn wat hoe naar schrijf",
}
_VOTES: dict[str, tuple[str, ...]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _VOTES[_word] = (*_VOTES.get(_word, ()), _language)

LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "es", "pt", "it", "nl", "ru", "ar", "hi", "th", "el", "he")
"""What :func:`language` can answer, besides ``und`` for undecided. ``ru`` and ``ar`` stand for their whole scripts."""
_OF_SCRIPT = {
    "kana": "ja",
    "hangul": "ko",
    "cyrillic": "ru",
    "arabic": "ar",
    "devanagari": "hi",
    "thai": "th",
    "greek": "el",
    "hebrew": "he",
}


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


def language(text: str) -> str:
    """The language of a text, as an ISO 639-1 code of :data:`LANGUAGES`, or ``und`` where the text does not tell.

    By script first, a run of Latin letters against a character of another script; Han without kana is ``zh``. Latin text is told apart by
    function words; ``und`` if none occurs or two languages tie. What stands in quotes does not count, unless all of it does. No model,
    no download.
    """
    bare = _QUOTED.sub(" ", text)
    text = bare if any(map(str.isalpha, bare)) else text
    votes: Counter[str] = Counter()
    words = [word.lower() for word in _LATIN.findall(text)]
    if not text.isascii():
        counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS}
        total = sum(counts.values())
        if total and total >= len(words):
            if counts["kana"] and counts["kana"] * 10 >= counts["han"]:
                return "ja"
            top = max(counts, key=lambda name: counts[name])
            return _OF_SCRIPT.get(top, "zh")
    for word in words:
        for code in _VOTES.get(word, ()):
            votes[code] += 1
    best = votes.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        return "und"
    return best[0][0]
