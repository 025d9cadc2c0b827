"""What a SpecKV server counts (``internal_states[0]["speckv"]``), and differences of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Counters(msgspec.Struct, frozen=True):
    """Cumulative since start, or what one block added.

    ``rounds`` are decode rounds by num_steps, of trees by shape, ``fallbacks`` those in which the
    policy failed and the launch depth was served; ``recent`` the newest rounds as (seconds since
    start, num_steps or the place of the shape, batch size, and whatever a later version adds).
    """

    rounds: dict[str, int]
    proposed_drafts: int
    correct_drafts: int
    fallbacks: int = 0
    recent: tuple[tuple[float, ...], ...] = ()

    def since(self, before: Counters) -> Counters:
        rounds = {tier: n - before.rounds.get(tier, 0) for tier, n in self.rounds.items()}
        new = sum(rounds.values())
        return Counters(
            rounds,
            self.proposed_drafts - before.proposed_drafts,
            self.correct_drafts - before.correct_drafts,
            self.fallbacks - before.fallbacks,
            self.recent[-new:] if new > 0 else (),
        )

    def __add__(self, other: Counters) -> Counters:
        tiers = self.rounds.keys() | other.rounds.keys()
        return Counters(
            {tier: self.rounds.get(tier, 0) + other.rounds.get(tier, 0) for tier in tiers},
            self.proposed_drafts + other.proposed_drafts,
            self.correct_drafts + other.correct_drafts,
            self.fallbacks + other.fallbacks,
            self.recent + other.recent,
        )

    @property
    def accept_rate(self) -> float | None:
        """Correct / proposed, with what was really proposed; None where nothing was."""
        return self.correct_drafts / self.proposed_drafts if self.proposed_drafts else None

    def shares(self, batch_sizes: tuple[int, int] | None = None) -> dict[str, float]:
        """Part of the rounds by num_steps or shape, ascending. ``batch_sizes``: of batches above
        the first size and up to the second, as far as the newest rounds tell."""
        if batch_sizes is None:
            return shares_of(self.rounds)
        low, high = batch_sizes
        names = sorted(self.rounds, key=_order)
        trees = any("x" in name for name in names)
        found: dict[str, float] = {}
        for _, number, size, *_ in self.recent:
            if low < size <= high:
                name = names[int(number)] if trees else str(int(number))
                found[name] = found.get(name, 0) + 1
        return shares_of(found)


def shares_of(amounts: Mapping[str, float]) -> dict[str, float]:
    """Of their sum, ascending by num_steps, of shapes by their tokens."""
    total = sum(amounts.values())
    return {tier: amounts[tier] / total for tier in sorted(amounts, key=_order) if amounts[tier]}


def _order(name: str) -> list[int]:
    """``3`` by 3, ``3x8`` by 8 and then by 3."""
    return [int(number) for number in reversed(name.split("x"))]


def read_counters(state: dict[str, Any]) -> Counters | None:
    """The counters in one ``internal_states`` entry; None where SpecKV is not active.

    Raises:
        ValueError: they are not what a SpecKV server tells.
    """
    speckv = state.get("speckv")
    if not isinstance(speckv, dict) or speckv.get("active") is not True:
        return None
    try:
        return msgspec.convert(speckv, Counters)
    except msgspec.ValidationError as error:
        raise ValueError(f"its SpecKV counters are unreadable ({error})") from None
