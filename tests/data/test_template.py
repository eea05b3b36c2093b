"""Templates: the exact text of each, what is trained of it, and that a server renders the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from sft.data.conversation import Conversation, Role, Turn
from sft.data.render import Renderer
from sft.data.template import (
    TEMPLATE_DIR,
    ChatTemplate,
    Rendered,
    RenderRefused,
    SpecialTokens,
    builtin_names,
    load_template,
    with_bos_policy,
)
from sft.errors import TemplateError
from tests.templates import answer

GOLDEN = Path(__file__).parents[1] / "golden" / "templates"
TOKENS = SpecialTokens(
    "<s>", "</s>", ("<s>", "</s>", *sorted({token for name in builtin_names() for token in load_template(name).tokens}))
)
WITH_SYSTEM = [name for name in builtin_names() if "system" in load_template(name).roles]


def row(*turns: tuple[Role, str]) -> Conversation:
    return Conversation("row", tuple(Turn(role, text) for role, text in turns), "source")


def talk(*texts: str, system: str | None = None) -> Conversation:
    """User and assistant by turns."""
    head = () if system is None else (Turn("system", system),)
    turns = (Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Conversation("row", (*head, *turns), "source")


CASES = {
    "one answer": talk("U1", "A1"),
    "system": talk("U1", "A1", system="SYS"),
    "input": row(("user", "U1"), ("input", "I1"), ("assistant", "A1")),
    "two answers": talk("U1", "A1", "U2", "A2"),
    "spelt tokens": talk("<|im_start|>say </s><", "/s> <s>"),  # the first text and the second would join to </s> in `plain`
    "prompt": talk("U1"),
}


def shown(rendered: Rendered) -> str:
    """The text with ⟦ ⟧ around what is trained and « » around what is a special token."""
    signs = [(at, order, sign) for span in rendered.spans for at, order, sign in ((span[0], 1, "⟦"), (span[1], 1, "⟧"))]
    signs += [(at, order, sign) for a, b in rendered.specials for at, order, sign in ((a, 2, "«"), (b, 0, "»"))]
    out = rendered.text
    for at, _, sign in sorted(signs, reverse=True):
        out = out[:at] + sign + out[at:]
    return out


def outcome(renderer: Renderer, title: str) -> str:
    try:
        return shown((renderer.prompt if title == "prompt" else renderer.render)(CASES[title]))
    except RenderRefused as refusal:
        return f"{refusal.reason.removeprefix('template_')}: {refusal.detail}"


def served(source: str, turns: Sequence[Turn], prompt: bool = False) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    texts, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )
    return str(texts[0])


# --- each template ----------------------------------------------------------------------------------------------------


def test_every_template_has_a_golden_file_and_every_golden_file_a_template() -> None:
    assert [path.stem for path in sorted(GOLDEN.glob("*.txt"))] == builtin_names()
    assert len(builtin_names()) == len(list(TEMPLATE_DIR.glob("*.jinja")))


@pytest.mark.parametrize("name", builtin_names())
def test_golden_text_spans_and_special_tokens(name: str) -> None:
    parts = re.split(r"^--- (.+)\n", (GOLDEN / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = {title: text[:-1] for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    renderer = Renderer(load_template(name), TOKENS)
    assert {title: outcome(renderer, title) for title in CASES} == wanted


@pytest.mark.parametrize("system", [None, 'Say "no"\\n\n🎉 {% generation %} {{ x }} %} {# </s>'])
@pytest.mark.parametrize("name", builtin_names())
def test_transformers_renders_the_same_from_both_sources(name: str, system: str | None) -> None:
    if system is not None and name not in WITH_SYSTEM:
        with pytest.raises(TemplateError, match=f"template.system: {name} has no place for a system message; remove it"):
            load_template(name, system=system)
        return
    template = load_template(name, system=system)
    renderer = Renderer(template, TOKENS)
    for title, conversation in CASES.items():
        try:
            turns = renderer.turns_of(conversation)
            rendered = (renderer.prompt if title == "prompt" else renderer.render)(conversation)
        except RenderRefused:
            continue
        assert (system in rendered.text) if system and title != "system" else True
        for source in (template.full_source(), template.served_source()):
            assert served(source, turns, title == "prompt") == rendered.text, title
    assert "endgeneration" not in load_template(name).served_source()


@pytest.mark.parametrize("name", builtin_names())
def test_the_prompt_is_what_stands_before_each_answer(name: str) -> None:
    template = load_template(name)
    renderer = Renderer(template, TOKENS)
    texts = (" U1\n", "A1", "春天 ", "\tA2 ", "", " ")[: None if template.multi_turn else 2]
    for conversation in (talk(*texts), *([talk(*texts, system=" S ")] if "system" in template.roles else [])):
        rendered = renderer.render(conversation)
        answers = [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant"]
        assert len(answers) == len(rendered.spans) == len(texts) // 2
        for index, (start, end) in zip(answers, rendered.spans, strict=True):
            before = replace(conversation, turns=conversation.turns[:index])
            assert renderer.prompt(before).text == rendered.text[:start]
            said = conversation.turns[index].content
            assert rendered.text[start:end] == answer(template, said, "</s>", None if index == answers[-1] else "user")


def test_a_late_system_turn_is_refused_and_refused_when_served() -> None:
    late = (*talk("Hi", "Hello").turns, Turn("system", "late"))
    for name in builtin_names():
        with pytest.raises(RenderRefused, match=r"not the first would be lost|has no system role") as refused:
            Renderer(load_template(name), TOKENS).render(Conversation("row", late, "s"))
        assert refused.value.reason == "template_refused"
        if name != "chatml":  # which writes it where it stands
            with pytest.raises(Exception, match=r"at the start only|takes one"):
                served(load_template(name).served_source(), late)


# --- the recipe's system message --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_the_recipes_system_text_is_guarded_served_alike_and_in_the_fingerprint(name: str) -> None:
    system = 'stop <|im_end|> "here" 🎉 </s>\n'
    template = load_template(name, system=system)
    renderer, conversation = Renderer(template, TOKENS), talk("Hi", "Hello")
    rendered = renderer.render(conversation)
    assert rendered == Renderer(load_template(name), TOKENS).render(talk("Hi", "Hello", system=system))
    at = rendered.text.index(system)
    assert all(b <= at or a >= at + len(system) for a, b in rendered.specials)
    assert served(template.served_source(), conversation.turns) == rendered.text
    assert renderer.render(talk("Hi", "Hello", system="own")).text.count(system) == 0
    assert renderer.turns_of(conversation) == conversation.turns
    assert len({load_template(name, system=s).fingerprint for s in (None, "", system, "other")}) == 4
    assert "🎉" in template.served_source()


@pytest.mark.parametrize("head", ["", "\n", "  ", "\n\n {{ 'x' }}", "  {% if true %}y{% endif %}", "{# c #}\n"])
def test_a_system_message_leaves_the_first_blanks_of_a_foreign_template_alone(tmp_path: Path, head: str) -> None:
    path = tmp_path / "own.jinja"
    body = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    path.write_text(head + body, encoding="utf-8")
    template = load_template(str(path), system="S")
    assert served(template.full_source(), talk("U").turns) == Renderer(template, TOKENS).prompt(talk("U")).text
    assert served(path.read_text(), talk("U", system="S").turns) == Renderer(template, TOKENS).prompt(talk("U")).text


def test_a_system_message_with_reserved_characters_is_refused() -> None:
    for system in ("a\U00100000", "a\ud83d"):
        with pytest.raises(TemplateError, match=r"template.system: .* private-use characters or half surrogates; remove them"):
            load_template("chatml", system=system)


def test_a_long_message_of_spelt_tokens_is_hidden_in_one_pass() -> None:
    renderer = Renderer(load_template("chatml"), TOKENS)
    made = renderer.render(talk("</s>" * 100_000, "<|im_end|><s" * 30_000))
    assert [made.text[a:b] for a, b in made.specials] == ["<|im_start|>", "<|im_end|>"] * 2
    assert (
        made.text
        == f"<|im_start|>user\n{'</s>' * 100_000}<|im_end|>\n<|im_start|>assistant\n{'<|im_end|><s' * 30_000}<|im_end|>\n"
    )


# --- faults in templates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{% if %}", r"own\.jinja:1: not a valid Jinja template"),
        ("{#\nstop: </s>\n#}", r"own\.jinja:1: stop: </s> is neither eos nor a quoted string"),
        ("{#\nroles: user bot\n#}", r"own\.jinja:1: unknown role 'bot' in the header; known are system, user"),
        (
            "{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
            r"own\.jinja: not a valid Jinja template: 'break' outside loop",
        ),
        ("{{ " + "9" * 5000 + " }}", r"own\.jinja: not a valid Jinja template: Exceeds the limit"),
        (
            "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
            r"own\.jinja: not a valid Jinja template: maximum recursion depth exceeded",
        ),
    ],
    ids=["tag", "stop", "roles", "break", "digits", "depth"],
)
def test_faults_of_a_template_file_are_named(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "own.jinja").write_text(text, encoding="utf-8")
    with pytest.raises(TemplateError, match=fault):
        load_template(str(tmp_path / "own.jinja"))


def test_a_template_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_bytes(b"{{ '\xed\xa0\x80' }}")
    with pytest.raises(TemplateError, match=r"own\.jinja: cannot be read as UTF-8 text"):
        load_template(str(tmp_path / "own.jinja"))


def test_a_template_that_calls_itself_without_end_refuses_the_row(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", encoding="utf-8")
    with pytest.raises(RenderRefused, match="failed: maximum recursion depth exceeded"):
        Renderer(load_template(str(tmp_path / "own.jinja")), TOKENS).render(talk("U", "A"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TemplateError, match="no template 'alpacca'; there are alpaca, "):
        load_template("alpacca")
    with pytest.raises(TemplateError, match="this tokenizer has no chat template"):
        load_template("tokenizer")


def test_a_tokenizer_without_bos_gets_none_from_our_templates() -> None:
    template = with_bos_policy(load_template("alpaca_short", system="S"), writes_bos=False)
    assert served(template.served_source(), talk("U").turns, prompt=True).startswith("S\n\n### Instruction:\nU")


@pytest.mark.parametrize(
    ("source", "reason", "detail"),
    [
        ("{% generation %}{{ messages[0]['missing']['x'] }}{% endgeneration %}", "template_refused", "refused: "),
        ("{% generation %}{{ 1 // 0 }}{% endgeneration %}", "template_refused", "failed: "),
        ("{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}", "span_mismatch", "nested or cut"),
        ("{% generation %}a{% endgeneration %}{% generation %}b{% endgeneration %}", "span_mismatch", "marked 2 answers"),
        ("<s{% generation %}>{{ messages[1].content }}{% endgeneration %}", "span_mismatch", "inside a special token"),
    ],
)
def test_untrustworthy_marks_are_refused(source: str, reason: str, detail: str) -> None:
    with pytest.raises(RenderRefused, match=detail) as refused:
        Renderer(ChatTemplate("own", source, ""), TOKENS).render(talk("U", "A"))
    assert refused.value.reason == reason


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "é\udcff"])
def test_half_characters_are_refused_whoever_wrote_them(text: str) -> None:
    """A row cannot hold them; an argument of ``sft chat`` can, and no tokenizer takes them."""
    renderer = Renderer(load_template("chatml"), TOKENS)
    for render in (renderer.render, renderer.prompt):
        with pytest.raises(RenderRefused, match=r"the text holds half a character, U\+D[8CF][0F][0F]; remove it") as refused:
            render(talk(text, "A"))
        assert refused.value.reason == "unpaired_surrogate"


def test_private_use_characters_are_refused() -> None:
    with pytest.raises(RenderRefused, match="plane 16") as refused:
        Renderer(load_template("plain"), TOKENS).render(talk("U", "A\U0010fff0"))
    assert refused.value.reason == "private_use_character"


# --- special tokens come from the template, whole ---------------------------------------------------------------------

CONTROL = st.lists(st.text("<>/sab| ", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)
TEXTS = st.lists(st.text("<>/sab| ", max_size=7), min_size=3, max_size=3)


def expected(pieces: Sequence[tuple[str, bool]], control: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Leftmost longest matches in which every character is the template's."""
    ours = "".join(text if mine else "\0" * len(text) for text, mine in pieces)
    found, at = [], 0
    while at < len(ours):
        length = max((len(token) for token in control if ours.startswith(token, at)), default=0)
        found += [(at, at + length)] if length else []
        at += length or 1
    return tuple(found)


@settings(max_examples=400, deadline=None)
@given(control=CONTROL, around=TEXTS, inside=TEXTS, trim=st.booleans(), proven=st.booleans())
def test_a_special_token_is_the_templates_in_every_character(
    control: list[str], around: list[str], inside: list[str], trim: bool, proven: bool
) -> None:
    user, answer = inside[0], inside[1]
    keep = (lambda text: text.strip()) if trim else str
    filtered = " | trim" if trim else ""
    a, b, c = (f"{{{{ {text!r} }}}}" for text in around)
    source = f"{a}{{{{ messages[0].content{filtered} }}}}{b}{{% generation %}}{{{{ messages[1].content{filtered} }}}}{c}{{% endgeneration %}}"
    pieces = [(around[0], True), (keep(user), False), (around[1], True), (keep(answer), False), (around[2], True)]
    renderer = Renderer(ChatTemplate("own", source, "", proven=proven and not trim), SpecialTokens("", "", tuple(control)))
    try:
        raw = renderer._write(talk(user, answer).turns, prompt=False)
    except RenderRefused:  # blanks of a message that may be a part of a token cannot be both hidden and trimmed
        assert trim
        assert any(" " in token for token in control)
        return
    assert raw.text == "".join(text for text, _ in pieces)
    assert raw.specials == expected(pieces, control)


def test_overlapping_joined_and_one_character_tokens() -> None:
    tokens = SpecialTokens("", "</s>", ("</s>", "<a>", ">b>", "§", "<|im_end|>"))

    def specials(before: str, content: str, after: str) -> list[str]:
        source = f"{before}{{{{ messages[0].content }}}}{after}"
        found = Renderer(ChatTemplate("own", source, ""), tokens).prompt(talk(content))
        return [found.text[a:b] for a, b in found.specials]

    assert specials("", "x<a>b>", "") == []
    assert specials("<a>", "b>", "") == ["<a>"]
    assert specials("", "§", "§") == ["§"]
    assert specials("", "x<", "/s>") == []
    assert specials("", "<|im_end", "|></s>") == ["</s>"]
    assert specials("<", "/", "s>") == []
    assert specials("<", "", "/s>") == ["</s>"]  # the template wrote all of it


def test_a_template_that_searches_messages_still_renders_what_is_served() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content.split('|')[-1] }}</s>{% endfor %}"
    renderer = Renderer(ChatTemplate("own", source, ""), SpecialTokens("", "</s>", ("</s>", "<|x|>")))
    assert renderer.prompt(talk("a|b")).text == "user:b</s>"
    with pytest.raises(RenderRefused, match="rewrites special tokens that a message spells") as refused:
        renderer.prompt(talk("a<|x|>b"))
    assert refused.value.reason == "prompt_not_prefix"


def test_turns_are_found_in_the_text() -> None:
    renderer = Renderer(load_template("vicuna_v1.1", system="sys"), TOKENS)
    conversation = talk("USER: ", "A", "b", "c")
    places = renderer.places(conversation, [0, 2])
    assert [renderer.render(conversation).text[a:b] for a, b in places] == ["USER: ", "b"]
    silent = Renderer(ChatTemplate("own", "{{ messages[1].content }}</s>", ""), TOKENS)
    with pytest.raises(RenderRefused, match="does not write turn 0 as it is") as refused:
        silent.places(talk("U", "A"), [0])
    assert refused.value.reason == "turn_not_rendered"
