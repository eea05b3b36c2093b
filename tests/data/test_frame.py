"""A frame that is filled in is what the template itself writes, whatever the messages say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.conversation import ROLES, Conversation, Role, Turn
from sft.data.frame import Frame, fillers
from sft.data.marks import PRIVATE_FIRST
from sft.data.render import Renderer
from sft.data.template import ChatTemplate, Filled, Rendered, RenderRefused, SpecialTokens, builtin_names, load_template

CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "\n\n### In", "ASSISTANT:", "[INST]")
TOKENS = SpecialTokens("<s>", "</s>", CONTROL)
PARTS = [*CONTROL, "<", "</", "s>", "|im_end|>", "### In", "\n", "\n\n", " ", "a", "诗", "ASSISTANT", ":", PRIVATE_FIRST, ""]


def outcome(write: Any) -> Any:
    try:
        made = write()
    except RenderRefused as refusal:
        return refusal.reason, refusal.detail
    return made.rendered() if isinstance(made, Filled) else made


@pytest.mark.parametrize("system", [None, "Be brief. <|im_end|>"])
@pytest.mark.parametrize("name", builtin_names())
def test_filled_frames_are_what_the_template_writes(name: str, system: str | None) -> None:
    template = load_template(name)
    if system is not None and "system" not in template.roles:
        return
    renderer, seen = Renderer(load_template(name, system=system), TOKENS), set()
    message = st.lists(st.sampled_from(PARTS), max_size=4).map("".join)
    usual: list[list[Role]] = [["user", "assistant"], ["user", "input", "assistant"], ["system", *["user", "assistant"] * 2]]  # type: ignore[list-item]
    roles = st.sampled_from(usual) | st.lists(st.sampled_from(ROLES), min_size=1, max_size=5)

    @settings(max_examples=150, deadline=None, database=None)
    @given(roles.flatmap(lambda some: st.tuples(*(st.tuples(st.just(role), message) for role in some))))
    def law(turns: tuple[tuple[Role, str], ...]) -> None:
        row = Conversation("row", tuple(Turn(role, text) for role, text in turns), "source")
        slow = outcome(lambda: renderer._render(renderer._with_system(renderer.turns_of(row))))
        assert outcome(lambda: renderer.prepare(row)) == slow
        if isinstance(slow, Rendered):
            seen.add(type(renderer.prepare(row)))

    law()
    assert seen == {Filled, Rendered}


def test_foreign_templates_have_no_frames() -> None:
    source = "{% for m in messages %}{{ m['content'] + '</s>' if m['content'] != 'x' }}{% endfor %}"
    renderer = Renderer(ChatTemplate("own", source, "</s>"), TOKENS)
    row = Conversation("row", (Turn("user", "q"), Turn("assistant", "a")), "source")
    assert isinstance(renderer.prepare(row), Rendered)


def test_positions_move_with_the_messages() -> None:
    a, b = fillers(2)
    frame = Frame.cut(f"<s>U{a}A{b}</s>", [a, b], [(5, 11), (4, 6)], [(0, 3), (7, 11)])
    assert frame is not None
    assert frame.fill(["hello", "you"]) == ("<s>UhelloAyou</s>", ((9, 17), (4, 10)), ((0, 3), (13, 17)))


@pytest.mark.parametrize("text", ["{a}", "{b}{a}", "{a}{b}{a}", "{a}{b}{b}"])
def test_a_text_without_its_gaps_once_and_in_order_has_no_frame(text: str) -> None:
    a, b = fillers(2)
    assert Frame.cut(text.format(a=a, b=b), [a, b], [], []) is None


def test_more_messages_than_fillers_have_no_frame() -> None:
    many = fillers((1 << 14) + 1)
    assert Frame.cut("".join(many), many, [], []) is None
