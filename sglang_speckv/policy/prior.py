"""What a policy may know before its first round: plain arrays that an artifact carries.

``offline/`` makes and stores these; nothing here reads a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_speckv.config import MAX_NUM_STEPS, ConfigError


@dataclass(frozen=True, eq=False)
class AcceptancePrior:
    """What an :class:`~sglang_speckv.policy.acceptance.Acceptance` had learned.

    ``mean`` [2, depth]: intercept and slope of every position. ``covariance`` [2 depth, 2 depth]:
    of them, all intercepts first. ``seen``: share of the signals in each bin. ``labels`` [depth]:
    how often each position was judged.
    """

    mean: np.ndarray
    covariance: np.ndarray
    seen: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        depth = self.mean.shape[-1] if self.mean.ndim == 2 else 0
        check(
            1 <= depth <= MAX_NUM_STEPS
            and self.mean.shape == (2, depth)
            and self.covariance.shape == (2 * depth, 2 * depth)
            and self.labels.shape == (depth,)
            and self.seen.shape == (SIGNAL_BINS,),
            f"acceptance has shapes {self.mean.shape}, {self.covariance.shape}, {self.seen.shape} "
            f"and {self.labels.shape}, not of 1..{MAX_NUM_STEPS} positions",
        )
        most = max(np.abs(part).max() for part in (self.mean, self.covariance, self.labels))
        check(most < 1e12, "acceptance has a value of 1e12 or more")
        variances = np.linalg.eigvalsh(self.covariance)
        check(
            np.allclose(self.covariance, self.covariance.T) and variances.min() > -1e-9,
            "the covariance of acceptance is none",
        )
        check(
            bool(np.all(self.seen >= 0)) and abs(self.seen.sum() - 1.0) < 1e-6,
            "the signals that were seen do not sum to 1",
        )
        check(bool(np.all(self.labels >= 0)), "acceptance has a negative count")

    @property
    def depth(self) -> int:
        return int(self.mean.shape[1])


SIGNAL_BINS = 32
"""Of first probabilities, equally wide in log-odds."""
OFF = -1
"""The step count that stands for no draft in rows of times: a server without speculation, or a
round at depth 0 that the draft sleeps through."""


@dataclass(frozen=True, eq=False)
class CostPrior:
    """Measured round times, one row per (batch size, depth): all arrays [rows].

    ``num_steps`` 0 is a round that drafts nothing but keeps the draft's cache warm;
    :data:`OFF` is allowed. ``seconds`` is a robust mean over ``rounds`` rounds.
    """

    batch_size: np.ndarray
    num_steps: np.ndarray
    seconds: np.ndarray
    rounds: np.ndarray

    def __post_init__(self) -> None:
        arrays = (self.num_steps, self.seconds, self.rounds)
        check(
            self.batch_size.ndim == 1
            and len(self.batch_size) > 0
            and all(array.shape == self.batch_size.shape for array in arrays),
            "the cost table's columns are empty or differ in length",
        )
        check(bool(np.all(self.batch_size >= 1)), "the cost table has a batch size below 1")
        check(
            bool(np.all((self.num_steps >= -1) & (self.num_steps <= MAX_NUM_STEPS))),
            f"the cost table has a step count outside of -1..{MAX_NUM_STEPS}",
        )
        check(
            bool(np.all(self.seconds >= 1e-9)),
            "the cost table has a time that is not positive, or shorter than a nanosecond",
        )
        check(
            bool(np.all(self.rounds >= 0)),
            "the cost table has a negative count",
        )
        check(
            all(bool(np.all(array < 1e12)) for array in (self.batch_size, *arrays)),
            "the cost table has a value of 1e12 or more",
        )

    def at(self, batch_size: int) -> dict[int, float]:
        """Seconds by step count at the nearest batch size of the table, by ratio."""
        distance = np.abs(np.log(self.batch_size / batch_size))
        rows = self.batch_size == self.batch_size[np.argmin(distance)]
        return dict(zip(self.num_steps[rows].tolist(), self.seconds[rows].tolist(), strict=True))


def check(holds: bool, problem: str) -> None:
    """Raise :class:`ConfigError` unless it holds."""
    if not holds:
        raise ConfigError(problem)
