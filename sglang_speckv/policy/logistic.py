"""A logistic model of every draft position, which follows what is served.

    P(draft i is accepted | those before it are) = sigmoid(a_i + b_i x_i + o)

x_i is the log-odds of some probability that is known in time, and o what the request adds of its
own. All a and b are the state of an extended Kalman filter (West, Harrison and Migon, Journal of
the American Statistical Association 80, 1985). Each round adds the information of its labels, once.
All a_i drift together, so that another phase of traffic, seen at the first position, is believed of
the deeper ones too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_speckv.policy import kernels
from sglang_speckv.policy.checks import MAX_SHARE, numbers_of

SLOPE = 0.5
"""Both intercept and slope of every position before any evidence: 6 of 10 drafts are accepted where
the draft is as unsure as sure (x = 0). The standard deviation of an intercept is 1, that of a slope
:data:`SLOPE`."""
ALIKE = 0.9
"""Correlation of neighbouring intercepts before any evidence."""
DRIFT = 0.002
"""Variance that all intercepts gain together per round of one request; of a batch one over its
size of it, since the mean of many requests moves less."""
SLOPE_DRIFT = 5e-5
"""Variance that each slope gains, up to the one before any evidence: what a signal says may change,
slowly."""
REQUEST_SPREAD = 0.4
"""Standard deviation of a request's own log-odds."""
REQUEST_MEMORY = 0.9
"""What a round of a request still weighs a round later."""
MOST_REQUESTS = 4096
LIMIT = 7.0
"""Largest log-odds of anything: 1 in 1,100."""


class Logistic:
    """``mean`` [2 positions] and ``covariance``: of all intercepts, then of all slopes. ``apart``
    [positions, positions]: how unlike they are, 1 of neighbours in a chain."""

    def __init__(self, positions: int, apart: np.ndarray | None = None) -> None:
        kernels.load()
        at = np.arange(positions)
        if apart is None:
            apart = np.abs(at[:, None] - at)
        intercepts, slopes = ALIKE**apart, SLOPE**2 * np.eye(positions)
        nothing = np.zeros((positions, positions))
        self.mean = np.full(2 * positions, SLOPE)
        self.covariance = np.block([[intercepts, nothing], [nothing, slopes]])
        self._intercepts = self.covariance[:positions, :positions]
        self._slopes = np.einsum("ii->i", self.covariance)[positions:]
        """Their variances; both are views."""
        self.surprise = 0.0
        """Accepted less expected, summed over all labels so far, also over those that stand for
        drafts that were not verified."""

    def probability(self, x: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """[requests, positions]. ``x`` has that shape or one column; ``own`` [requests]: what each
        adds."""
        own = np.zeros(len(x)) if own is None else own
        found: np.ndarray = kernels.probability(self.mean, x, own, LIMIT)
        return found

    def update(self, x: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> None:
        """One round's ``labels`` [2, requests, positions]: what was judged, 0 to 1, and what of it
        was accepted. ``expected`` is what :meth:`probability` said of all that was judged. One step
        of Newton's method from there."""
        size = labels.shape[1]
        self._intercepts += DRIFT / size
        self._slopes += (self._slopes < SLOPE**2) * (SLOPE_DRIFT / size)
        self.surprise += kernels.update(self.mean, self.covariance, x, expected, labels, LIMIT)


class OwnAcceptance:
    """By how much more or less than expected is accepted of each request, in log-odds, shrunk
    towards nothing."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}
        """Decayed sums: accepted less expected, and their variance."""

    def of(self, requests: Sequence[int]) -> list[float]:
        known = [self._known.get(name, (0.0, 0.0)) for name in requests]
        return [s / (v + REQUEST_SPREAD**-2) for s, v in known]

    def learn(self, requests: Sequence[int], expected: np.ndarray, labels: np.ndarray) -> None:
        """``expected`` [requests, positions]: what was expected of anybody."""
        surprise, variance = kernels.surprises(expected, labels).tolist()
        for name, s, v in zip(requests, surprise, variance, strict=True):
            before, known = self._known.pop(name, (0.0, 0.0))
            self._known[name] = REQUEST_MEMORY * before + s, REQUEST_MEMORY * known + v
        while len(self._known) > MOST_REQUESTS:
            del self._known[next(iter(self._known))]  # the one that was served longest ago


def log_odds(probs: object, shape: tuple[int, ...]) -> np.ndarray:
    """Of probabilities of that shape; NaN where one is unknown, everywhere in another shape."""
    found = numbers_of(probs)
    if found.shape != shape:
        return np.full(shape, np.nan)
    copied = np.array(found).ravel()  # compiled code takes no array that is read-only
    odds: np.ndarray = kernels.log_odds(copied, LIMIT, MAX_SHARE)
    return odds.reshape(shape)
