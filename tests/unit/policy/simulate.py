"""A synthetic engine: true survival per phase, requests that differ, costs with noise.

Policies see noisy rounds; they are scored by expected tokens and seconds of what they chose, so
that a comparison needs no thousand seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang_speckv.policy.base import Batch, Round, StepPolicy
from sglang_speckv.replay.walk import drafted


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
    """What the draft's top-1 probabilities, ``first_probs`` and ``signals``, say of acceptance at
    their positions: "true", "inverted" (one minus it), "random" or, where empty, nothing."""


@dataclass
class Result:
    """Per phase: ``work`` (request-rounds), ``tokens`` and ``seconds`` of what was chosen, and
    those of each depth kept throughout, ``fixed_tokens`` and ``fixed_seconds`` [depths]."""

    work: list[int] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    fixed_tokens: list[np.ndarray] = field(default_factory=list)
    fixed_seconds: list[np.ndarray] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second over phases of fixed work. (With a fixed number of rounds instead,
        running slowly where tokens are cheap would count as a merit.)"""
        return self._rate(self.tokens, self.seconds)

    def fixed_rate(self, steps: int) -> float:
        """That of one depth on the same requests."""
        columns = self.fixed_tokens, self.fixed_seconds
        return self._rate(*([row[steps] for row in column] for column in columns))

    def _rate(self, tokens: list[float], seconds: list[float]) -> float:
        phases = zip(self.work, tokens, seconds, strict=True)
        return sum(self.work) / sum(work * time / made for work, made, time in phases)


class Engine:
    """One run over the phases; requests live a random number of rounds, the same for every
    policy."""

    def __init__(self, phases: Sequence[Phase], noise: Noise = Noise(), seed: int = 0):
        self.phases, self.noise = phases, noise
        self._requests = np.random.default_rng([seed, 1])
        self._rng = np.random.default_rng([seed, 2])

    def run(self, policy: StepPolicy) -> Result:
        result, late = Result(), []
        depth = max(1, *policy.candidate_steps)
        n = 0
        for phase in self.phases:
            result.work.append(phase.rounds * phase.size)
            for sums in (result.tokens, result.seconds):
                sums.append(0.0)
            for sums in (result.fixed_tokens, result.fixed_seconds):
                sums.append(np.zeros(depth + 1))
            odds = _log_odds(phase.conditional, depth)
            times = np.array([phase.cost.seconds(phase.size, k) for k in range(depth + 1)])
            effects = self._requests.normal(0, self.noise.spread, phase.size)
            for _ in range(phase.rounds):
                ended = self._requests.random(phase.size) < 1 / 60
                fresh = self._requests.normal(0, self.noise.spread, phase.size)
                effects = np.where(ended, fresh, effects)
                now = effects + self._requests.normal(0, self.noise.content, phase.size)
                accept = 1.0 / (1.0 + np.exp(-(odds + now[:, None])))
                told = self._top1_probs(accept)
                decision = policy.decide(Batch(phase.size, None if told is None else told[:, 0]))
                drift = 1.0 + self.noise.drift * np.sin(n / 60.0)
                probs = np.empty((phase.size, 0)) if told is None else told
                steps, widths = drafted(policy, decision, probs)  # a cut saves no time here
                _score(result, accept, times * drift, steps)
                result.reasons.append(decision.reason)
                stopped = steps < decision.num_steps
                late.append(self._round(accept, times * drift, steps, told, stopped, widths))
                if len(late) > self.noise.lag:
                    policy.observe(late.pop(0))
                n += 1
        return result

    def _top1_probs(self, accept: np.ndarray) -> np.ndarray | None:
        """What the draft says of itself at positions that are accepted with these probabilities."""
        if self.noise.signal == "random":
            return self._requests.random(accept.shape)
        return {"true": accept, "inverted": 1.0 - accept}.get(self.noise.signal)

    def _round(
        self,
        accept: np.ndarray,
        times: np.ndarray,
        steps: int,
        told: np.ndarray | None,
        stopped: bool,
        widths: np.ndarray | None,
    ) -> Round:
        size = len(accept)
        hits = self._rng.random((size, steps)) < accept[:, :steps]
        counts = np.cumprod(hits, axis=1).sum(axis=1)
        cut = 0
        if widths is not None:
            counts, cut = np.minimum(counts, widths), int(size * steps - widths.sum())
        correct = counts.tolist()
        clean = self._rng.random() >= self.noise.unclean
        time = self._measured(times[steps]) if clean else None
        if told is None:
            return Round(steps, size, correct, time)
        signals = np.stack([told[:, :steps], 1.0 - told[:, :steps]], axis=2)
        changes: dict[str, Any] = {"stopped": stopped, "widths": widths, "cut": cut}
        return Round(steps, size, correct, time, told[:, 0], signals, **changes)

    def _measured(self, seconds: float) -> float:
        spike = 2.0 if self._rng.random() < self.noise.spikes else 1.0
        return float(seconds * spike * np.exp(self._rng.normal(0, self.noise.jitter)))


def _log_odds(conditional: Sequence[float], depth: int) -> np.ndarray:
    base = np.array([conditional[min(i, len(conditional) - 1)] for i in range(depth)])
    return np.log(base / (1 - base + 1e-12) + 1e-12)


def _score(result: Result, accept: np.ndarray, times: np.ndarray, steps: int) -> None:
    tokens = np.empty(len(times))
    tokens[0] = len(accept)
    tokens[1:] = len(accept) + np.cumprod(accept, axis=1).sum(axis=0).cumsum()
    result.fixed_tokens[-1] += tokens
    result.fixed_seconds[-1] += times
    result.tokens[-1] += float(tokens[steps])
    result.seconds[-1] += float(times[steps])
    result.steps.append(steps)


def versus_best_static(
    create: Callable[[], StepPolicy],
    phases: Sequence[Phase],
    noise: Noise = Noise(),
    seed: int = 0,
) -> float:
    """Rate of a policy over the rate of the best single tier on the same trace."""
    policy = create()
    result = Engine(phases, noise, seed).run(policy)
    return result.rate / max(map(result.fixed_rate, policy.candidate_steps))


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
