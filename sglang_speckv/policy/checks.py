"""What may enter the arithmetic: rounds come from an engine, and a policy never raises into it."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

MAX_BATCH = 1 << 20
MAX_CONTEXT = 1 << 40


def is_count(value: Any, most: int = MAX_BATCH) -> bool:
    return (type(value) is int or isinstance(value, Integral)) and 1 <= int(value) <= most


def is_time(seconds: Any) -> bool:
    """Also keeps out what no clock measures; NaN compares false."""
    return isinstance(seconds, int | float | np.floating) and bool(1e-9 < seconds < 1e6)


def is_tier(steps: Any, candidate_steps: tuple[int, ...]) -> bool:
    return (type(steps) is int or isinstance(steps, Integral)) and steps in candidate_steps


def context_of(context_len: Any) -> int:
    """0, unknown, where it is no count."""
    return int(context_len) if is_count(context_len, MAX_CONTEXT) else 0
