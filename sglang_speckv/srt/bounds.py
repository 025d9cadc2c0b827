"""What a request says of its own drafting: ``"custom_params": {"speckv": {"max_steps": 2}}``.

At most so many drafts of the request are verified in a round, none at 0. Where the engine verifies
a width per request, this holds for each of them. Elsewhere it holds for whole rounds: where every
request has a bound, the round is no deeper than the largest of them. The text is the same either
way. Requests of the exact lane take no drafts, so here they are bounded by 0. So are those whose
context is longer than ``--speckv-max-context``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

KEY = "speckv"
MAX_STEPS = "max_steps"
_ASKED = "speckv_max_steps"
"""Attribute of a request: what it asked for, once it was looked up."""
_UNBOUNDED = 1 << 30
"""Deeper than any round."""


def problem(custom_params: Any) -> str | None:
    """Why a request with these cannot be served."""
    if not isinstance(custom_params, dict) or KEY not in custom_params:
        return None
    asked = custom_params[KEY]
    if not isinstance(asked, dict) or set(asked) - {MAX_STEPS}:
        return f'"{KEY}" is {asked!r:.60}: send {{"{MAX_STEPS}": NUMBER}}.'
    steps = asked.get(MAX_STEPS)
    if steps is not None and not _is_bound(steps):
        return f'"{KEY}": "{MAX_STEPS}" is {steps!r:.40}: send a number from 0 on, 0 for no drafts.'
    return None


class Bounds:
    """Of one round: ``steps`` [bs], the most drafts of each request that may be verified; None
    where nobody has said anything."""

    def __init__(self, steps: np.ndarray | None = None) -> None:
        self._steps = steps

    @classmethod
    def of(
        cls, reqs: Sequence[Any], undrafted: Sequence[int] = (), max_context: int | None = None
    ) -> Bounds:
        """``undrafted``: rows of the exact lane. ``max_context``: tokens beyond which a request is
        not drafted for."""
        asked = [_asked(req) for req in reqs]
        if max_context is not None:
            lengths = [len(req.origin_input_ids) + len(req.output_ids) for req in reqs]
            long = [row for row, length in enumerate(lengths) if length > max_context]
            undrafted = [*undrafted, *long]
        if not undrafted and asked.count(None) == len(asked):
            return NO_BOUNDS
        steps = np.array([_UNBOUNDED if each is None else each for each in asked])
        steps[list(undrafted)] = 0
        return cls(steps)

    @property
    def closed(self) -> list[int]:
        """Rows of requests that take no drafts."""
        return [] if self._steps is None else np.flatnonzero(self._steps == 0).tolist()

    @property
    def most(self) -> int | None:
        """How deep the round may be; None for any depth."""
        if self._steps is None:
            return None
        most = int(self._steps.max())
        return None if most == _UNBOUNDED else most

    def blanked(self, probs: np.ndarray) -> np.ndarray:
        """``probs`` [bs, drafts]: those beyond a bound will not be accepted."""
        if self._steps is None:
            return probs
        return np.where(np.arange(probs.shape[1]) < self._steps[:, None], probs, 0.0)

    def narrowed(self, widths: np.ndarray | None, drafts: int) -> np.ndarray | None:
        """``widths`` [bs] of a round of so many drafts, None for all of them."""
        if self._steps is None:
            return widths
        narrow = np.minimum(self._steps, drafts if widths is None else widths)
        return narrow if widths is not None or narrow.min() < drafts else None


NO_BOUNDS = Bounds()


def _asked(req: Any) -> int | None:
    found: int | None = getattr(req, _ASKED, _UNBOUNDED)
    if found == _UNBOUNDED:
        params = getattr(req.sampling_params, "custom_params", None)
        told = params.get(KEY) if isinstance(params, dict) else None
        steps = told.get(MAX_STEPS) if isinstance(told, dict) else None
        found = min(steps, _UNBOUNDED) if _is_bound(steps) else None
        setattr(req, _ASKED, found)
    return found


def _is_bound(steps: Any) -> TypeGuard[int]:
    return type(steps) is int and steps >= 0
