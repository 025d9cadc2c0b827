"""When to try a tier that is not believed best, and how much that may cost."""

from __future__ import annotations

from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.plan import Forecast

BUDGET = 0.007
"""Rounds earned per round: the share of time that probes may lose against the best tier."""
SAVINGS = 3.0
"""Rounds that can be saved up; dearer probes are never made."""
ROUNDS = 2
"""Rounds of one probe."""
PERIOD = 24
"""Rounds from one probe to the next: at most 1 in 12 rounds is a probe, however cheap."""


class Probing:
    """Tries the tier that would win if its doubts were resolved in its favour: deeper than what
    was seen (censoring), long not measured (drift), any at all from 0 (where nothing is learned).

    The expected loss is paid before the probe, so over n rounds probes lose at most
    ``SAVINGS + BUDGET * n`` rounds of the best tier, by the models' estimate.
    """

    def __init__(self) -> None:
        self._credit = SAVINGS / 2
        self._wait = 0
        self._tier = 0
        self._left = 0

    def next(self, forecast: Forecast, held: int, acceptance: Acceptance) -> int | None:
        """The tier's index to run this round instead of ``held``, or None."""
        if self._left:
            self._left -= 1
            return self._tier
        self._credit = min(SAVINGS, self._credit + BUDGET)
        self._wait -= 1
        if self._wait > 0:
            return None
        hoped = acceptance.hoped_accept_lengths(forecast.tiers[held])
        tier = forecast.most_promising(held, hoped, SAVINGS / ROUNDS)
        if tier is None or ROUNDS * forecast.loss(tier) > self._credit:
            return None
        self._credit -= ROUNDS * forecast.loss(tier)
        self._tier, self._left, self._wait = tier, ROUNDS - 1, PERIOD - ROUNDS + 1
        return tier
