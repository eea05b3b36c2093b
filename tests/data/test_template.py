"""Templates: the exact text of each, what is trained of it, and that a server renders the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from sft.data.conversation import Conversation, Turn
from sft.data.template import Rendered, Renderer, RenderRefused, SpecialTokens, builtin_names, load_template

GOLDEN = Path(__file__).parents[1] / "golden" / "templates"
TOKENS = SpecialTokens("<s>", "</s>", ("<s>", "</s>", "<|im_start|>", "<|im_end|>"))


def talk(*texts: str, system: str | None = None) -> Conversation:
    head = () if system is None else (Turn("system", system),)
    turns = (Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Conversation("row", (*head, *turns), "source")


def shown(rendered: Rendered) -> str:
    out = rendered.text
    for start, end in reversed(rendered.spans):
        out = out[:start] + "⟦" + out[start:end] + "⟧" + out[end:]
    return out


def served(source: str, conversation: Conversation) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
    texts, _ = render_jinja_template([messages], chat_template=source, bos_token="<s>", eos_token="</s>")
    return str(texts[0])


@pytest.mark.parametrize("name", builtin_names())
def test_golden_text_and_spans(name: str) -> None:
    template = load_template(name)
    conversation = talk(*("U1", "A1", "U2", "A2")[: 4 if template.multi_turn else 2])
    rendered = Renderer(template, TOKENS).render(conversation)
    assert shown(rendered) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert served(template.source, conversation) == served(template.served_source(), conversation) == rendered.text


@pytest.mark.parametrize("name", [name for name in builtin_names() if "system" in load_template(name).roles])
def test_the_recipes_system_text_is_guarded_and_served_alike(name: str) -> None:
    template = load_template(name, system='stop <|im_end|> "here" 🎉 </s>\n')
    rendered = Renderer(template, TOKENS).render(talk("Hi", "Hello"))
    assert rendered.text == served(template.served_source(), talk("Hi", "Hello"))
    at, stop = rendered.text.index("stop <|im_end|>"), rendered.text.index("🎉 </s>") + 7
    assert not [span for span in rendered.specials if at < span[0] < stop]


def test_a_system_turn_that_is_not_first_is_refused() -> None:
    late = Conversation("row", (*talk("Hi", "Hello").turns, Turn("system", "late")), "source")
    with pytest.raises(RenderRefused) as refused:
        Renderer(load_template("chatml"), TOKENS).render(late)
    assert refused.value.reason == "template_refused"


PIECES = st.lists(
    st.sampled_from(["<", "/s>", "</s", ">", "s", "<s>", "</s>", "<a>", "b>", "§", "<|im_", "end|>", " ", "x"]), max_size=6
)


@pytest.mark.parametrize("name", builtin_names())
@settings(max_examples=25, deadline=None)
@given(user=PIECES, answer=PIECES)
def test_no_message_adds_or_takes_a_special_token(name: str, user: list[str], answer: list[str]) -> None:
    tokens = SpecialTokens("<s>", "</s>", (*TOKENS.control, "<a>", ">b>", "§"))
    renderer = Renderer(load_template(name), tokens)
    wanted, got = (renderer.render(c) for c in (talk("U", "A"), talk("".join(user), "".join(answer))))
    assert [got.text[a:b] for a, b in got.specials] == [wanted.text[a:b] for a, b in wanted.specials]
