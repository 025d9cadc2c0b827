"""A check on the models: realised tokens per second of each tier against those of the policy."""

from __future__ import annotations

import math

MEMORY = 64.0
"""Rounds after which a round weighs 1/e."""
EVIDENCE = 16.0
"""Recent rounds that a tier needs before its rate counts."""
MARGIN = 0.05
HOLD_ROUNDS = 48


class Guard:
    """Where one tier alone realised clearly more than all rounds together, whatever the models
    say, that tier is held for a while. Watches one bucket of batch sizes, the present one."""

    def __init__(self, tiers: tuple[int, ...]):
        self._tiers = tiers
        self._bucket = -1
        self._left = 0
        self._tier = tiers[0]
        self.holds = 0
        self._restart()

    def _restart(self) -> None:
        self._rounds = dict.fromkeys(self._tiers, 0.0)
        self._tokens = dict.fromkeys(self._tiers, 0.0)
        self._times = dict.fromkeys(self._tiers, 0.0)

    def held(self, bucket: int) -> int | None:
        """The tier to run instead of the policy's choice; counts down by one round."""
        if self._left == 0 or bucket != self._bucket:
            return None
        self._left -= 1
        return self._tier

    def update(self, bucket: int, tier: int, tokens: float, time: float) -> None:
        if bucket != self._bucket:
            self._bucket, self._left = bucket, 0
            self._restart()
        keep = math.exp(-1.0 / MEMORY)
        for sums in (self._rounds, self._tokens, self._times):
            for each in self._tiers:
                sums[each] *= keep
        self._rounds[tier] += 1.0
        self._tokens[tier] += tokens
        self._times[tier] += time
        if self._left == 0:
            self._check()

    def _check(self) -> None:
        known = [tier for tier in self._tiers if self._rounds[tier] >= EVIDENCE]
        if len(known) < 1:
            return
        best = max(known, key=lambda tier: self._tokens[tier] / self._times[tier])
        rate = self._tokens[best] / self._times[best]
        realised = sum(self._tokens.values()) / sum(self._times.values())
        # tokens of a round scatter about as much as their mean for one request: 2 standard errors
        margin = MARGIN + 1.2 / math.sqrt(self._rounds[best])
        if rate > realised * (1.0 + margin):
            self.holds += 1
            self._tier, self._left = best, HOLD_ROUNDS
