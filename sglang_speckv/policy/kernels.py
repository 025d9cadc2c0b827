"""What the default policy computes in every round, compiled by numba.

A round has few requests and few positions: numpy would spend most of its time between its calls,
a millisecond per round in all. Everything is compiled when the first model is built, and kept
beside this module or in the user's cache for the next time: nothing is compiled while serving, and
SGLang's processes that decide nothing do without numba. Call what is here by ``kernels.``, since
:func:`load` puts the compiled functions in the place of these. An index out of range raises.

Shapes: ``n`` requests, ``k`` positions. ``mean`` [2 k] has all intercepts, then all slopes, and
``covariance`` [2 k, 2 k] is theirs. ``x`` [n, k], or [n, 1] where it is one for all positions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

logger = logging.getLogger(__name__)
CONTENT = f"{crc32(Path(__file__).read_bytes()):08x}"
"""Part of the names of numba's files. By itself numba may run the code of an earlier version of
this source, if only one of its two files could be written."""


_waiting: list[tuple[str, Callable[..., Any]]] = []
"""Signatures, and what is to be compiled for them."""


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for these types, and keep the result if possible."""
    from numba import njit

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__qualname__ = f"{function.__name__}_{CONTENT}"
        try:
            found: Callable[..., Any] = njit(signature, cache=True, boundscheck=True)(function)
        except Exception as error:  # no folder can be written, or what was kept is damaged
            logger.warning(
                "SpecKV: %s is compiled at every start, for numba cannot keep it (%s); "
                "NUMBA_CACHE_DIR names another folder",
                function.__name__,
                error,
            )
            found = njit(signature, boundscheck=True)(function)
        return found

    return compile_it


def load() -> None:
    """Compile everything, once in a process."""
    while _waiting:
        signature, function = _waiting.pop()
        globals()[function.__name__] = compiled(signature)(function)


def later(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile it for these types in :func:`load`."""

    def remember(function: Callable[..., Any]) -> Callable[..., Any]:
        _waiting.append((signature, function))
        return function

    return remember


@later("f8[::1](f8[:], f8, f8)")
def log_odds(probs, limit, most):  # type: ignore[no-untyped-def]
    """Of probabilities, at most ``limit`` either way; NaN where one is unknown, below 0 or above
    ``most``."""
    found = np.empty(len(probs))
    for i in range(len(probs)):
        p = min(probs[i], 1.0)
        odds = np.log(p) - np.log(1.0 - p)
        found[i] = min(max(odds, -limit), limit) if 0.0 <= probs[i] <= most else np.nan
    return found


@later("i8[::1](f8[:], i8, f8)")
def bins(odds, count, limit):  # type: ignore[no-untyped-def]
    """In which of the ``count`` bins between -limit and limit each is; ``count`` where unknown."""
    found = np.empty(len(odds), dtype=np.int64)
    for i in range(len(odds)):
        at = (odds[i] + limit) / (2.0 * limit) * count
        found[i] = count if np.isnan(odds[i]) else int(min(max(at, 0.0), count - 1.0))
    return found


@later("f8[:, ::1](f8[::1], f8[:, :], f8[:], f8)")
def probability(mean, x, own, limit):  # type: ignore[no-untyped-def]
    """Of acceptance, [n, k]; ``own`` [n] is what each request adds to the log-odds."""
    n, k, last = len(x), len(mean) // 2, x.shape[1] - 1
    found = np.empty((n, k))
    for r in range(n):
        for i in range(k):
            odds = mean[i] + mean[k + i] * x[r, min(i, last)] + own[r]
            found[r, i] = 1.0 / (1.0 + np.exp(-min(max(odds, -limit), limit)))
    return found


@later("f8[:, ::1](f8[::1], f8[::1], f8[::1], f8[:, :], f8[:], f8)")
def conditional(by_own, by_last, usual, odds, own, limit):  # type: ignore[no-untyped-def]
    """[n, k]: P(draft i is accepted | those before it are). Drafts that were made count by the
    log-odds ``odds`` [n, made] of their own, the others by those of the draft before them, or by
    ``usual`` [k] ones if that was not made either."""
    n, k, made = len(odds), len(usual), odds.shape[1]
    found = np.empty((n, k))
    for r in range(n):
        for i in range(k):
            if i < made:
                z = by_own[i] + by_own[k + i] * odds[r, i]
            else:
                before = 0.0
                if i > 0:
                    before = odds[r, i - 1] if i == made else usual[i - 1]
                z = by_last[i] + by_last[k + i] * before
            found[r, i] = 1.0 / (1.0 + np.exp(-min(max(z + own[r], -limit), limit)))
    return found


@later("f8[:, :, ::1](i8[:], i8[:], i8)")
def labels(correct, made, k):  # type: ignore[no-untyped-def]
    """[2, n, k]: which drafts were judged, and which accepted, where ``made`` [n] were verified."""
    found = np.zeros((2, len(correct), k))
    for r in range(len(correct)):
        for i in range(min(correct[r] + 1, made[r], k)):
            found[0, r, i] = 1.0
            found[1, r, i] = 1.0 if i < correct[r] else 0.0
    return found


@later("f8[:, :, ::1](f8[:, :, ::1], i8[:], i8[:], f8[:, :])")
def imputed(labels, correct, made, expected):  # type: ignore[no-untyped-def]
    """Those labels with what was ``expected`` [n, known] of the drafts that were not verified."""
    found = labels.copy()
    for r in range(len(correct)):
        if correct[r] == made[r]:
            reached = 1.0
            for i in range(made[r], expected.shape[1]):
                found[0, r, i], found[1, r, i] = reached, expected[r, i]
                reached *= expected[r, i]
    return found


@later("f8[:, ::1](f8[:, :], f8[:, :, ::1])")
def surprises(expected, labels):  # type: ignore[no-untyped-def]
    """[2, n]: of every request how many more drafts were accepted than ``expected`` [n, k], and the
    variance of that."""
    n, k = expected.shape
    found = np.zeros((2, n))
    for r in range(n):
        for i in range(k):
            found[0, r] += labels[0, r, i] * (labels[1, r, i] - expected[r, i])
            found[1, r] += labels[0, r, i] * expected[r, i] * (1.0 - expected[r, i])
    return found


@later("f8(f8[::1], f8[:, ::1], f8[:, :], f8[:, :], f8[:, :, ::1], f8)")
def update(mean, covariance, x, expected, labels, limit):  # type: ignore[no-untyped-def]
    """One step of Newton's method from ``mean``, where ``expected`` [n, k] was expected; changes
    ``mean`` and ``covariance``. Returns the drafts accepted beyond those expected.

    What a round says of a position is of its intercept and slope alone, so the covariance P takes
    one position after another: P - P_i (1 + L S)^-1 L P_i'. L = [[a, b], [b, c]] is what the round
    tells of the two and S = [[p, q], [q, s]] their covariance, for which
    (1 + L S)^-1 L = (L + |L| [[s, -q], [-q, p]]) / |1 + L S|.
    """
    (n, k), last = expected.shape, x.shape[1] - 1
    gradient, first, second = np.zeros(2 * k), np.empty(2 * k), np.empty(2 * k)
    total = 0.0
    for i in range(k):
        a = b = c = 0.0
        for r in range(n):
            weight, input_ = labels[0, r, i], x[r, min(i, last)]
            surprise = weight * (labels[1, r, i] - expected[r, i])
            gradient[i] += surprise
            gradient[k + i] += input_ * surprise
            weight *= expected[r, i] * (1.0 - expected[r, i])
            a += weight
            b += weight * input_
            c += weight * input_ * input_
        total += gradient[i]
        if a > 0.0:
            p, q, s = covariance[i, i], covariance[i, k + i], covariance[k + i, k + i]
            both = a * c - b * b
            scale = 1.0 + a * p + 2.0 * b * q + c * s + both * (p * s - q * q)
            aa, ab, bb = (a + both * s) / scale, (b - both * q) / scale, (c + both * p) / scale
            for j in range(2 * k):
                first[j], second[j] = covariance[i, j], covariance[k + i, j]
            for j in range(2 * k):
                u, v = aa * first[j] + ab * second[j], ab * first[j] + bb * second[j]
                for m in range(2 * k):
                    covariance[j, m] -= u * first[m] + v * second[m]
    for j in range(2 * k):
        for m in range(2 * k):
            mean[j] += covariance[j, m] * gradient[m]
        mean[j] = min(max(mean[j], -limit), limit)
    return total
