"""A synthetic engine: true survival per phase, requests that differ, costs with noise.

Policies see noisy rounds; they are scored by expected tokens and seconds of what they chose, so
that a comparison needs no thousand seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_speckv.policy.base import Batch, Round, StepPolicy


@dataclass(frozen=True)
class Cost:
    """Seconds: V (1 + width B (k + 1)) + X + max(k - 1, 0) D."""

    verify: float = 0.040
    width: float = 0.04
    extend: float = 0.003
    draft: float = 0.0025

    def seconds(self, size: int, steps: int) -> float:
        verify = self.verify * (1.0 + self.width * (size * (steps + 1) - 1))
        return verify + self.extend + max(steps - 1, 0) * self.draft


@dataclass(frozen=True)
class Phase:
    rounds: int
    size: int
    conditional: Sequence[float] = (0.55, 0.55, 0.53, 0.56, 0.55)
    """P(draft i accepted | those before); the last one holds for all deeper positions."""
    cost: Cost = Cost()


@dataclass(frozen=True)
class Noise:
    jitter: float = 0.12
    spikes: float = 0.03
    """Share of rounds that take twice as long."""
    spread: float = 0.5
    """Standard deviation of a request's own acceptance, in log-odds."""
    drift: float = 0.0
    """Relative amplitude of a slow sine common to all depths."""
    lag: int = 0
    unclean: float = 0.05
    """Share of rounds without a time."""
    content: float = 0.0
    """Standard deviation of what a request's acceptance has of this round alone, in log-odds."""
    signal: str = ""
    """What ``first_probs`` say of position one's acceptance: "true", "inverted" (one minus it),
    "random" or, where empty, nothing."""


@dataclass
class Result:
    """``tokens``, ``seconds`` and ``work`` (request-rounds) are per phase."""

    work: list[int]
    tokens: list[float]
    seconds: list[float]
    steps: list[int]
    reasons: list[str]

    @property
    def rate(self) -> float:
        """Tokens per second over phases of fixed work. (With a fixed number of rounds instead,
        running slowly where tokens are cheap would count as a merit.)"""
        phases = zip(self.work, self.tokens, self.seconds, strict=True)
        return sum(self.work) / sum(work * time / tokens for work, tokens, time in phases)


class Engine:
    """One run over the phases; requests live a random number of rounds, the same for every
    policy."""

    def __init__(self, phases: Sequence[Phase], noise: Noise = Noise(), seed: int = 0):
        self.phases, self.noise = phases, noise
        self._requests = np.random.default_rng([seed, 1])
        self._rng = np.random.default_rng([seed, 2])

    def run(self, policy: StepPolicy) -> Result:
        result, late = Result([], [], [], [], []), []
        n = 0
        for phase in self.phases:
            result.work.append(phase.rounds * phase.size)
            result.tokens.append(0.0)
            result.seconds.append(0.0)
            effects = self._requests.normal(0, self.noise.spread, phase.size)
            for _ in range(phase.rounds):
                ended = self._requests.random(phase.size) < 1 / 60
                fresh = self._requests.normal(0, self.noise.spread, phase.size)
                effects = np.where(ended, fresh, effects)
                now = effects + self._requests.normal(0, self.noise.content, phase.size)
                probs = self._first_probs(phase, now)
                decision = policy.decide(Batch(phase.size, probs))
                late.append(self._round(phase, now, decision.num_steps, n, result, probs))
                result.reasons.append(decision.reason)
                if len(late) > self.noise.lag:
                    policy.observe(late.pop(0))
                n += 1
        return result

    def _first_probs(self, phase: Phase, effects: np.ndarray) -> np.ndarray | None:
        first = _accept(phase.conditional, effects, 1)[:, 0]
        if self.noise.signal == "random":
            return self._requests.random(phase.size)
        return {"true": first, "inverted": 1.0 - first}.get(self.noise.signal)

    def _round(
        self,
        phase: Phase,
        effects: np.ndarray,
        steps: int,
        n: int,
        result: Result,
        first_probs: np.ndarray | None,
    ) -> Round:
        accept = _accept(phase.conditional, effects, steps)
        drift = 1.0 + self.noise.drift * np.sin(n / 60.0)
        seconds = phase.cost.seconds(phase.size, steps) * drift
        result.tokens[-1] += phase.size + float(np.cumprod(accept, axis=1).sum())
        result.seconds[-1] += seconds
        result.steps.append(steps)
        correct = np.cumprod(self._rng.random(accept.shape) < accept, axis=1).sum(axis=1)
        clean = self._rng.random() >= self.noise.unclean
        time = self._measured(seconds) if clean else None
        return Round(steps, phase.size, correct.tolist(), time, first_probs)

    def _measured(self, seconds: float) -> float:
        spike = 2.0 if self._rng.random() < self.noise.spikes else 1.0
        return float(seconds * spike * np.exp(self._rng.normal(0, self.noise.jitter)))


def _accept(conditional: Sequence[float], effects: np.ndarray, steps: int) -> np.ndarray:
    """P(accept) of shape (requests, steps)."""
    base = [conditional[min(i, len(conditional) - 1)] for i in range(steps)]
    odds = np.log(np.array(base) / (1 - np.array(base) + 1e-12) + 1e-12)
    return 1.0 / (1.0 + np.exp(-(odds[None, :] + effects[:, None])))


def versus_best_static(
    create: Callable[[], StepPolicy],
    static: Callable[[int], StepPolicy],
    phases: Sequence[Phase],
    noise: Noise = Noise(),
    seed: int = 0,
) -> float:
    """Rate of a policy over the rate of the best single tier on the same trace."""
    policy = create()
    rates = [
        Engine(phases, noise, seed).run(static(steps)).rate for steps in policy.candidate_steps
    ]
    return Engine(phases, noise, seed).run(policy).rate / max(rates)


WEAK, STRONG, USELESS = (0.45, 0.45, 0.4, 0.4), (0.9, 0.9, 0.88, 0.85), (0.02, 0.02)
_NARROW = Cost(width=0.02)
TRACES: dict[str, list[Phase]] = {
    "steady": [Phase(300, 1)],
    "phases": [Phase(150, 1, p, _NARROW) for p in (STRONG, WEAK, STRONG)],
    "batched phases": [Phase(150, 4, p, _NARROW) for p in (STRONG, WEAK, STRONG)],
    "load": [Phase(150, size, STRONG) for size in (1, 32, 2)],
    "useless draft": [Phase(300, 4, USELESS)],
    "perfect draft": [Phase(300, 1, (1.0,), _NARROW)],
    "inverted": [Phase(300, 4, (0.3, 0.9, 0.95, 0.98), Cost(width=0.01))],
    "milliseconds": [Phase(300, 8, STRONG, Cost(0.002, 0.01, 0.0002, 0.0003))],
}
