"""SGLang's proposed throughput-aware rule, restated.

Source: sgl-project/sglang pull request 28045 (open in 2026-11), as described there:

    score(S) = (1 + sum over i <= S of p[i]) / cost(batch size, S)

p[i] is the share of requests whose draft i was accepted over the last 20 batches, of all batch
sizes together; positions above the running S are extrapolated geometrically and forgotten when S
shrinks. Decided anew every 10 batches, never 0, and nothing deeper is ever tried out. (A later
revision decides every 5 batches and asks for 10 % more to switch: ``interval``, ``hysteresis``.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean

from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.prior import CostPrior

WINDOW = 20


class ThroughputAwarePolicy:
    """``cost`` stands for the rule's start-up profile: the row of the nearest batch size counts."""

    name = "throughput_aware"

    def __init__(
        self,
        candidate_steps: Sequence[int],
        initial_steps: int,
        cost: CostPrior,
        interval: int = 10,
        hysteresis: float = 0.0,
    ):
        self.candidate_steps = tuple(candidate_steps)
        self._cost = cost
        self._tiers = [steps for steps in self.candidate_steps if steps] or [0]
        self._steps = min(self._tiers, key=lambda steps: abs(steps - initial_steps))
        self._interval, self._hysteresis = interval, hysteresis
        depth = self.candidate_steps[-1]
        self._windows: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(depth)]
        self._batches = 0
        self._scores: dict[int, float] = {}

    def decide(self, batch: Batch) -> Decision:
        if self._batches >= self._interval:
            self._batches = 0
            self._decide_anew(batch.size)
        return Decision(self._steps, "score")

    def _decide_anew(self, size: int) -> None:
        rates = self._rates()
        times = self._cost.at(size)
        if not rates or not all(steps in times for steps in self._tiers):
            return
        self._scores = {k: (1.0 + sum(rates[:k])) / times[k] for k in self._tiers}
        best = max(self._tiers, key=self._scores.__getitem__)
        if self._scores[best] <= self._scores[self._steps] * (1.0 + self._hysteresis):
            return
        for window in self._windows[best : self._steps]:
            window.clear()
        self._steps = best

    def _rates(self) -> list[float]:
        """p[1..depth], the tail beyond what is measured continued geometrically; [] before any."""
        rates = [fmean(window) for window in self._windows[: self._steps] if window]
        if not rates:
            return []
        ratio = rates[-1] / rates[-2] if len(rates) > 1 and rates[-2] > 0 else rates[-1]
        while len(rates) < len(self._windows):
            rates.append(rates[-1] * min(ratio, 1.0))
        return rates

    def observe(self, outcome: Round) -> None:
        correct = outcome.num_correct_drafts
        if not len(correct):
            return
        for i in range(min(outcome.num_steps, len(self._windows))):
            self._windows[i].append(sum(c > i for c in correct) / len(correct))
        self._batches += 1

    def snapshot(self) -> dict[str, object]:
        return {
            "num_steps": self._steps,
            "acceptance": [round(rate, 4) for rate in self._rates()],
            "scores": {str(k): round(score, 3) for k, score in self._scores.items()},
        }

    def explain(self, batch: Batch) -> dict[str, object]:
        return self.snapshot()
