"""HTML to Markdown at speed and without loss: our rule, the original cleaner and four converters, over a dump and the golden cases.

``python benchmarks/clean_html.py DUMP.json [--sample 1000] [--check-every 10]``; ``DUMP.json`` is of ``sharegpt_dump.py``, with its truth
beside it. ``pip install -c constraints.txt -e '.[bench]'`` brings the converters; one that is missing has no row.

The original is the cleaner of FastChat by its description, written anew: opening tags of div and span are cut out, markdownify converts
every message, of people too, and the bars above code, a leading pager and the counter are mended by regular expressions. It was
published with markdownify 0.11.6: ``pip install --target OLD markdownify==0.11.6``, then ``PYTHONPATH=OLD python ...`` measures that one.
It makes one line break of three, so it needs pages without line breaks between their blocks (``--compact``) to keep paragraphs apart.

The converters get all that is ShareGPT's own done for them: the bar above code rewritten to ``<pre><code class="language-x">``, buttons,
pagers and counters cut out, formulas replaced by a word and put back as TeX behind them; and their best settings. Speed is bytes
of HTML per second of CPU in one process, all of them in turn over the same rows. Round trip: the Markdown renders as the source
does, up to white space. Golden cases: renders as the expected Markdown does.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from html import unescape
from importlib import import_module, metadata
from itertools import islice
from pathlib import Path

from sharegpt_page import code_blocks, compact, either, normal

from sft.curate.chat import ASSISTANT, Chat, Message, read_chat
from sft.curate.html.reader import to_markdown
from sft.curate.rules.html import HtmlRule
from sft.data.jsonl import read_rows

Convert = Callable[[str], str]
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "html"
RULE = HtmlRule()

_OPENING = re.compile(r"<(?:div|span).*?>")
_FENCE_WITH_BAR = re.compile(r"```\s*([^`]*?)(?:Copy code)+(.+?)\s*```", re.DOTALL)
_EMPTY_BAR = re.compile(r"```[^`]*?Copy code\s*```")
_BAR = re.compile(
    r'<pre><div class="bg-black[^>]*><div[^>]*><span[^>]*>(.*?)</span><button[^>]*>.*?</button></div><div[^>]*><code[^>]*>(.*?)</code>'
    r"</div></div></pre>",
    re.DOTALL,
)
_FORMULA = re.compile(
    r'<(?P<tag>div|span) class="math math-\w+">(?:(?!<annotation).)*<annotation[^>]*>(?P<tex>[^<]*)</annotation>.*?(?:</span>){5,}'
    r"(?:</div>)?",
    re.DOTALL,
)
_WORD = re.compile(r"(?P<before>^.*?|)formulaZ(?P<number>\d+)Z", re.MULTILINE)
_AROUND = re.compile(
    r'^\d+ / \d+(?=<div)|<div class="text-xs flex.*?</div>|<div class="flex items-center text-xs">.*?</div>|<div class="text-gray-400.*?</div>',
    re.DOTALL,
)
_TAG = re.compile(r"<[^>]*>")
_ESCAPE = re.compile(r"\\[_*]")


def original(markdownify: Convert) -> Convert:
    """The original's way with a message."""

    def convert(text: str) -> str:
        text = markdownify(_OPENING.sub("", text))
        text = _FENCE_WITH_BAR.sub(lambda m: f"```{m[1].strip()}\n{m[2]}\n```", text)
        text = re.sub(r"Copy\d+ chars / \d+ words", "", re.sub(r"^\s*\d+ / \d+", "", text))
        return _EMPTY_BAR.sub("", text).replace("\n\n\n", "\n").strip()

    return convert


def with_specifics(convert: Convert) -> Convert:
    """A converter with what is ShareGPT's own done before and behind it."""

    def plain(m: re.Match[str]) -> str:
        language = f' class="language-{m[1]}"' if m[1] else ""
        return f"<pre><code{language}>{_TAG.sub('', m[2])}</code></pre>"

    def whole(html: str) -> str:
        formulas: list[str] = []

        def word(m: re.Match[str]) -> str:
            display = m[0].startswith("<div")
            tex = unescape(m["tex"])
            formulas.append(f"$$\n{tex}\n$$" if display else f"${tex}$")
            name = f"formulaZ{len(formulas) - 1}Z"
            return f"<p>{name}</p>" if display else name

        def back(m: re.Match[str]) -> str:
            pad = " " * len(m["before"]) if m["before"].strip(" -*+.)0123456789") == "" else ""
            return m["before"] + formulas[int(m["number"])].replace("\n", f"\n{pad}")

        html = _FORMULA.sub(word, _AROUND.sub("", _BAR.sub(plain, html)))
        text = convert(html)
        for _ in range(len(formulas)):
            text = _WORD.sub(back, text)
        return text

    return whole


def converters() -> dict[str, Convert]:
    """All that are installed, by name and version; ours and the original first."""
    found: dict[str, Convert] = {"ours": to_markdown}

    def add(name: str, make: Callable[[], Convert]) -> None:
        try:
            found[f"{name} {metadata.version(name.split()[-1])}"] = make()
        except ImportError:
            print(f"({name} is not installed)")

    add("original, with markdownify", lambda: original(import_module("markdownify").markdownify))
    add("html-to-markdown", _html_to_markdown)
    add("htmd-py", lambda: import_module("htmd").convert_html)
    add("markdownify", _markdownify)
    add("html2text", _html2text)
    bare = {"ours", next((name for name in found if name.startswith("original")), "")}
    return {name: c if name in bare else with_specifics(c) for name, c in found.items()}


def _html_to_markdown() -> Convert:
    library = import_module("html_to_markdown")
    options = library.ConversionOptions(
        extract_metadata=False,
        compact_tables=True,
        hidden_content="all",
        br_in_tables=True,
        preprocessing=library.PreprocessingOptions(enabled=False),
    )
    return lambda html: library.convert(html, options).content or ""


def _markdownify() -> Convert:
    library = import_module("markdownify")

    def language(element: object) -> str:
        code = getattr(element, "code", None)
        return ((code.get("class") or [""])[0] if code else "").removeprefix("language-")

    settings = {
        "heading_style": "ATX",
        "escape_underscores": False,
        "escape_asterisks": False,
        "code_language_callback": language,
    }
    return lambda html: library.markdownify(html, **settings)


def _html2text() -> Convert:
    library = import_module("html2text")

    def convert(html: str) -> str:
        reader = library.HTML2Text(bodywidth=0)
        reader.backquote_code_style = True
        return reader.handle(html)

    return convert


def chats_of(dump: Path) -> Iterator[tuple[Chat, list[str]]]:
    """Conversations of a dump with the Markdown of their answers."""
    with dump.with_suffix(".truth.jsonl").open(encoding="utf-8") as truth:
        for raw, told in zip(read_rows(dump), truth, strict=True):
            chat, answers = read_chat(raw.value, raw.where), json.loads(told)
            assert chat.id == answers["id"], f"{chat.id}: the truth is of another dump"
            yield chat, answers["answers"]


def compacted(message: Message) -> Message:
    return Message(message.role, compact(message.text)) if message.role == ASSISTANT else message


def size(chat: Chat) -> int:
    return sum(len(message.text.encode()) for message in chat.messages)


def answers_of(chat: Chat) -> list[str]:
    return [message.text for message in chat.messages if message.role == ASSISTANT]


class Score:
    """What was counted of one converter."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.bytes = 0

    def add(self, markdown: str, truth: str, rendered: str, blocks: list[tuple[str, str]]) -> bool:
        """Compare one answer; whether it came back whole."""
        made = normal(markdown)
        own = Counter(code_blocks(markdown))
        exact = sum((Counter(blocks) & own).values())
        ended = [Counter((language, code.rstrip("\n")) for language, code in found) for found in (blocks, own.elements())]
        self.counts += Counter(
            answers=1,
            whole=made == rendered,
            either=either(made) == either(rendered),
            text=_TAG.sub(" ", made).split() == _TAG.sub(" ", rendered).split(),
            escaped=len(_ESCAPE.findall(markdown)) > len(_ESCAPE.findall(truth)),
            blocks=len(blocks),
            exact=exact,
            alike=sum((ended[0] & ended[1]).values()),
        )
        return made == rendered and exact == len(blocks)

    def share(self, part: str, whole: str) -> str:
        return f"{self.counts[part] / max(1, self.counts[whole]):.2%}"


def compare(rows: list[tuple[Chat, list[str]]], found: dict[str, Convert]) -> dict[str, Score]:
    """Speed and fidelity of every converter over the answers of some rows, in turn over chunks of them."""
    scores = {name: Score() for name in found}
    for start in range(0, len(rows), 50):
        chunk = [
            (html, truth) for chat, told in rows[start : start + 50] for html, truth in zip(answers_of(chat), told, strict=True)
        ]
        weight = sum(len(html.encode()) for html, _ in chunk)
        known = [(truth, normal(truth), code_blocks(truth)) for _, truth in chunk]
        for name, convert in found.items():
            began = time.process_time()
            made = [convert(html) for html, _ in chunk]
            scores[name].seconds += time.process_time() - began
            scores[name].bytes += weight
            for markdown, (truth, rendered, blocks) in zip(made, known, strict=True):
                scores[name].add(markdown, truth, rendered, blocks)
    return scores


def golden(convert: Convert) -> tuple[int, int]:
    """Golden cases that render as they should, of those that are HTML."""
    right = total = 0
    for file in sorted(GOLDEN.glob("*.txt")):
        if not file.stem.startswith(("kept_", "user_")):
            html, expected = file.read_text(encoding="utf-8").split("\n----\n", 1)
            total += 1
            right += normal(convert(html)) == normal(expected)
    return right, total


def whole_messages(rows: list[tuple[Chat, list[str]]], clean: Convert | None) -> tuple[float, float, int]:
    """Our rule against the original, each as it treats whole conversations: MB/s of both, and questions that the original changed."""
    ours = theirs = 0.0
    weight = changed = 0
    for start in range(0, len(rows), 50):
        chunk = [chat for chat, _ in rows[start : start + 50]]
        weight += sum(map(size, chunk))
        began = time.process_time()
        for chat in chunk:
            RULE.apply(chat)
        middle = time.process_time()
        made = [[clean(message.text) for message in chat.messages] for chat in chunk] if clean else []
        theirs += time.process_time() - middle
        ours += middle - began
        for chat, texts in zip(chunk, made, strict=False):
            pairs = zip(chat.messages, texts, strict=True)
            changed += sum(message.role != ASSISTANT and message.text.strip() != text for message, text in pairs)
    return weight / ours / 1e6, weight / theirs / 1e6 if clean else 0.0, changed


def whole_dump(dump: Path, every: int) -> None:
    """Our rule over every row; the truth compared in every so many-th."""
    score, failures = Score(), defaultdict[str, list[str]](list)
    conversations = changed = kept = 0
    for chat, told in chats_of(dump):
        began = time.process_time()
        cleaned = RULE.apply(chat)
        score.seconds += time.process_time() - began
        score.bytes += size(chat)
        conversations += 1
        changed += sum(a.text != b.text for a, b in zip(chat.messages, cleaned.messages, strict=True) if a.role == ASSISTANT)
        kept += sum(a.text != b.text for a, b in zip(chat.messages, cleaned.messages, strict=True) if a.role != ASSISTANT)
        if conversations % every == 0:
            assert RULE.apply(cleaned) is cleaned, f"{chat.id}: cleaned twice, it changes again"
            for markdown, truth in zip(answers_of(cleaned), told, strict=True):
                if not score.add(markdown, truth, normal(truth), code_blocks(truth)):
                    failures[chat.id].append(markdown)
    print(
        f"\n{conversations:,} conversations, {score.bytes / 1e6:,.1f} MB: {score.bytes / score.seconds / 1e6:.2f} MB/s in one process"
    )
    print(f"answers converted {changed:,}, questions changed {kept}")
    print(f"compared: {score.counts['answers']:,} answers; round trip {score.share('whole', 'answers')}, ", end="")
    print(
        f"code blocks exact {score.counts['exact']:,} of {score.counts['blocks']:,}; same text {score.share('text', 'answers')}"
    )
    print(f"not whole: {', '.join(list(failures)[:20]) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--sample", type=int, default=1000, help="conversations that all converters convert")
    parser.add_argument(
        "--check-every", type=int, default=10, help="compare every so many-th conversation of the dump with its truth"
    )
    parser.add_argument("--compact", action="store_true", help="in the sample, take out line breaks between blocks first")
    options = parser.parse_args()
    found = converters()
    rows = list(islice(chats_of(options.dump), options.sample))
    if options.compact:
        rows = [
            (chat.with_messages(tuple(Message(m.role, compact(m.text)) for m in chat.messages)), told) for chat, told in rows
        ]
    scores = compare(rows, found)
    print(
        "| converter | MB/s | round trip / loose lists as tight ones | same text | code exact / to last line | new escapes | golden cases |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, score in scores.items():
        right, total = golden(found[name])
        print(
            f"| {name} | {score.bytes / score.seconds / 1e6:.2f} | {score.share('whole', 'answers')} / "
            f"{score.share('either', 'answers')} | {score.share('text', 'answers')} | {score.share('exact', 'blocks')} / "
            f"{score.share('alike', 'blocks')} | "
            f"{score.share('escaped', 'answers')} | {right} of {total} |",
            flush=True,
        )
    clean = next((convert for name, convert in found.items() if name.startswith("original")), None)
    ours, theirs, changed = whole_messages(rows, clean)
    print(f"\nwhole conversations, questions too: our rule {ours:.2f} MB/s, the original {theirs:.2f} MB/s", end="")
    print(f", {ours / theirs:.1f} times; it changed {changed:,} questions" if theirs else "", flush=True)
    if options.check_every:
        whole_dump(options.dump, options.check_every)


if __name__ == "__main__":
    main()
