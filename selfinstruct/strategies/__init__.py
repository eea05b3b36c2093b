"""Methods: how seeds become requests, and replies candidates. ``base`` says what a strategy is."""

from __future__ import annotations

from selfinstruct.records import SeedTask
from selfinstruct.strategies.base import Asking, Strategy
from selfinstruct.strategies.sections import AlpacaSection, ClassicSection, StrategySection


def make_strategy(section: StrategySection, asking: Asking, seeds: list[SeedTask]) -> Strategy:
    """The strategy of a recipe's section.

    Raises:
        InputError: seeds or prompts that it cannot work with.
    """
    if isinstance(section, AlpacaSection):
        from selfinstruct.strategies.alpaca import Alpaca

        return Alpaca(section, asking, seeds)
    if isinstance(section, ClassicSection):
        from selfinstruct.strategies.classic import Classic

        return Classic(section, asking, seeds)
    from selfinstruct.strategies.evolve import Evolve

    return Evolve(section, asking, seeds)
