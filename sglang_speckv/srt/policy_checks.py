"""What a policy answers, checked before the engine follows it: a wrong answer is a fault of the
policy in that round, not of whatever would have used it later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang_speckv.policy.base import Decision


def checked_decision(decision: Any, candidate_steps: Sequence[int]) -> Decision:
    """``decision`` if the engine can follow it, show it and share it with other ranks.

    Raises:
        TypeError, ValueError: it cannot.
    """
    if not isinstance(decision, Decision):
        raise TypeError(f"{decision!r:.80} is no decision")
    steps = decision.num_steps
    if type(steps) is not int or steps not in candidate_steps:  # 3.0 and True are equal to tiers
        raise ValueError(f"{steps!r:.80} is not a candidate")
    for belief in (decision.expected_accept_length, decision.tokens_per_s):
        if belief is not None:
            float(belief)
    return decision


def checked_widths(widths: Any, probs: np.ndarray) -> np.ndarray | None:
    """``widths`` if they can be verified of a round that made ``probs`` [size, drafts].

    Raises:
        TypeError, ValueError: they cannot.
    """
    if widths is None:
        return None
    size, drafts = probs.shape
    found = np.asarray(widths)
    if found.shape != (size,) or found.dtype.kind not in "iu":
        raise TypeError(f"{widths!r:.80} are no widths of {size} requests")
    if ((found < 0) | (found > drafts)).any():
        raise ValueError(f"the widths {widths!r:.80} are not all in 0..{drafts}")
    return found.astype(np.int64, copy=False)
