"""A check on the models: what each tier really earned against what was forecast for it.

Acceptance and cost follow a change within tens of rounds, and robust means do not see rare long
pauses of one depth. A tier's bias is its realised over its forecast tokens per second; comparing
biases rather than raw rates keeps a change of traffic from being blamed on a depth.
"""

from __future__ import annotations

import math

from sglang_speckv.policy.plan import Plan

MEMORY = 64.0
"""Rounds after which a round weighs 1/e."""
GROWTH = math.exp(1.0 / MEMORY)
EVIDENCE = 16.0
"""Recent rounds that a tier needs before its bias counts."""
PRIOR_ROUNDS = 4.0
"""Rounds without bias that are added to a tier's record."""
MARGIN = 0.05
"""Relative gain that a hold has to promise beyond what scatter explains."""
SCATTER = 1.6
"""Two standard deviations of one request's tokens per round, relative to their mean."""
HOLD_ROUNDS = 48
"""Long enough to earn, short enough to be wrong."""
CHECK_ROUNDS = 8
"""Rounds from one check to the next."""


class Guard:
    """Where one tier kept for good would earn clearly more than the choices that are made, both
    corrected for their bias, it is held instead for a while. Of one load: neither choices nor
    biases of another say what is earned at this one."""

    def __init__(self, tiers: tuple[int, ...]):
        self._tiers = tiers
        self._unchecked = 0
        self._tier = self._left = 0
        self._weight = 1.0  # of a round now; it grows, which is cheaper than all others fading
        self.holds = 0
        zeros = [0.0] * len(tiers)
        self._records = [[*zeros] for _ in range(5)]
        self._rounds, self._requests, self._value, self._time, self._chosen = self._records

    def update(self, steps: int, requests: int, value: float, time: float) -> None:
        """``value`` and ``time``: a round's realised tokens and seconds, relative to forecast."""
        tier = self._tiers.index(steps)
        self._unchecked += 1
        self._weight *= GROWTH
        weight = self._weight
        self._rounds[tier] += weight
        self._requests[tier] += weight * requests
        self._value[tier] += weight * value
        self._time[tier] += weight * time

    def overrule(self, chosen: int) -> int | None:
        """The tier's index to run instead of ``chosen``."""
        self._chosen[chosen] += self._weight
        if self._left == 0:
            return None
        self._left -= 1
        return self._tier

    def _bias(self, tier: int) -> float:
        return (self._value[tier] + PRIOR_ROUNDS) / (self._time[tier] + PRIOR_ROUNDS)

    def _fade(self) -> None:
        for record in self._records:
            record[:] = [value / self._weight for value in record]
        self._weight, self._unchecked = 1.0, 0

    def check(self, plan: Plan) -> None:
        """Start a hold where one is due."""
        if self._unchecked < CHECK_ROUNDS:
            return
        self._fade()
        if self._left:
            return
        known = [i for i, rounds in enumerate(self._rounds) if rounds >= EVIDENCE]
        chosen = sum(self._chosen[i] for i in known)
        if not known or chosen < 0.5 * sum(self._chosen):
            return
        bias = {i: self._bias(i) for i in known}
        own = plan.rate * sum(self._chosen[i] * bias[i] for i in known) / chosen
        best = max(known, key=lambda i: plan.rates[i] * bias[i])
        requests = sum(self._chosen[i] * self._requests[i] for i in known) / chosen
        margin = MARGIN + SCATTER * math.sqrt(1 / self._requests[best] + 1 / requests)
        if plan.rates[best] * bias[best] > own * (1.0 + margin):
            self.holds += 1
            self._tier, self._left = best, HOLD_ROUNDS
