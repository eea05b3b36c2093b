"""Self-Instruct's four stages: instructions, classification or not, instances, post-processing.

::

    6 seeds + 2 of ours ──► 1 instructions ──screen──► 2 classification? ──yes──► 3 output first ──┐
                                                                        └──no───► 3 input first  ──┴► 4 tidy ──► candidates

Source: yizhongw/self-instruct. What the filters would refuse for its instruction is not asked on about (it is a candidate without an
output). Differences from the original: the demonstrations of stage 2 are drawn from the seeds; those of stage 3 are ours, and fewer;
instructions keep their case (the original lower-cases all but the first letter); an answer that is neither yes nor no is a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfinstruct.filters.novelty import NoveltyIndex
from selfinstruct.parse import parse_classification, parse_instances, parse_instructions
from selfinstruct.postprocess import tidy, vary_input
from selfinstruct.prompts import load_prompt
from selfinstruct.records import Candidate, Completion, Instance, ParseFailure, Request, SeedTask
from selfinstruct.strategies.base import Asking, Item, Stage, View, prose
from selfinstruct.strategies.sections import ClassicSection
from sft.errors import InputError

_YES, _NO = 12, 19
"""Demonstrations of stage 2, as many as in the original."""


@dataclass(slots=True)
class _Task:
    """An instruction on its way to its instances."""

    bare: Candidate
    item: int
    is_classification: bool = False


class Classic:
    """Args: the section of the recipe, how to ask, and the seeds.

    Raises:
        InputError: too few seeds, or a prompt that does not load.
    """

    purpose = "instructions"

    def __init__(self, section: ClassicSection, asking: Asking, seeds: list[SeedTask]) -> None:
        self.section, self.asking = section, asking
        names = (
            section.instructions_prompt,
            section.classification_prompt,
            section.input_first_prompt,
            section.output_first_prompt,
        )
        self.first_prompt, self.sorting, self.input_first, self.output_first = map(load_prompt, names)
        self.shown_seeds = [s for s in seeds if s.is_classification or not section.classification_only]
        self.shown = section.seed_demonstrations + section.machine_demonstrations
        if len(self.shown_seeds) < self.shown:
            kind = "classification seeds" if section.classification_only else "seeds"
            raise InputError(f"{self.shown} demonstrations are wanted but there are {len(self.shown_seeds)} {kind}; add seeds")
        self.examples = self._sorted_examples(seeds)

    def _sorted_examples(self, seeds: list[SeedTask]) -> list[SeedTask]:
        """The demonstrations of stage 2: the same in the whole run."""
        rng = self.asking.rng(0, "classification")
        yes, no = ([s for s in seeds if s.is_classification is kind] for kind in (True, False))
        if not yes or not no:
            raise InputError("stage 2 shows classification seeds and others, and the seeds have only one kind; add the other")
        chosen = rng.sample(yes, min(_YES, len(yes))) + rng.sample(no, min(_NO, len(no)))
        rng.shuffle(chosen)
        return chosen

    def prompts(self) -> dict[str, str]:
        return {p.name: p.fingerprint for p in (self.first_prompt, self.sorting, self.input_first, self.output_first)}

    # --- stage 1

    def requests(self, number: int, view: View) -> list[Request]:
        rng, out = self.asking.rng(number), []
        machine = _first_of_groups(view.rows)
        for index in range(self.section.requests_per_round):
            ours = rng.sample(machine, min(self.section.machine_demonstrations, len(machine)))
            seeds = rng.sample(self.shown_seeds, self.shown - len(ours))
            shown = [(s.id, s.instruction) for s in seeds] + [(c.id, c.instruction) for c in ours]
            rng.shuffle(shown)
            text = self.first_prompt.render(
                instructions=[_one_line(instruction) for _, instruction in shown],
                first=self.shown + 1,
                last=self.shown + self.section.instructions_per_call,
                classification_only=self.section.classification_only,
            )
            text = prose(text) + (f"{self.shown + 1}." if self.asking.kind == "completion" else "")
            out.append(
                self.asking.request(
                    text,
                    # The number after the next one: an item is whole only if the mark behind it was written.
                    stop=(f"\n{self.shown + self.section.instructions_per_call + 2}.",),
                    draw=number,
                    purpose=self.purpose,
                    round=number,
                    index=index,
                    demonstrations=tuple(id_ for id_, _ in shown),
                    prompt_fingerprint=self.first_prompt.fingerprint,
                )
            )
        return out

    def propose(self, requests: list[Request], view: View) -> Stage:
        items: list[Item] = []
        replies = yield requests
        tasks: list[_Task] = []
        near = NoveltyIndex()  # what one round's requests have in common is not paid for twice
        for request, reply in zip(requests, replies, strict=True):
            if isinstance(reply, Completion):
                tasks += self._screened(request, reply, view, near, items)
        questions = [self._question(task) for task in tasks]
        replies = yield questions
        sorted_tasks: list[_Task] = []
        for task, question, reply in zip(tasks, questions, replies, strict=True):
            if isinstance(reply, Completion):
                found = self._sorted(task, question, reply)
                if isinstance(found, ParseFailure):
                    items.append(found)
                else:
                    sorted_tasks.append(found)
        demands = [self._demand(task) for task in sorted_tasks]
        replies = yield demands
        for task, demand, reply in zip(sorted_tasks, demands, replies, strict=True):
            if isinstance(reply, Completion):
                items += self._instances(task, demand, reply)
        return items

    def _screened(self, request: Request, reply: Completion, view: View, near: NoveltyIndex, items: list[Item]) -> list[_Task]:
        """Instructions worth asking on about; the others, and what could not be parsed, go to ``items``."""
        found, failures = parse_instructions(reply.text, reply.finish_reason, request)
        items += failures
        share = reply.cost / len(found) if found else 0.0
        kept = []
        for place, candidate in enumerate(found):
            bare = replace(
                candidate,
                id=f"{request.round}-{request.index}-{place * self.section.instances_per_task}",
                item=place * self.section.instances_per_task,
                teacher=reply.model or request.model,
                cost=share,
            )
            if view.screen(bare) is not None:
                items.append(bare)  # the judge finds the same reason
            elif (same := near.offer(bare.id, bare.instruction)) is not None:
                items.append(ParseFailure(request.id, place, "near_duplicate_in_round", f"{same.id}: {bare.instruction[:200]}"))
            else:
                kept.append(_Task(bare, bare.item))
        return kept

    # --- stage 2

    def _question(self, task: _Task) -> Request:
        shown = [{"instruction": _one_line(s.instruction), "is_classification": s.is_classification} for s in self.examples]
        text = self.sorting.render(demonstrations=shown, instruction=task.bare.instruction)
        return self.asking.request(
            text.strip(),
            self.section.classification.to_sampling(),
            stop=("\n", "Task:") if self.asking.kind == "completion" else (),
            purpose="classification",
            round=task.bare.round,
            index=task.item,
            prompt_fingerprint=self.sorting.fingerprint,
        )

    def _sorted(self, task: _Task, question: Request, reply: Completion) -> _Task | ParseFailure:
        answer = parse_classification(reply.text)
        if answer is None:
            return ParseFailure(question.id, 0, "neither_yes_nor_no", reply.text[:200])
        bare = replace(
            task.bare, is_classification=answer, cost=task.bare.cost + reply.cost, via=(task.bare.request_id, question.id)
        )
        return _Task(bare, task.item, answer)

    # --- stages 3 and 4

    def _demand(self, task: _Task) -> Request:
        prompt = self.output_first if task.is_classification else self.input_first
        text = prompt.render(instruction=task.bare.instruction, count=self.section.instances_per_task)
        return self.asking.request(
            prose(text),
            self.section.instances.to_sampling(),
            stop=("\nTask:",),
            purpose="instances",
            round=task.bare.round,
            index=task.item,
            prompt_fingerprint=prompt.fingerprint,
        )

    def _instances(self, task: _Task, demand: Request, reply: Completion) -> list[Item]:
        found, failures = parse_instances(reply.text, reply.finish_reason, demand, is_classification=task.is_classification)
        kept, refused = self._tidied(task, found, demand)
        share = (task.bare.cost + reply.cost) / len(kept) if kept else 0.0
        out: list[Item] = [*failures, *refused]
        for place, instance in enumerate(kept):
            out.append(
                replace(
                    task.bare,
                    id=f"{task.bare.round}-{task.bare.id.split('-')[1]}-{task.item + place}",
                    item=task.item + place,
                    request_id=demand.id,
                    input=instance.input,
                    output=instance.output,
                    group=task.bare.id,
                    cost=share,
                )
            )
        return out

    def _tidied(self, task: _Task, found: Sequence[Instance], demand: Request) -> tuple[list[Instance], list[ParseFailure]]:
        """Stage 4: spoilt and repeated instances out, all of them if they contradict each other, at most so many kept."""
        kept, spoilt = tidy(found)
        refused = [ParseFailure(demand.id, found.index(i), code, f"{i.input[:100]} | {i.output[:100]}") for i, code in spoilt]
        rng = self.asking.rng(task.bare.round, task.bare.id)
        if len(kept) > self.section.instances_per_task:
            kept = [kept[i] for i in sorted(rng.sample(range(len(kept)), self.section.instances_per_task))]
        if self.section.augment:
            kept = [Instance(vary_input(i.input, rng), i.output) for i in kept]
        return kept, refused


def _first_of_groups(rows: Sequence[Candidate]) -> list[Candidate]:
    """One row per instruction."""
    return list({row.group or row.id: row for row in reversed(rows)}.values())[::-1]


def _one_line(instruction: str) -> str:
    """As the numbered list shows it: white space collapsed, no colon at the end."""
    return " ".join(instruction.split()).rstrip(":：")
