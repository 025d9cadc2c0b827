"""The default policy: the depth with the most tokens per second, at this load, on this machine.

    k* = argmax_k [ sum_r A_r(k) - lambda T(B, k) ]      lambda: tokens/s of the best tier

with A from the acceptance history and T from measured round times. A first look at three tiers,
then: hysteresis in time, probing on a budget, and a guard that compares realised rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.cost import CostModel, bucket_of
from sglang_speckv.policy.guard import Guard
from sglang_speckv.policy.plan import Forecast
from sglang_speckv.policy.probing import Probing

LOOK_ROUNDS = 3
"""Rounds at each tier of the first look."""
PATIENCE = 0.2
"""A switch waits until staying has cost this share of a round: 20 rounds for a gain of 1 %, one
for a gain of 20 %."""
MAX_BATCH = 1 << 20
REASONS = ("launch", "look", "best", "probe", "guard")


class ThroughputPolicy:
    """Reasons: ``launch`` (no round times yet), ``look`` (the first rounds), ``best``, ``probe``
    (a doubtful tier is tried) and ``guard`` (the tier with the best realised rate is held)."""

    name = "throughput"

    def __init__(self, candidate_steps: Sequence[int], initial_steps: int):
        self.candidate_steps = tuple(candidate_steps)
        self._launch = min(self.candidate_steps, key=lambda steps: abs(steps - initial_steps))
        self._look = _first_look(self.candidate_steps, self._launch)
        self._acceptance = Acceptance(self.candidate_steps[-1])
        self._cost = CostModel(self.candidate_steps[-1])
        self._guard = Guard(self.candidate_steps)
        self._probing = Probing()
        self._lengths = self._acceptance.accept_lengths()
        self._forecasts: dict[int, Forecast] = {}
        self._held: dict[int, int] = {}
        self._regret: dict[int, float] = {}
        self._decisions = dict.fromkeys(REASONS, 0)
        self._observed = self._ignored = self._switches = 0
        self._last_size = 1

    def decide(self, batch: Batch) -> Decision:
        num_steps, reason = self._choose(batch.size)
        self._decisions[reason] += 1
        return Decision(num_steps, reason, self._lengths[num_steps])

    def _choose(self, size: int) -> tuple[int, str]:
        if self._look:
            return self._look.pop(), "look"
        if not self._cost.samples or not _is_count(size):
            return self._launch, "launch"
        forecast = self._forecast(size)
        held = self._settle(bucket_of(size), forecast)
        guarded = self._guard.overrule(bucket_of(size), held, forecast.rates)
        if guarded is not None:
            return self.candidate_steps[guarded], "guard"
        probe = self._probing.next(forecast, held, self._acceptance)
        if probe is not None:
            return self.candidate_steps[probe], "probe"
        return self.candidate_steps[held], "best"

    def _settle(self, bucket: int, forecast: Forecast) -> int:
        """The tier held at this batch size, after a switch where staying has cost enough."""
        held = self._held.setdefault(bucket, forecast.best)
        if held == forecast.best:
            self._regret[bucket] = 0.0
            return held
        self._regret[bucket] = self._regret.get(bucket, 0.0) + forecast.loss(held)
        if self._regret[bucket] < PATIENCE:
            return held
        self._switches += 1
        self._regret[bucket] = 0.0
        self._held[bucket] = forecast.best
        return forecast.best

    def _forecast(self, size: int) -> Forecast:
        """Made anew after every learned round, at most once per batch size."""
        if size not in self._forecasts:
            if len(self._forecasts) >= 64:
                self._forecasts.clear()
            self._forecasts[size] = Forecast.of(
                self.candidate_steps, size, self._lengths, self._cost
            )
        return self._forecasts[size]

    def observe(self, outcome: Round) -> None:
        if not self._is_tier(outcome.num_steps) or not _is_count(outcome.batch_size):
            self._ignored += 1
            return
        steps, size, seconds = int(outcome.num_steps), int(outcome.batch_size), outcome.seconds
        self._observed += 1
        self._last_size = size
        requests, tokens = self._acceptance.update(steps, outcome.num_correct_drafts)
        if seconds is not None and _is_time(seconds):
            ratio = self._cost.update(size, steps, float(seconds))
            if requests:
                value = tokens / (requests * self._lengths[steps])
                self._guard.update(bucket_of(size), steps, requests, value, ratio)
        self._lengths = self._acceptance.accept_lengths()
        self._forecasts.clear()
        if self._cost.samples:
            self._forecast(size)  # here, where time is cheaper than in decide

    def _is_tier(self, steps: Any) -> bool:
        return isinstance(steps, Integral) and steps in self.candidate_steps

    def snapshot(self) -> dict[str, object]:
        size = self._last_size
        known = bool(self._cost.samples)
        rate = self._forecast(size).rate / self._cost.level if known else None
        return {
            "survival": [round(s, 4) for s in self._acceptance.survival().tolist()],
            "labels": [round(n, 1) for n in self._acceptance.counts],
            "batch_size": size,
            "round_ms": self._round_ms(size) if known else None,
            "tokens_per_s": None if rate is None else round(rate, 3),
            "level": round(self._cost.level, 4),
            "noise": round(self._cost.noise, 4),
            "rounds": self._observed,
            "timed_rounds": self._cost.samples,
            "ignored_rounds": self._ignored,
            "switches": self._switches,
            "guard_holds": self._guard.holds,
            "decisions": dict(self._decisions),
        }

    def _round_ms(self, size: int) -> dict[str, float]:
        seconds = self._cost.seconds(size)
        return {str(steps): round(1e3 * seconds[steps], 3) for steps in self.candidate_steps}


def _first_look(tiers: tuple[int, ...], launch: int) -> list[int]:
    """The first rounds, last one first: the launch step, about twice as deep, the shallowest."""
    deep = min(tiers, key=lambda steps: abs(steps - 2 * launch - 1))
    order = list(dict.fromkeys((launch, deep, tiers[0])))
    return [steps for steps in reversed(order) for _ in range(LOOK_ROUNDS)]


def _is_count(size: Any) -> bool:
    return isinstance(size, Integral) and 1 <= int(size) <= MAX_BATCH


def _is_time(seconds: Any) -> bool:
    """Also keeps what no clock measures away from the arithmetic; NaN compares false."""
    return isinstance(seconds, int | float | np.floating) and bool(1e-9 < seconds < 1e6)
