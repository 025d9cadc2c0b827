"""Does the draft still fit? A warning where too few of its drafts are accepted, once an hour at
most. Judged is a draft that was verified and behind no wrong one, so the share does not depend on
the depth."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sglang_speckv.srt.counters import Counters

logger = logging.getLogger(__name__)

LOOK_ROUNDS = 1024
"""Rounds from one look to the next."""
ENOUGH_DRAFTS = 20_000
"""Judged since the last look that told a share."""
FEW = 0.55
"""The share accepted below which a draft hardly pays."""
QUIET_SECONDS = 3600.0


class DraftFit:
    def __init__(self, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters, self._clock = counters, clock
        self._rounds = self._judged = self._correct = 0
        self._told: float | None = None

    def round_done(self) -> None:
        self._rounds += 1
        if self._rounds % LOOK_ROUNDS == 0:
            self._look()

    def _look(self) -> None:
        positions, right = self._counters.positions(), self._counters.correct_drafts
        every = sum(judged for judged, _ in positions)
        judged, correct = every - self._judged, right - self._correct
        if judged < ENOUGH_DRAFTS:
            return
        share, self._judged, self._correct = correct / judged, every, right
        now = self._clock()
        if share >= FEW or (self._told is not None and now - self._told < QUIET_SECONDS):
            return
        self._told = now
        logger.warning(
            "SpecKV: %.0f %% of the last %d drafts that were judged were accepted. Below %.0f %% a "
            "draft hardly pays: was the target changed or quantised since it was trained, or "
            "is this other text?",
            100 * share,
            judged,
            100 * FEW,
        )
