"""What may enter the arithmetic: rounds come from an engine, and a policy never raises into it."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np

from sglang_speckv.policy.base import Round

MAX_BATCH = 1 << 20
MAX_SHARE = 1.001
"""Of a probability or a normalised entropy, which rounding may leave a little above 1."""


def is_count(value: Any, most: int = MAX_BATCH) -> bool:
    return (type(value) is int or isinstance(value, np.integer)) and 1 <= int(value) <= most


def is_time(seconds: Any) -> TypeGuard[float]:
    """Also keeps out what no clock measures; NaN compares false."""
    return isinstance(seconds, int | float | np.floating) and bool(1e-9 < seconds < 1e6)


def is_share(values: Any) -> Any:
    """Which of them (numpy's, torch's or one number) can be probabilities; NaN compares false."""
    return (values >= 0.0) & (values <= MAX_SHARE)


def is_tier(steps: Any, candidate_steps: tuple[int, ...]) -> bool:
    return (type(steps) is int or isinstance(steps, np.integer)) and steps in candidate_steps


def is_round(outcome: Round, candidate_steps: tuple[int, ...]) -> bool:
    return is_tier(outcome.num_steps, candidate_steps) and is_count(outcome.batch_size)


def numbers_of(values: Any) -> np.ndarray:
    """``values`` as an array of floats, an empty one where they are none."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return np.empty(0)


def windows_of(signals: Any) -> np.ndarray:
    """``signals`` [live, num_steps, 2] as they are; of no request where they have another shape."""
    windows = numbers_of(signals)
    fits = windows.ndim == 3 and windows.shape[1] > 0 and windows.shape[2] == 2
    return windows if fits else np.empty((0, 1, 2))


def correct_drafts_of(num_correct_drafts: Any, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The entries that can be true, as integers, and a mask of which ones they are."""
    try:
        values = np.asarray(num_correct_drafts)
        if values.dtype.kind not in "iu":
            values = values.astype(float)
            values = np.where(values == np.floor(values), values, -1.0)
        values = values.ravel()
        valid = (values >= 0) & (values <= num_steps)
    except (TypeError, ValueError, OverflowError):
        return np.empty(0, dtype=int), np.empty(0, dtype=bool)
    return values[valid].astype(int, copy=False), valid


def widths_of(outcome: Round, steps: int) -> np.ndarray | None:
    """Those of a round, as integers; None where all drafts were verified, or where they cannot be
    true."""
    if outcome.widths is None:
        return None
    widths, valid = correct_drafts_of(outcome.widths, steps)
    return widths if len(widths) == len(valid) == len(outcome.num_correct_drafts) else None
