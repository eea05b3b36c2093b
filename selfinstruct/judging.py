"""A round's items through the filters, in order; the teacher's own score is asked for what the filters before it let pass."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from selfinstruct.filters.chain import CriticFilter, FilterChain, make_chain
from selfinstruct.prompts import load_prompt
from selfinstruct.recipe import Recipe
from selfinstruct.records import Candidate, Completion, ParseFailure, Request, Sampling, SeedTask, Verdict
from selfinstruct.store import TARGET, Judged
from selfinstruct.strategies.base import Asking, Item, Reply, prose

_SCORE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?![\w.]*\d)")
_CRITIC_TOKENS = 16


def read_score(text: str) -> float | None:
    """The number that a critic's reply consists of or begins with; None for several different ones ("3 or 4") and for none.

    ``4``, ``4/5`` and ``Score: 4.5`` are scores.
    """
    found = _SCORE.findall(re.sub(r"(\d)\s*/\s*\d+", r"\1", text))
    return float(found[0]) if len(set(found)) == 1 else None


class Judge:
    """Args: the filters over their pool; the critic's section and prompt, if there is one."""

    def __init__(self, chain: FilterChain, asking: Asking, critic: CriticFilter | None = None) -> None:
        self.chain, self.asking, self.critic = chain, asking, critic
        self.prompt = load_prompt(critic.prompt) if critic is not None else None

    def prompts(self) -> dict[str, str]:
        """Name -> fingerprint of the critic's prompt."""
        return {self.prompt.name: self.prompt.fingerprint} if self.prompt is not None else {}

    def files(self) -> tuple[str, ...]:
        """Files that verdicts depend on."""
        return self.chain.files()

    def screen(self, candidate: Candidate) -> Verdict | None:
        """The refusal that the instruction alone is enough for, or None."""
        return self.chain.screen(candidate)

    def restore(self, rows: Sequence[Candidate], index: Path) -> bool:
        """Take in what an earlier process accepted; whether the file was of use, or the index had to be built again."""
        return self.chain.restore(rows, index)

    def save(self, index: Path) -> None:
        """Write what :meth:`restore` would else have to build."""
        self.chain.save(index)

    async def judge(
        self, items: Sequence[Item], room: int, ask: Callable[[Sequence[Request]], Awaitable[list[Reply]]]
    ) -> list[Judged]:
        """Verdicts over a round's items, in their order.

        Args:
            items: of the round.
            room: rows still wanted; a sound candidate behind the last of them is refused as surplus.
            ask: the teacher, for the critic.

        Returns:
            The items, candidates with their verdicts.
        """
        scores = await self._scores([item for item in items if isinstance(item, Candidate)], ask)
        out: list[Judged] = []
        for item in items:
            if isinstance(item, ParseFailure):
                out.append(item)
                continue
            verdict = self.chain.judge(item, scores.get(item.id), keep=room > 0)
            if verdict.accepted:
                room -= 1
                if room < 0:
                    verdict = Verdict(candidate_id=item.id, accepted=False, filter=TARGET, reason="surplus")
            out.append((item, verdict))
        return out

    async def _scores(
        self, candidates: Sequence[Candidate], ask: Callable[[Sequence[Request]], Awaitable[list[Reply]]]
    ) -> dict[str, dict[str, float | None]]:
        """The critic's score of each candidate that may reach it; None for a reply that is no score, and for no reply."""
        if self.critic is None:
            return {}
        asked = [candidate for candidate in candidates if self.chain.needs_critic(candidate)]
        replies = await ask([self._question(candidate) for candidate in asked])
        return {
            candidate.id: {"critic": read_score(reply.text) if isinstance(reply, Completion) else None}
            for candidate, reply in zip(asked, replies, strict=True)
        }

    def _question(self, candidate: Candidate) -> Request:
        assert self.prompt is not None
        text = self.prompt.render(instruction=candidate.instruction, input=candidate.input, output=candidate.output)
        sampling = Sampling(max_tokens=_CRITIC_TOKENS, temperature=0.0)
        about: dict[str, Any] = {"round": candidate.round, "index": candidate.item, "demonstrations": (candidate.id,)}
        return self.asking.request(prose(text), sampling, purpose="critic", prompt_fingerprint=self.prompt.fingerprint, **about)


def make_judge(recipe: Recipe, asking: Asking, seeds: Sequence[SeedTask]) -> Judge:
    """The filters of a recipe over the pool of its seeds.

    Raises:
        InputError: the critic's prompt, or an evaluation set, cannot be read.
    """
    critic = next((section for section in recipe.filters if isinstance(section, CriticFilter)), None)
    return Judge(make_chain(recipe.filters, seeds), asking, critic)
