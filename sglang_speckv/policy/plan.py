"""From expected tokens and times to the tier to run, the rate it earns and the tier to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_speckv.policy.cost import CostModel


def best_tier(tokens: Sequence[float], times: Sequence[float]) -> tuple[int, float]:
    """Index of the tier that maximises ``tokens - rate * times``, at the rate it earns itself.

    Dinkelbach's iteration: the rate rises to that of the winner until the winner stays. ``tokens``
    are per round, summed over the batch's requests.
    """
    rate = 0.0
    while True:
        surplus = [n - rate * t for n, t in zip(tokens, times, strict=True)]
        winner = surplus.index(max(surplus))
        earned = tokens[winner] / times[winner]
        if earned <= rate * (1.0 + 1e-9):
            return winner, rate
        rate = earned


@dataclass(slots=True)
class Forecast:
    """Every tier's prospects for one batch size."""

    tiers: tuple[int, ...]
    tokens: list[float]
    times: list[float]
    errors: list[float]
    """Relative standard errors of the times."""
    best: int
    """A tier's index, as everywhere here."""
    rate: float
    rates: list[float]

    @classmethod
    def of(
        cls, tiers: tuple[int, ...], size: int, lengths: Sequence[float], cost: CostModel
    ) -> Forecast:
        all_times, all_errors = cost.times(size)
        tokens = [size * lengths[steps] for steps in tiers]
        times = [all_times[steps] for steps in tiers]
        errors = [all_errors[steps] for steps in tiers]
        rates = [n / t for n, t in zip(tokens, times, strict=True)]
        return cls(tiers, tokens, times, errors, *best_tier(tokens, times), rates)

    def loss(self, tier: int) -> float:
        """What a round of ``tier`` costs against the best one, in rounds of the best one."""
        lost = self.times[tier] - self.tokens[tier] / self.rate
        return max(0.0, lost) / self.times[self.best]

    def most_promising(
        self, held: int, hoped_lengths: Sequence[float], most_loss: float
    ) -> int | None:
        """The tier that beats the held one by most if as much is accepted as hoped and its time
        is one standard error shorter than believed; None where no affordable tier would."""
        promise, found = self.rates[held], None
        for tier, steps in enumerate(self.tiers):
            if tier == held or self.loss(tier) > most_loss:
                continue
            hoped_tokens = hoped_lengths[steps] * self.tokens[0] / hoped_lengths[0]
            hoped = hoped_tokens / (self.times[tier] * (1.0 - min(self.errors[tier], 0.5)))
            if hoped > promise:
                promise, found = hoped, tier
        return found
