"""Alpaca's method: one call shows a few seed tasks and asks for many new ones, instruction, input and output at once.

::

    seeds ──3 drawn──► prompt: tasks 1-3 ──► reply: tasks 4-23 ──► up to 20 candidates

Source: tatsu-lab/stanford_alpaca, ``generate_instruction.py``. Demonstrations come from the seeds alone: what the teacher wrote is never
shown to it again. Differences from the original: marks that prose cannot contain in place of ``###`` and numbers (its stop strings cut
answers that mention "2020."), or a JSON schema; and 20 new tasks, where the original's stop string left at most 16.
"""

from __future__ import annotations

from selfinstruct.parse import TASKS_SCHEMA, parse_tasks
from selfinstruct.prompts import load_prompt, refuse_sentinels
from selfinstruct.records import Candidate, Completion, ParseFailure, Request, SeedTask, canonical
from selfinstruct.strategies.base import Asking, Item, Stage, View, one_instance, prose, shared
from selfinstruct.strategies.sections import AlpacaSection
from sft.errors import InputError

_DRAWS = 1 << 20
"""Room for the draws of a round: the same demonstrations in another round are another request."""


class Alpaca:
    """Args: the section of the recipe, how to ask, and the seeds.

    Raises:
        InputError: fewer seeds than demonstrations, a seed that holds a mark of the format, or a prompt that does not load.
    """

    purpose = "tasks"

    def __init__(self, section: AlpacaSection, asking: Asking, seeds: list[SeedTask]) -> None:
        self.section, self.asking = section, asking
        self.prompt = load_prompt(section.prompt)
        if len(seeds) < section.demonstrations:
            raise InputError(f"{section.demonstrations} demonstrations are wanted but there are {len(seeds)} seeds; add seeds")
        if section.format == "numbered":
            refuse_sentinels((s.id, t) for s in seeds for i in s.instances for t in (s.instruction, i.input, i.output))
        self.first = section.demonstrations + 1
        self.last = section.demonstrations + section.tasks_per_call

    def prompts(self) -> dict[str, str]:
        return {self.prompt.name: self.prompt.fingerprint}

    def requests(self, number: int, view: View) -> list[Request]:
        """Seeds are drawn without repetition within a request; no two requests of a round show the same ones in the same order."""
        rng, drawn, out = self.asking.rng(number), set(), []
        schema = canonical(TASKS_SCHEMA) if self.section.format == "json" else None
        for index in range(self.section.requests_per_round):
            for _ in range(100):  # a handful of seeds may not have that many arrangements: ``draw`` then tells requests apart
                shown = rng.sample(range(len(view.seeds)), self.section.demonstrations)
                if tuple(shown) not in drawn:
                    break
            repeated = tuple(shown) in drawn
            drawn.add(tuple(shown))
            seeds = [view.seeds[i] for i in shown]
            examples = [(seed, one_instance(seed, rng)) for seed in seeds]
            text = self.prompt.render(
                demonstrations=[{"instruction": s.instruction, "input": i.input, "output": i.output} for s, i in examples],
                first=self.first,
                last=self.last,
                count=self.section.tasks_per_call,
            )
            out.append(
                self.asking.request(
                    prose(text),
                    stop=() if schema else (f"<<<TASK {self.last + 1}>>>",),
                    schema=schema,
                    draw=number * _DRAWS + (index if repeated else 0),
                    purpose=self.purpose,
                    round=number,
                    index=index,
                    demonstrations=tuple(seed.id for seed in seeds),
                    prompt_fingerprint=self.prompt.fingerprint,
                )
            )
        return out

    def propose(self, requests: list[Request], view: View) -> Stage:
        replies = yield requests
        items: list[Item] = []
        for request, reply in zip(requests, replies, strict=True):
            if isinstance(reply, Completion):
                found, failures = parse_tasks(reply.text, reply.finish_reason, request, format=self.section.format)
                items += in_order(shared(found, reply, request), failures)
        return items


def in_order(candidates: list[Candidate], failures: list[ParseFailure]) -> list[Item]:
    """Candidates and failures of one completion by their place in it."""
    return sorted([*candidates, *failures], key=lambda item: item.item)
