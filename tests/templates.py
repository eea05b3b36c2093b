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
CALL = "<|Inner Thoughts|>: "


def answer(template: ChatTemplate, text: str, eos: str, following: str | None, before: str | None = None) -> str:
    """The learnt span of an answer; ``following`` and ``before`` are the roles of the turns around it, None if there is none."""
    lead, gap = AROUND.get(template.name, ("", ""))
    if template.name == "chatglm2" and following is not None:
        lead = ""
    if template.name == "moss_plugin" and following in ("tool", "assistant"):
        lead = "\n<|Commands|>: " if (following, before) == ("tool", "assistant") else CALL
    return lead + text + gap + stop_of(template, eos, following)


def stop_of(template: ChatTemplate, eos: str, following: str | None) -> str:
    """What ends such an answer."""
    whole = template.stop or eos
    if following is None:
        return whole
    if template.only_last:
        return ""
    if template.name == "moss_plugin":
        return {"tool": "<eoc>", "assistant": "<eot>"}.get(following, whole)
    if template.name == "chatglm3":
        return {"user": "<|user|>", "tool": "<|observation|>"}[following]
    return template.ends[0] if template.ends else whole
