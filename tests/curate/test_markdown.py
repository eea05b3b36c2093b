"""HTML to Markdown: golden cases, and the laws that no text is lost or moved, code is exact, and nothing is converted twice."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sft.curate.chat import Chat, Message
from sft.curate.html.reader import is_html, to_markdown
from sft.curate.html.tags import BLOCKS, ELEMENTS, VOID, decoded
from sft.curate.rules.html import HtmlRule

GOLDEN = sorted((Path(__file__).parent.parent / "golden" / "html").glob("*.txt"))
SITE = '<div class="markdown prose w-full break-words dark:prose-invert dark">{}</div>'
BAR = (
    '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center relative"><span class="">{}</span><button class="flex">'
    '<svg><path d="M1"></path></svg>Copy code</button></div><div class="p-4 overflow-y-auto">'
    '<code class="!whitespace-pre hljs language-{}">{}</code></div></div></pre>'
)


def read(file: Path) -> tuple[str, str]:
    before, after = file.read_text(encoding="utf-8").split("\n----\n", 1)
    return before, after.removesuffix("\n")


def chat_of(*texts: str) -> Chat:
    """A conversation with these texts, the user's first."""
    return Chat("c", tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)))


def by_rule(role: str, text: str) -> str:
    applied = HtmlRule().apply(Chat("c", (Message(role, text),)))
    assert HtmlRule().apply(applied) is applied
    return applied.messages[0].text


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_golden(file: Path) -> None:
    """``kept_*`` are answers and ``user_*`` questions through the rule; all others are HTML and go straight to the converter."""
    before, after = read(file)
    if file.stem.startswith("kept_"):
        assert not is_html(before)
        assert by_rule("assistant", before) == before == after
    elif file.stem.startswith("user_"):
        assert by_rule("user", before) == after
    else:
        assert to_markdown(before) == after
        assert not is_html(after)


def test_there_are_enough_golden_cases() -> None:
    assert len(GOLDEN) >= 100


# What is HTML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>One</p><p>Two</p>", True),
        ("<p>One</p>\n<ul>\n<li>Two</li>\n</ul>", True),
        ("  <p>One</p>\n<hr>\n", True),
        ("<ol><li>a</li></ol><p>b &lt; c</p>", True),
        ('<div class="markdown prose">anything', True),
        ('<p>One <code class="!whitespace-pre hljs">x</code></p>', True),
        ('Look: <pre><div class="bg-black rounded-md"><code class="hljs">x</code></div></pre>', True),
        ("1 / 2<p>One</p><p>Two</p>", True),
        ("<h1>One</h1><h2>Two</h2>", False),  # no prose
        ("<p>One</p>", False),  # alone it may be an answer about HTML
        ("<p>One</p><p>Two", False),
        ("<p>One</p><p>Two</i></p>", False),
        ("<p>One</p> and <p>Two</p>", False),
        ("<p>One</p>\n\n<p>Two</p>", False),
        ("<p>One</p>\n  <p>Two</p>", False),
        ('<p style="color: red">One</p><p>Two</p>', False),
        ("<p>One</p><form><p>Two</p></form>", False),
        ("text <p>One</p><p>Two</p>", False),
        ("`<p>`One</p><p>Two</p>", False),
        ("\\<p>One</p><p>Two</p>", False),
        ("a < b > c", False),
        ("", False),
    ],
)
def test_is_html(text: str, expected: bool) -> None:
    assert is_html(text) is expected


@given(st.text(alphabet=st.sampled_from("<>/pdiv \n`\"'=&;a1.-*")))
def test_plain_text_is_not_html(text: str) -> None:
    assert not is_html(f"So: {text}")
    assert by_rule("user", text) == text


# The rule


def test_a_single_paragraph_is_html_beside_html() -> None:
    long, short = "<p>One</p><p>Two</p>", "<p>Yes.</p>"
    both = HtmlRule().apply(chat_of("?", long, "<p>Why?</p>", short))
    assert [m.text for m in both.messages] == ["?", "One\n\nTwo", "<p>Why?</p>", "Yes."]
    alone = chat_of("?", "plain", "?", short)
    assert HtmlRule().apply(alone) is alone


def test_roles_and_others() -> None:
    page = SITE.format("<p>a</p>")
    chat = Chat("c", tuple(Message(role, page) for role in ("system", "user", "assistant", "tool")))
    assert [m.text for m in HtmlRule().apply(chat).messages] == ["a", "a", "a", "a"]
    assert [m.text for m in HtmlRule(others="never").apply(chat).messages] == [page, page, "a", page]
    assert [m.text for m in HtmlRule(others="never", roles=("user",)).apply(chat).messages] == [page, "a", page, page]
    prose = Chat("c", tuple(Message(role, "<p>a</p><p>b</p>") for role in ("user", "assistant")))
    assert [m.text for m in HtmlRule().apply(prose).messages] == ["<p>a</p><p>b</p>", "a\n\nb"]


def test_all_else_of_a_conversation_stays() -> None:
    chat = Chat("id", (Message("assistant", "<p>a</p><p>b</p>"),), model="m", extra={"k": 1}, where="f:1")
    assert HtmlRule().apply(chat) == Chat("id", (Message("assistant", "a\n\nb"),), model="m", extra={"k": 1}, where="f:1")


@given(
    st.lists(
        st.sampled_from(
            ["&", "lt;", "&lt;", "&amp;", "amp;", "&quot;", "&#39;", "&#x27;", "&nbsp;", "&lt", "#39;", "a", "&gt;"]
        )
    )
)
def test_entities_are_decoded_as_the_standard_library_decodes_them(parts: list[str]) -> None:
    text = "".join(parts)
    assert decoded(text) == html.unescape(text)


# Laws


class Visible(HTMLParser):
    """The words of a page in order, by the standard library's parser; a block or a line break sets words apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(page)
        self.close()

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.parts.append("\n" if tag in BLOCKS or tag == "br" else "")

    def handle_endtag(self, tag: str) -> None:
        self.handle_starttag(tag, None)

    @property
    def words(self) -> list[str]:
        return words("".join(self.parts))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


_NOT_TEXT = {"script", "style", "template", "title", "head", "svg", "button", "math", "path"}
_SHOWN = sorted(ELEMENTS - _NOT_TEXT - VOID)
_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
_NOISE = st.sampled_from(
    ["* ", "_", "# ", "1. ", "> ", "| ", "`", "&amp;", "&lt;p&gt;", "- ", "  ", "\n", "\\", "$", "[", "]: ", "~~", "，"]
)


@st.composite
def soups(draw: st.DrawFn) -> str:
    """Tags of any kind opened and closed in any order, between words that are numbered."""
    pieces = []
    for number in range(draw(st.integers(1, 14))):
        kind = draw(st.integers(0, 5))
        name = draw(st.sampled_from(_SHOWN))
        if kind < 4:
            pieces.append(f"<{name}>" if kind < 2 else f"</{name}>")
        elif kind == 4:
            pieces.append(draw(st.sampled_from(["<br>", "<hr>", "<input type=checkbox>", "<img src=a>", "<!-- z -->"])))
        pieces.append(f" q{number}z{draw(_NOISE)}")
    return "".join(pieces)


@given(soups())
def test_no_word_is_lost_or_moved_whatever_the_tags(page: str) -> None:
    expected = re.findall(r"q\d+z", page)
    markdown = to_markdown(page)
    assert re.findall(r"q\d+z", markdown) == expected
    assert not is_html(markdown)
    assert re.findall(r"q\d+z", to_markdown(SITE.format(page))) == expected


_INLINE = ("b", "em", "code", "span", "del", "u", "i", "strong", "mark", "label", "small")
_BLOCK = (
    "p",
    "div",
    "ul",
    "li",
    "blockquote",
    "h2",
    "h5",
    "section",
    "dl",
    "dd",
    "details",
    "summary",
    "pre",
    "table",
    "tr",
    "td",
    "th",
)


def _trees() -> st.SearchStrategy[str]:
    text = _TEXT.map(lambda s: html.escape(s) + " ")

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        bodies = st.lists(inner, max_size=3).map("".join)
        inline = st.builds(lambda name, body: f" <{name}>{body}</{name}> ", st.sampled_from(_INLINE), bodies)
        block = st.builds(lambda name, body: f"<{name}>{body}</{name}>", st.sampled_from(_BLOCK), bodies)
        return st.one_of(inline, block)

    return st.lists(st.recursive(text, grown, max_leaves=12), min_size=1, max_size=3).map("".join)


@given(_trees())
@example("<table>a<tr>b</tr><td>c</td></table>d")
@example("<ul>a<li>b</li>c<ul>d</ul></ul>")
@example("<pre>a<table><tr><td>b</td></tr></table></pre>")
def test_the_words_that_are_seen_are_the_words_that_are_written(page: str) -> None:
    """All of them, in order, and none run into one that a browser sets apart."""
    assert words(to_markdown(page).replace("<br>", "\n")) == Visible(page).words


@given(st.text(max_size=60))
@example("<p><table></li></td>&#0;&#xD800;<b")
@example("<" * 50)
@example('<a href="' * 20)
@example("<!--" * 20)
def test_any_text_is_read(text: str) -> None:
    markdown = to_markdown(text)
    assert not is_html(markdown)
    again = by_rule("assistant", text)
    assert by_rule("assistant", again) == again


_PIECES = st.sampled_from(
    [
        *(
            "<p>",
            "</p>",
            "<li>",
            "<ul>",
            "</ul>",
            "<pre>",
            "</pre>",
            "<code class='hljs'>",
            "</code>",
            "<div class='rounded-md'>",
        ),
        *(
            "</div>",
            "<span class='katex'>",
            "</span>",
            "<annotation encoding='application/x-tex'>",
            "</annotation>",
            "<td>",
            "<table>",
        ),
        *(
            "</table>",
            "<button>",
            "Copy code",
            "</button>",
            "1 / 2",
            "a",
            "&lt;p&gt;",
            "\n",
            "`",
            "```\n",
            "<hr>",
            "&lt;/p&gt;",
        ),
        *(
            SITE.format("<p>b</p>"),
            BAR.format("c", "c", "d"),
            html.escape(SITE.format("e")),
            html.escape(BAR.format("f", "f", "g")),
        ),
    ]
)


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_what_was_converted_is_not_html(text: str) -> None:
    markdown = to_markdown(text)
    assert not is_html(markdown)
    once = HtmlRule(roles=("assistant", "user")).apply(chat_of(text, text))
    assert HtmlRule(roles=("assistant", "user")).apply(once) == once


_LINES = st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]), max_size=40)


@given(
    st.lists(_LINES, max_size=5).map("\n".join),
    st.sampled_from(["{}", "<ol><li><p>a</p>{}</li></ol>", "<ul><li>b{}</li></ul>"]),
)
@example("```\n````\n~~~\n", "{}")
@example("\tx\n\n\n  y  \n \n", "<ol><li><p>a</p>{}</li></ol>")
@example("<p>&amp;</p>\n<int> </code> Copy code", "<ul><li>b{}</li></ul>")
def test_code_is_exact(code: str, around: str) -> None:
    """Read back by a parser of Markdown, the code of a block is the code that the page showed, with its language."""
    if not code.endswith("\n"):
        code += "\n"  # a fenced block ends with a line break
    page = SITE.format(around.format(BAR.format("py", "py", html.escape(code))))
    [block] = [token for token in MarkdownIt().parse(to_markdown(page)) if token.type == "fence"]
    assert (block.info, block.content) == ("py", code)


@given(st.text(st.characters(exclude_characters="\r\x00\n", exclude_categories=["Cs"]), min_size=1, max_size=20))
@example("`")
@example(" `` ")
@example("a|b")
def test_code_within_a_line_is_exact(code: str) -> None:
    markdown = to_markdown(f"<p>x <code>{html.escape(code)}</code> y</p>")
    inline = MarkdownIt().parseInline(markdown)[0].children or []
    assert [token.content for token in inline if token.type == "code_inline"] == ([code] if code.strip(" ") else [])


def test_a_page_of_great_depth_or_length_is_read() -> None:
    deep = "".join(f"<ul><li>q{i}z" for i in range(3_000))
    assert len(re.findall(r"q\d+z", to_markdown(deep))) == 3_000
    assert to_markdown("<b>" * 5_000 + "a").count("a") == 1
    assert to_markdown("<blockquote>" * 5_000 + "a").strip("> ") == "a"
    for tag in (
        "<!--",
        "<code>",
        "<svg>",
        "<button>",
        "<script>",
        '<span class="katex">',
        '<div class="rounded-md">',
        '<a href="',
    ):
        assert to_markdown(tag * 20_000 + "<p>q</p>").count("q") == 1  # not read to the end again and again
    for unit in (
        "-",
        "-|",
        "|-",
        ":-",
        "- ",
        " ",
        "\t",
        "=",
        "`",
    ):  # a line that is nearly a rule or the row below a table's header
        assert to_markdown(f"a\n{unit * (60_000 // len(unit))}q").count("q") == 1
    assert len(to_markdown("<p>word word</p>\n" * 20_000)) == 20_000 * len("word word\n\n") - 2
