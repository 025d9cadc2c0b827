"""SGLang's proposed throughput-aware rule, restated.

Source: sgl-project/sglang pull request 28045 (open in 2026-11), as described there:

    score(S) = (1 + sum over i <= S of p[i]) / cost(batch size, S)

p[i]: share of requests whose draft i was accepted over the last 20 batches of any size; above S
extrapolated geometrically and forgotten when S shrinks. Decided every 10 batches, never 0, nothing
deeper is tried out. (A later revision: every 5, for 10 % more: ``interval``, ``hysteresis``.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import fmean

from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.checks import correct_drafts_of, is_count, is_round
from sglang_speckv.policy.cost import CostModel, TimedRound
from sglang_speckv.policy.prior import CostPrior

WINDOW = 20


class ThroughputAwarePolicy:
    """``cost``: the rule's start-up profile; without it times are learned while serving."""

    name = "throughput_aware"

    def __init__(
        self,
        candidate_steps: Sequence[int],
        initial_steps: int,
        cost: CostPrior | None = None,
        interval: int = 10,
        hysteresis: float = 0.0,
    ):
        self.candidate_steps = tuple(candidate_steps)
        self._cost = cost
        self._online = CostModel(self.candidate_steps[-1])
        self._tiers = [steps for steps in self.candidate_steps if steps] or [0]
        self._steps = min(self._tiers, key=lambda steps: abs(steps - initial_steps))
        self._interval, self._hysteresis = interval, hysteresis
        depth = self.candidate_steps[-1]
        self._windows: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(depth)]
        self._batches = 0
        self._scores: dict[int, float] = {}

    def decide(self, batch: Batch) -> Decision:
        if self._batches >= self._interval and is_count(batch.size):
            self._batches = 0
            self._decide_anew(batch.size)
        return Decision(self._steps, "score")

    def _decide_anew(self, size: int) -> None:
        rates, times = self._rates(), self._times(size)
        if not rates or not set(self._tiers) <= set(times):
            return
        self._scores = {k: (1.0 + sum(rates[:k])) / times[k] for k in self._tiers}
        best = max(self._tiers, key=self._scores.__getitem__)
        if self._scores[best] > self._scores[self._steps] * (1.0 + self._hysteresis):
            for window in self._windows[best : self._steps]:
                window.clear()
            self._steps = best

    def _times(self, size: int) -> dict[int, float]:
        if self._cost is not None:
            return self._cost.at(size)
        return dict(enumerate(self._online.times(size))) if self._online.rounds else {}

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
        if not is_round(outcome, self.candidate_steps):
            return
        steps = outcome.num_steps
        correct, _ = correct_drafts_of(outcome.num_correct_drafts, steps)
        if not len(correct):
            return
        for i in range(steps):
            self._windows[i].append(float((correct > i).mean()))
        self._batches += 1
        if self._cost is None:
            self._online.update(outcome.batch_size, steps, outcome.seconds, outcome.asleep)

    def profiled(self, rows: Iterable[TimedRound]) -> None:
        """Round times from a start-up profile."""
        self._online.profiled(rows)

    def snapshot(self) -> dict[str, object]:
        rates = [round(rate, 4) for rate in self._rates()]
        scores = {str(k): round(score, 3) for k, score in self._scores.items()}
        return {"num_steps": self._steps, "acceptance": rates, "scores": scores}
