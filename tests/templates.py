"""What each of our templates writes for an answer: told here once, for the tests of texts and of ids."""

from __future__ import annotations

from sft.data.template import ChatTemplate

SPACE = (" ", "")
AROUND = {  # what the model writes before an answer, and between it and its stop
    **dict.fromkeys(("vicuna_v0", "vicuna_v1.1", "moss", "openbuddy", "chatglm2"), SPACE),
    "llama2": (" ", " "),
    "chatglm3": ("\n ", ""),
    "moss_plugin": ("<|MOSS|>: ", ""),
}


def answer(template: ChatTemplate, text: str, eos: str, *, last: bool) -> str:
    """The learnt span of an answer that is followed by a person's turn, or by nothing."""
    lead, gap = AROUND.get(template.name, ("", ""))
    if template.name == "chatglm2" and not last:
        lead = ""
    return lead + text + gap + stop_of(template, eos, last=last)


def stop_of(template: ChatTemplate, eos: str, *, last: bool) -> str:
    """What ends such an answer."""
    if last or (not template.only_last and not template.ends):
        return template.stop or eos
    if template.only_last:
        return ""
    return template.stop if template.name == "moss_plugin" else template.ends[0]  # whose ends are of calls
