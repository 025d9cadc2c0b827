"""What was served, counted truly: by the tier that produced each round, live requests only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.policy.base import Round
from sglang_speckv.policy.checks import is_share, is_time

RECENT_ROUNDS = 1024
MOST_ANSWERS = 4096
"""That ended and were not read yet."""


class Counters:
    """Counts since start-up. ``outcomes[w][c]``: request-rounds in which ``w`` drafts were verified
    and ``c`` of them correct; everything about acceptance follows from it. With trees ``w`` is the
    tier, whose shape says how many were verified."""

    def __init__(self, config: SpecKVConfig) -> None:
        self._names = {tier: config.name_of(tier) for tier in config.tiers}
        self.rounds = dict.fromkeys(config.tiers, 0)
        shapes = {w: config.shape_of(w) for w in range(max(config.tiers) + 1)}
        self.outcomes = {w: [0] * (shape.num_steps + 1) for w, shape in shapes.items()}
        self._verified = {w: shape.drafts for w, shape in shapes.items()}
        self.exact_rounds: dict[str, int] = {}
        """Request-rounds that took no drafts, by the parameter that kept them from it."""
        self.drafted_tokens = 0
        self.stopped_rounds = 0
        self.decisions = 0
        self.decision_seconds = 0.0
        self.slowest_decision_seconds = 0.0
        self.switches = 0
        self.switch_seconds = 0.0
        self.draft_catch_ups = 0
        self.fallbacks = 0
        self.odd_signals = 0
        """Drafts whose own probability is unknown or impossible: no number from 0 to 1."""
        self.odd_times = 0
        """Rounds whose measured time is impossible: zero, negative or many days."""
        self.answers: deque[float] = deque(maxlen=MOST_ANSWERS)
        """The share of its verified drafts that was accepted, of each answer that ended; whoever
        reads them takes them out."""
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=RECENT_ROUNDS)
        self._started = time.perf_counter()

    def count(self, outcome: Round) -> None:
        self.rounds[outcome.num_steps] += 1
        self.stopped_rounds += outcome.stopped
        live = len(outcome.num_correct_drafts)
        made = outcome.num_steps if outcome.made is None else outcome.made
        self.drafted_tokens += self._verified[made] * live
        widths = [made] * live if outcome.widths is None else outcome.widths.tolist()
        for width, correct in zip(widths, outcome.num_correct_drafts, strict=True):
            self.outcomes[width][correct] += 1
        self.odd_times += outcome.seconds is not None and not is_time(outcome.seconds)
        if outcome.signals is not None:
            known = is_share(outcome.signals[..., 0])
            self.odd_signals += known.size - int(np.count_nonzero(known))
        elapsed = time.perf_counter() - self._started
        self._recent.append((elapsed, outcome.num_steps, outcome.batch_size))

    def count_exact(self, names: Sequence[str]) -> None:
        for name in names:
            self.exact_rounds[name] = self.exact_rounds.get(name, 0) + 1

    def switched(self, seconds: float) -> None:
        self.switches += 1
        self.switch_seconds += seconds

    def decided(self, seconds: float) -> None:
        self.decisions += 1
        self.decision_seconds += seconds
        self.slowest_decision_seconds = max(self.slowest_decision_seconds, seconds)

    @property
    def request_rounds(self) -> int:
        return sum(map(sum, self.outcomes.values()))

    @property
    def proposed_drafts(self) -> int:
        """Drafts that were verified. The metric of this name counts those that were judged, which
        are fewer: see :meth:`positions`."""
        return sum(self._verified[w] * sum(counts) for w, counts in self.outcomes.items())

    @property
    def correct_drafts(self) -> int:
        return sum(
            correct * n for counts in self.outcomes.values() for correct, n in enumerate(counts)
        )

    def positions(self) -> list[tuple[int, int]]:
        """Per draft position: how often it was judged (all before it were correct), and correct."""
        table = []
        for position in range(1, max(map(len, self.outcomes.values()))):
            deep = [counts for counts in self.outcomes.values() if len(counts) > position]
            judged = sum(sum(counts[position - 1 :]) for counts in deep)
            table.append((judged, sum(sum(counts[position:]) for counts in deep)))
        return table

    def rounds_by_name(self) -> dict[str, int]:
        return {self._names[tier]: count for tier, count in self.rounds.items()}

    def snapshot(self) -> dict[str, Any]:
        proposed, correct = self.proposed_drafts, self.correct_drafts
        return {
            "rounds": self.rounds_by_name(),
            "request_rounds": self.request_rounds,
            "exact_rounds": dict(self.exact_rounds),
            "drafted_tokens": self.drafted_tokens,
            "proposed_drafts": proposed,
            "cut_drafts": self.drafted_tokens - proposed,
            "correct_drafts": correct,
            "accept_rate": correct / proposed if proposed else None,
            "accept_rate_per_position": [
                round(right / judged, 4) if judged else None for judged, right in self.positions()
            ],
            "decisions": self.decisions,
            "decision_microseconds": 1e6 * self.decision_seconds / max(self.decisions, 1),
            "slowest_decision_microseconds": 1e6 * self.slowest_decision_seconds,
            "stopped_rounds": self.stopped_rounds,
            "switches": self.switches,
            "switch_microseconds": 1e6 * self.switch_seconds / max(self.switches, 1),
            "draft_catch_ups": self.draft_catch_ups,
            "fallbacks": self.fallbacks,
            "odd_signals": self.odd_signals,
            "odd_times": self.odd_times,
            "recent": [[round(t, 6), step, size] for t, step, size in self._recent],
        }
