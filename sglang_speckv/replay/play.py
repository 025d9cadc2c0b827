"""Runs one policy over recorded rounds, the way the engine would have asked it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_speckv.offline.columns import Columns
from sglang_speckv.policy import Batch, Decision, Round, StepPolicy
from sglang_speckv.replay.rounds import Rounds


@dataclass(frozen=True, eq=False)
class Table:
    """What every tier would have done: arrays [rounds, tiers], see :meth:`Rounds.outcomes`.

    ``noise`` [rounds] multiplies the seconds that a policy is told (never those it is scored by):
    measured over modelled time of the recorded round; NaN where it had no clean time.
    """

    tiers: tuple[int, ...]
    tokens: np.ndarray
    known: np.ndarray
    seconds: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True, eq=False)
class Played:
    """Per round [n]: the index of the chosen tier, and the expected accept length or NaN."""

    chosen: np.ndarray
    expected: np.ndarray


Witness = Callable[[int, Batch, Decision, StepPolicy], Any]


def play(
    policy: StepPolicy,
    rounds: Rounds,
    table: Table,
    lag: int = 0,
    stop: int | None = None,
    witness: Witness | None = None,
) -> Played:
    """Decide, look up, observe, for the first ``stop`` rounds (all of them).

    Results reach the policy ``lag`` decisions late. A round whose outcome at the chosen depth is
    not on record teaches it nothing. A policy with a ``foresee(signals)`` method is shown the
    coming window first: what stopping inside of the round would know.
    """
    feed = _Feed(rounds, table)
    late: deque[Round | None] = deque()
    index = {k: i for i, k in enumerate(table.tiers)}
    n = len(rounds) if stop is None else min(stop, len(rounds))
    chosen = np.zeros(n, dtype=np.int64)
    expected = np.full(n, np.nan)
    foresee = getattr(policy, "foresee", None)
    decide, observe = policy.decide, policy.observe
    for i in range(n):
        batch = feed.batch(i)
        if foresee is not None:
            foresee(feed.window(i))
        decision = decide(batch)
        if witness is not None:
            witness(i, batch, decision, policy)
        tier = chosen[i] = index[decision.num_steps]
        if decision.expected_accept_length is not None:
            expected[i] = decision.expected_accept_length
        late.append(feed.outcome(i, int(tier), batch))
        if len(late) > lag:
            outcome = late.popleft()
            if outcome is not None:
                observe(outcome)
    return Played(chosen, expected)


class _Feed:
    """Batches and outcomes as the engine makes them, from arrays laid out round by round."""

    def __init__(self, rounds: Rounds, table: Table):
        columns = rounds.columns
        self._tiers = table.tiers
        self._start = rounds.start.tolist()
        self._size = rounds.size.tolist()
        self._context = rounds.context_len.tolist()
        self._correct = rounds.correct
        self._known = table.known
        self._all_known: list[bool] = np.all(table.known, axis=1).tolist()
        self._seconds = table.seconds * table.noise[:, None]
        first_probs = columns.first_prob[rounds.row]
        self._first_probs = None if np.isnan(first_probs).all() else first_probs
        signals = columns.signals[rounds.row]
        self._signals = None if np.isnan(signals).all() else _widened(signals, table.tiers[-1])

    def batch(self, i: int) -> Batch:
        first = self._first_probs
        rows = slice(self._start[i], self._start[i + 1])
        return Batch(self._size[i], None if first is None else first[rows])

    def window(self, i: int) -> np.ndarray:
        if self._signals is None:
            return np.empty((0, self._tiers[-1], 2))
        return self._signals[self._start[i] : self._start[i + 1]]

    def outcome(self, i: int, tier: int, batch: Batch) -> Round | None:
        if not self._all_known[i] and not self._known[i, tier]:
            return None
        a, b, k = self._start[i], self._start[i + 1], self._tiers[tier]
        seconds = float(self._seconds[i, tier])
        return Round(
            k,
            batch.size,
            np.minimum(self._correct[a:b], k).tolist(),
            seconds if seconds > 0 else None,  # NaN is not
            batch.first_probs,
            None if self._signals is None else self._signals[a:b, :k],
            self._context[i],
        )


def _widened(signals: np.ndarray, depth: int) -> np.ndarray:
    missing = max(0, depth - signals.shape[1])
    return np.pad(signals, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)


def always(tier: int, rounds: Rounds) -> Played:
    """A fixed tier's index for every round: no need to ask."""
    n = len(rounds)
    return Played(np.full(n, tier), np.full(n, np.nan))


def oracle(table: Table, cells: np.ndarray) -> Played:
    """Knows every outcome: the tier with the most tokens - lambda * seconds among those on
    record, lambda being its own tokens per second in each cell [n] (Dinkelbach's iteration)."""
    chosen = np.zeros(len(cells), dtype=np.int64)
    tokens = np.where(table.known, table.tokens, -np.inf)
    for cell in np.unique(cells):
        rows = np.flatnonzero((cells == cell) & table.known.any(axis=1))
        rate = 0.0
        while True:
            best = np.argmax(tokens[rows] - rate * table.seconds[rows], axis=1)
            time = table.seconds[rows, best].sum()
            earned = tokens[rows, best].sum() / time if time else 0.0
            if not earned > rate * (1 + 1e-9):
                break
            rate, chosen[rows] = float(earned), best
    return Played(chosen, np.full(len(cells), np.nan))


def tiers_for(candidates: Sequence[int] | None, columns: Columns) -> tuple[int, ...]:
    """The candidates asked for, else those of the traces' servers up to the deepest recorded."""
    deepest = int(columns.num_steps.max(initial=0))
    if candidates:
        return tuple(sorted(set(candidates)))
    named = {k for header in columns.headers for k in header.candidate_steps}
    return tuple(sorted({0, *(k for k in named if 0 <= k <= deepest), deepest}))
