"""A check on the models: what each tier really earned against what was forecast for it.

Acceptance and cost follow a change within tens of rounds, and robust means do not see rare long
pauses of one depth. A tier's bias is its realised over its forecast tokens per second; comparing
biases rather than raw rates keeps a change of traffic from being blamed on a depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MEMORY = 64.0
"""Rounds after which a round weighs 1/e."""
EVIDENCE = 16.0
"""Recent rounds that a tier needs before its bias counts."""
PRIOR_ROUNDS = 4.0
"""Rounds without bias that are added to a tier's record."""
MARGIN = 0.05
SCATTER = 1.6
"""Two standard deviations of one request's tokens per round, relative to their mean."""
HOLD_ROUNDS = 48
CHECK_ROUNDS = 8


class Guard:
    """Where another tier earns clearly more than the held one once both are corrected for their
    bias, it is held instead for a while. Watches the present bucket of batch sizes."""

    def __init__(self, tiers: tuple[int, ...]):
        self._tiers = tiers
        self._bucket = -1
        self._age = 0
        self._tier = self._left = 0
        self._keep = math.exp(-1.0 / MEMORY)
        self.holds = 0
        self._restart()

    def _restart(self) -> None:
        zeros = [0.0] * len(self._tiers)
        self._rounds, self._requests, self._value, self._time = ([*zeros] for _ in range(4))

    def update(self, bucket: int, steps: int, requests: int, value: float, time: float) -> None:
        """``value`` and ``time``: a round's realised tokens and seconds, relative to forecast."""
        if bucket != self._bucket:
            self._bucket, self._left = bucket, 0
            self._restart()
        tier = self._tiers.index(steps)
        self._age += 1
        news = (self._rounds, 1.0), (self._requests, requests), (self._value, value)
        for record, new in (*news, (self._time, time)):
            record[:] = [old * self._keep for old in record]
            record[tier] += new

    def overrule(self, bucket: int, held: int, rates: Sequence[float]) -> int | None:
        """The tier's index to run instead of ``held``, given every tier's forecast rate."""
        if bucket != self._bucket:
            return None
        if self._left == 0 and self._age % CHECK_ROUNDS == 0 and self._rounds[held] >= EVIDENCE:
            self._check(held, [rate * self._bias(i) for i, rate in enumerate(rates)])
        if self._left == 0:
            return None
        self._left -= 1
        return self._tier

    def _bias(self, tier: int) -> float:
        return (self._value[tier] + PRIOR_ROUNDS) / (self._time[tier] + PRIOR_ROUNDS)

    def _check(self, held: int, rates: Sequence[float]) -> None:
        known = [i for i, rounds in enumerate(self._rounds) if rounds >= EVIDENCE]
        best = max(known, key=rates.__getitem__)
        margin = MARGIN + SCATTER * math.sqrt(1 / self._requests[best] + 1 / self._requests[held])
        if rates[best] > rates[held] * (1.0 + margin):
            self.holds += 1
            self._tier, self._left = best, HOLD_ROUNDS
