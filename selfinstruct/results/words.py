"""What an instruction asks for: its root verb and the noun that the verb takes, without any model; here in English.

The figure of the Self-Instruct paper shows both, from a constituency parser. Here word lists and the order of words do it:

    "Please write a short, funny poem about rain."      ->  write, poem
    "Given the table, list three facts."                ->  list, fact
    "How do magnets work?"                              ->  None, a question has no root verb in this sense

The first verb of :data:`VERBS` that opens a main clause, then the head of the noun phrase behind it. Chinese instructions are read by
:mod:`selfinstruct.results.words_zh`. tests/selfinstruct/test_words.py states how often both agree with a reader.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Root(NamedTuple):
    """A verb in its base form and the head noun of its object, in the singular; ``noun`` is empty where there is none."""

    verb: str
    noun: str


def word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


VERBS = word_set(
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
_SKIP = word_set(
    """
    please kindly now then next first finally also just simply briefly carefully concisely clearly politely and could
    can would will you i want need like to me us for help let's
    """
)
_QUESTION = word_set(
    """
    what why how when where who whom whose which is are was were does did has have should may might must do can could
    would will if
    """
)
_OPENERS = word_set(
    """
    given using based in with from for by on as when if after before without considering imagine assuming suppose
    pretend under at within following consulting
    """
)
_DETERMINERS = word_set(
    """
    a an the this that these those my your his her its our their some any each every all both no another such several
    many few more most other own one two three four five six seven eight nine ten eleven twelve twenty whichever me us
    him them it following given above below provided entire whole same exactly about only up out at least around roughly
    """
)
_ADJECTIVES = word_set(
    """
    ancient bad basic best better big blunt brief clear cold common complete concise correct creative detailed different
    dry easy everyday fair famous final firm first fitting formal free friendly full funny good great hard heavy
    imaginary important informal interesting kind large last likely local long main missing modern negative new next old
    ordinary original plain polite popular positive possible quiet random real right safe second short similar simple
    small strong suitable sunny third unique vivid warm weak wrong young
    """
)
_ENDS = word_set(
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
