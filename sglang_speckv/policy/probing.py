"""When to try a tier that is not believed best, and how much that may cost."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_speckv.policy.plan import Plan

BUDGET = 0.003
"""Rounds earned per round: the share of time that probes may lose against the best tier."""
SAVINGS = 2.0
"""Rounds that can be saved up; dearer probes are never made."""
ROUNDS = 2
"""Rounds of one probe."""
PERIOD = 24
"""Rounds from one probe to the next: at most 1 in 12 rounds is a probe, however cheap."""


class Probing:
    """Tries the tier that would win if its doubts were resolved in its favour: deeper than what
    was seen (censoring), long not measured (drift), any at all from 0 (where nothing is learned).

    The expected loss is paid before the probe, so over n rounds probes lose at most
    ``SAVINGS + BUDGET * n`` rounds of the best tier, by the models' estimate. On the demo's traces
    at their true costs twice the budget costs 0.1 to 0.3 % more; with a smaller one it comes back
    from tier 0 later.
    """

    def __init__(self) -> None:
        self._credit = SAVINGS / 2
        self._wait = 0
        self._tier = 0
        self._left = 0
        self._next: tuple[int, float] | None = None
        self._bucket = -1

    def look(self, bucket: int, plan: Plan, hope: Sequence[float], errors: Sequence[float]) -> None:
        """Choose what to try next at this load, if anything; to be called every few rounds."""
        self._turn_to(bucket)
        tier = plan.most_promising(hope, errors, SAVINGS / ROUNDS)
        self._next = None
        if tier is not None:
            waking = plan.waking / plan.times[plan.best]
            self._next = tier, ROUNDS * plan.loss(tier) + waking

    def _turn_to(self, bucket: int) -> None:
        """What was priced at another load is dropped, a probe that has begun too."""
        if bucket != self._bucket:
            self._bucket, self._left, self._next = bucket, 0, None

    def next(self, bucket: int) -> int | None:
        """The tier's index to run this round, at this load, or None."""
        self._turn_to(bucket)
        if self._left:
            self._left -= 1
            return self._tier
        self._credit = min(SAVINGS, self._credit + BUDGET)
        self._wait -= 1
        if self._wait > 0 or self._next is None or self._next[1] > self._credit:
            return None
        self._tier, price = self._next
        self._credit -= price
        self._left, self._wait, self._next = ROUNDS - 1, PERIOD - ROUNDS + 1, None
        return self._tier
