"""Recorded rounds to replay: as they were served, or the same requests put together anew."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import Columns

TRAFFIC = ("mixed", "phases")


@dataclass(frozen=True, eq=False)
class Rounds:
    """Rounds in order; the requests of round i are the entries ``start[i]:start[i + 1]`` of the
    arrays per request-round [m]: ``row`` (which record), ``correct`` and ``depth``.

    Per round [n]: ``size`` is the batch's, ``seconds`` what was measured (NaN where it was not
    or belongs to another grouping) and ``drafted`` the recorded depth, the shallowest if mixed.
    """

    columns: Columns
    row: np.ndarray
    start: np.ndarray
    size: np.ndarray
    seconds: np.ndarray
    regrouped: bool = False

    def __len__(self) -> int:
        return len(self.size)

    @property
    def live(self) -> np.ndarray:
        """Requests per round [n] that have a record."""
        return np.diff(self.start)

    @property
    def correct(self) -> np.ndarray:
        return self.columns.num_correct_drafts[self.row]

    @property
    def depth(self) -> np.ndarray:
        return self.columns.num_steps[self.row]

    @property
    def drafted(self) -> np.ndarray:
        return np.minimum.reduceat(self.depth, self.start[:-1])

    @property
    def context_len(self) -> np.ndarray:
        return np.add.reduceat(self.columns.context_len[self.row], self.start[:-1])

    def outcomes(self, tiers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Per round and tier [n, K]: the tokens it would have brought, and whether the record
        says so. A request with c correct drafts of d says min(c, k) for every k <= d, and c for
        deeper ones where c < d; where all d were accepted nobody knows what comes after."""
        correct, depth, starts = self.correct, self.depth, self.start[:-1]
        tokens = np.empty((len(self), len(tiers)), dtype=np.int64)
        known = np.empty((len(self), len(tiers)), dtype=bool)
        for at, k in enumerate(tiers):
            tokens[:, at] = np.add.reduceat(np.minimum(correct, k) + 1, starts)
            known[:, at] = np.logical_and.reduceat((k <= depth) | (correct < depth), starts)
        return tokens, known

    def label(self) -> np.ndarray:
        """Per round the label all its requests share, else -1."""
        labels = self.columns.label[self.row]
        low = np.minimum.reduceat(labels, self.start[:-1])
        high = np.maximum.reduceat(labels, self.start[:-1])
        return np.where(low == high, low, -1)


def drafted_to(columns: Columns, depth: int) -> Columns:
    """Only what was drafted to at least ``depth``: all depths up to it are known.

    Raises:
        ConfigError: there is nothing.
    """
    kept = columns.num_steps >= depth
    if not kept.any():
        raise ConfigError(f"no recorded round was drafted to depth {depth}; give fewer depths")
    return columns.only(kept)


def recorded_rounds(columns: Columns) -> Rounds:
    """As they were served: file after file, round by round."""
    keys = columns.file.astype(np.int64) << 40 | columns.round
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    first = order[start]
    size = columns.batch_size[first]
    start = np.append(start, len(order))
    if (np.diff(start) > size).any():
        at = first[int(np.argmax(np.diff(start) > size))]
        raise ConfigError(
            f"round {columns.round[at]} has more records than its batch_size "
            f"{columns.batch_size[at]}; two traces may have been written into one file"
        )
    return Rounds(columns, order, start, size, columns.seconds[first])


def regroup(columns: Columns, size: int, traffic: str = "mixed", seed: int = 0) -> Rounds:
    """The same requests, ``size`` at a time, each in its own order: where one ends the next one
    takes its place. ``mixed`` shuffles all requests, ``phases`` serves label after label.

    Rounds with fewer than ``size`` requests (while the last ones run out) are left out.

    Raises:
        ConfigError: an unknown traffic, or fewer than ``size`` requests (of every label).
    """
    if traffic not in TRAFFIC:
        raise ConfigError(f"traffic {traffic!r} is not one of {', '.join(TRAFFIC)}")
    if size < 1:
        raise ConfigError(f"--regroup {size} is not a batch size; give 1 or more")
    rows, lengths, labels = _by_request(columns)
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    groups: Iterable[np.ndarray] = [shuffled]
    if traffic == "phases":
        groups = [shuffled[labels[shuffled] == label] for label in np.unique(labels)]
    ends = np.cumsum(lengths)
    parts: list[tuple[np.ndarray, int]] = []
    for group in groups:
        slots = _slots(lengths[group], size)
        if slots is None:
            continue
        begins, full = slots
        at = np.repeat(begins, lengths[group]) + _counting(lengths[group])
        taken = np.repeat((ends - lengths)[group], lengths[group]) + _counting(lengths[group])
        kept = at < full
        parts.append((rows[taken[kept]][np.argsort(at[kept], kind="stable")], full))
    if not parts:
        raise ConfigError(f"the trace has fewer than {size} requests, so --regroup {size} is empty")
    n = sum(full for _, full in parts)
    return Rounds(
        columns,
        row=np.concatenate([row for row, _ in parts]),
        start=np.arange(n + 1) * size,
        size=np.full(n, size),
        seconds=np.full(n, np.nan),
        regrouped=True,
    )


def _by_request(columns: Columns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Record numbers request by request, the records of each, its label."""
    order = np.lexsort((columns.round, columns.request))
    _, first, lengths = np.unique(columns.request[order], return_index=True, return_counts=True)
    return order, lengths, columns.label[order][first]


def _slots(lengths: np.ndarray, size: int) -> tuple[np.ndarray, int] | None:
    """The round each request begins in when ``size`` are served at a time, and the rounds that
    are full; None where there are fewer requests."""
    if len(lengths) < size:
        return None
    free = [0] * size
    begins = np.empty(len(lengths), dtype=np.int64)
    for i, length in enumerate(lengths.tolist()):
        begins[i] = free[0]
        heapq.heapreplace(free, free[0] + length)
    return begins, free[0]


def _counting(lengths: np.ndarray) -> np.ndarray:
    """0..n-1 for each n of ``lengths``, one after another."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
