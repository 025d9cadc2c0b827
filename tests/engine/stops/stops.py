"""An SGLang plugin for some tests: while a file exists, rounds make and verify as many drafts as
fixed sequences say."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

FILE = "SPECKV_FORCED_STOPS"
"""Environment variable with the path of that file."""
GOES_ON = (True, False, True, True, False, True, True, True, False, False)
WIDTHS = (5, 0, 3, 1, 5, 2, 4)
MADE = (3, 1, 5, 2, 4, 1, 5)
"""Where the device stops rounds."""
DEPTHS = (5, 0, 5, 1, 5, 3, 5)
MOVING = "depths"
"""What the file holds where the deepest depth of a round is to move too."""


def register() -> None:
    from sglang_speckv.policy.base import Batch, Decision
    from sglang_speckv.policy.stopping import StopRule
    from sglang_speckv.policy.throughput import ThroughputPolicy

    asked = Path(os.environ[FILE])
    honest = ThroughputPolicy._choose, ThroughputPolicy.goes_on, ThroughputPolicy.widths
    rule = ThroughputPolicy.stop_rule
    answers, drafts = itertools.cycle(GOES_ON), itertools.cycle(WIDTHS)
    stops, sizes = itertools.cycle(MADE), {}
    depths = itertools.cycle(DEPTHS)

    def choose(self: Any, batch: Batch) -> Decision:
        if not asked.exists():
            return honest[0](self, batch)
        sizes[self] = batch.size
        moving = asked.read_text() == MOVING
        deepest = next(depths) if moving else self.candidate_steps[-1]
        return Decision(deepest, "best", watched=True)

    def goes_on(self: Any, probs: np.ndarray) -> bool:
        return next(answers) if asked.exists() else honest[1](self, probs)

    def widths(self: Any, probs: np.ndarray) -> np.ndarray | None:
        if not asked.exists():
            return honest[2](self, probs)
        return np.array([min(next(drafts), probs.shape[1]) for _ in probs])

    def stop_rule(self: Any) -> StopRule | None:
        if not asked.exists():
            return rule(self)
        drafts = np.arange(self.candidate_steps[-1])
        nothing = np.zeros((2, len(drafts)))
        price = np.where(drafts < next(stops), -1.0, 1e9)
        return StopRule(nothing, nothing, np.zeros(sizes[self]), price)

    ThroughputPolicy.stop_rule = stop_rule  # type: ignore[method-assign]
    ThroughputPolicy._choose = choose  # type: ignore[method-assign]
    ThroughputPolicy.goes_on = goes_on  # type: ignore[method-assign]
    ThroughputPolicy.widths = widths  # type: ignore[method-assign]
