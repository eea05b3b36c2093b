"""Evol-Instruct: rewrite the tasks of a set into harder or rarer ones, answer them, and eliminate what the rewriting spoilt.

::

    task ──operator──► evolve ──► new instruction and input ──► gain? ──► answer ──► candidate
                        │ broken, copied words                   │ no       │ refusal, nothing said
                        ▼                                        ▼          ▼
                     parse failure, with its code; the task is tried again in the next generation

Each generation evolves every task once, from its newest accepted form. Source: Xu et al. 2023 (WizardLM); the operators are its add
constraints, deepen, concretise, increase reasoning (together "deepen") and breadth; "complicate input" is left out. The wording is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfinstruct.prompts import load_prompt, refuse_sentinels
from selfinstruct.records import Candidate, Completion, ParseFailure, Request, Sampling, SeedTask
from selfinstruct.strategies.base import Asking, Item, Stage, View, prose
from selfinstruct.strategies.sections import EvolveSection
from sft.text.tokens import tokens

_BLOCK = re.compile(r"<<<INSTRUCTION>>>[ \t]*\n(.*?)\n<<<INPUT>>>[ \t]*\n(.*?)\n?<<<END>>>", re.DOTALL)
_NO_INPUT = re.compile(r"\s*(?:<noinput>|<no input>)?\s*", re.IGNORECASE)
# Words of the prompt that have no place in a task: the teacher then talks about the rewriting.
_COPIED = re.compile(
    r"(?:given|rewritten|original|evolved|created) (?:task|prompt|instruction)\b|#+ ?(?:given|rewritten|created)|<<<"
    r"|(?:改写|原|给定|新)(?:后的)?(?:任务|指令|题目)[：:]|改写后的(?:任务|指令)",
    re.IGNORECASE,
)
_HARD = re.compile(r"\bsorry\b|抱歉|对不起", re.IGNORECASE)
_HARD_TOKENS = 80


@dataclass(frozen=True, slots=True)
class _Task:
    """A task as it stands: of the set, or evolved."""

    id: str
    instruction: str
    input: str


@dataclass(slots=True)
class _Evolved:
    """A rewriting on its way to an answer."""

    task: _Task
    parent: _Task
    request: Request
    completion: Completion
    via: tuple[str, ...]
    cost: float


class Evolve:
    """Args: the section of the recipe, how to ask, and the set.

    Raises:
        InputError: a task holds a mark of the format, or a prompt that does not load.
    """

    purpose = "evolve"

    def __init__(self, section: EvolveSection, asking: Asking, seeds: list[SeedTask]) -> None:
        self.section, self.asking = section, asking
        self.prompt = load_prompt(section.prompt)
        self.gain = load_prompt(section.gain_prompt) if section.gain_prompt else None
        self.start = [_Task(s.id, s.instruction, s.instances[0].input) for s in seeds]
        refuse_sentinels((t.id, text) for t in self.start for text in (t.instruction, t.input))
        self._newest = list(self.start)
        self._slot = {task.id: i for i, task in enumerate(self.start)}
        self._read = 0  # rows of the view that have found their slot
        self._known = {task.id: task for task in self.start}

    def prompts(self) -> dict[str, str]:
        return {p.name: p.fingerprint for p in (self.prompt, self.gain) if p is not None}

    def requests(self, number: int, view: View) -> list[Request]:
        """One request per task of this round's share of the generation; empty after the last generation."""
        size = self.section.requests_per_round
        rounds = -(-len(self.start) // size)
        generation, share = divmod(number, rounds)
        if generation >= self.section.generations:
            return []
        self._follow(view.rows)
        order = list(range(len(self.start)))
        self.asking.rng(generation, "order").shuffle(order)
        rng, out = self.asking.rng(number), []
        for index, slot in enumerate(order[share * size : (share + 1) * size]):
            task, operator = self._newest[slot], rng.choice(self.section.operators)
            text = self.prompt.render(instruction=task.instruction, input=task.input, operator=operator)
            out.append(
                self.asking.request(
                    prose(text),
                    draw=number,
                    purpose=f"{self.purpose}:{operator}",
                    round=number,
                    index=index,
                    demonstrations=(task.id,),
                    prompt_fingerprint=self.prompt.fingerprint,
                )
            )
        return out

    def _follow(self, rows: Sequence[Candidate]) -> None:
        """Let accepted rows take the place of the task that they were evolved from."""
        for row in rows[self._read :]:
            task = _Task(row.id, row.instruction, row.input)
            self._known[row.id] = task
            slot = self._slot.get(row.parent)
            if slot is not None:
                self._newest[slot], self._slot[row.id] = task, slot
        self._read = len(rows)

    def propose(self, requests: list[Request], view: View) -> Stage:
        replies = yield requests
        items: list[Item] = []
        evolved: list[_Evolved] = []
        for request, reply in zip(requests, replies, strict=True):
            if isinstance(reply, Completion):
                found = self._rewritten(request, reply)
                if isinstance(found, ParseFailure):
                    items.append(found)
                else:
                    evolved.append(found)
        evolved = self._screened(evolved, view, items)
        if self.gain is not None:
            questions = [self._question(e) for e in evolved]
            answers = yield questions
            kept = []
            for e, question, answer in zip(evolved, questions, answers, strict=True):
                if isinstance(answer, Completion) and not _says_yes(answer.text):
                    items.append(ParseFailure(e.request.id, 0, "no_gain", f"{e.task.instruction[:200]} | {answer.text[:80]}"))
                elif isinstance(answer, Completion):
                    e.via, e.cost = (*e.via, question.id), e.cost + answer.cost
                    kept.append(e)
            evolved = kept
        asked = [self._answer(e) for e in evolved]
        answers = yield asked
        for e, request, answer in zip(evolved, asked, answers, strict=True):
            if isinstance(answer, Completion):
                items.append(self._candidate(e, request, answer))
        return items

    def _rewritten(self, request: Request, reply: Completion) -> _Evolved | ParseFailure:
        parent = self._known.get(request.demonstrations[0]) or _Task(request.demonstrations[0], "", "")
        found = _BLOCK.search(reply.text)
        if found is None:
            reason = "truncated" if "<<<INSTRUCTION>>>" in reply.text else "no_task"
            return ParseFailure(request.id, 0, reason, reply.text[-200:])
        instruction, given = found.group(1).strip(), found.group(2).strip()
        given = "" if _NO_INPUT.fullmatch(given) else given
        if not instruction:
            return ParseFailure(request.id, 0, "empty_instruction", reply.text[:200])
        if copied := _COPIED.search(f"{instruction}\n{given}"):
            return ParseFailure(request.id, 0, "copied_prompt_words", copied.group())
        if (instruction, given) == (parent.instruction.strip(), parent.input.strip()):
            return ParseFailure(request.id, 0, "unchanged", instruction[:200])
        task = _Task(f"{request.round}-{request.index}-0", instruction, given)
        return _Evolved(task, parent, request, reply, (request.id,), reply.cost)

    def _screened(self, evolved: list[_Evolved], view: View, items: list[Item]) -> list[_Evolved]:
        """Leave out what the filters will refuse for its instruction: it is a candidate without an answer, not worth paying one."""
        kept = []
        for e in evolved:
            bare = self._bare(e, e.request.id, "", e.completion)
            if view.screen(bare) is None:
                kept.append(e)
            else:
                items.append(bare)
        return kept

    def _bare(self, e: _Evolved, request_id: str, output: str, reply: Completion) -> Candidate:
        self._known[e.task.id] = e.task
        return Candidate(
            id=e.task.id,
            request_id=request_id,
            instruction=e.task.instruction,
            input=e.task.input,
            output=output,
            round=e.request.round,
            item=0,
            teacher=reply.model or e.request.model,
            demonstrations=e.request.demonstrations,
            prompt_fingerprint=e.request.prompt_fingerprint,
            parent=e.parent.id,
            operator=e.request.purpose.partition(":")[2],
            via=tuple(id_ for id_ in e.via if id_ != request_id),
            cost=e.cost,
        )

    def _question(self, e: _Evolved) -> Request:
        assert self.gain is not None
        text = self.gain.render(
            instruction=e.parent.instruction, input=e.parent.input, new_instruction=e.task.instruction, new_input=e.task.input
        )
        sampling = Sampling(max_tokens=8, temperature=0.0)
        about: dict[str, Any] = {"round": e.request.round, "index": e.request.index, "demonstrations": e.request.demonstrations}
        return self.asking.request(prose(text), sampling, purpose="gain", prompt_fingerprint=self.gain.fingerprint, **about)

    def _answer(self, e: _Evolved) -> Request:
        """The task as a user would put it: no prompt of ours around it."""
        text = f"{e.task.instruction}\n\n{e.task.input}" if e.task.input else e.task.instruction
        sampling = self.section.answer.to_sampling() if self.section.answer else None
        return self.asking.request(
            text, sampling, draw=e.request.draw, purpose="answer", round=e.request.round, index=e.request.index
        )

    def _candidate(self, e: _Evolved, request: Request, answer: Completion) -> Item:
        output = answer.text.strip()
        e.cost += answer.cost
        if answer.finish_reason == "length":
            return ParseFailure(request.id, 0, "truncated", output[-200:])
        if not tokens(output):
            return ParseFailure(request.id, 0, "empty_answer", output[:200])
        if _HARD.search(output) and len(tokens(output)) < _HARD_TOKENS:
            return ParseFailure(request.id, 0, "hard_to_answer", output[:200])
        return self._bare(e, request.id, output, answer)


def _says_yes(text: str) -> bool:
    """Whether the teacher sees a gain: anything that does not begin with a yes is none."""
    return re.match(r"\W*(?:yes|有|是)", text.strip(), re.IGNORECASE) is not None
