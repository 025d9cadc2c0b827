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


def register() -> None:
    from sglang_speckv.policy.base import Batch, Decision
    from sglang_speckv.policy.throughput import ThroughputPolicy

    asked = Path(os.environ[FILE])
    honest = ThroughputPolicy._choose, ThroughputPolicy.goes_on, ThroughputPolicy.widths
    answers, drafts = itertools.cycle(GOES_ON), itertools.cycle(WIDTHS)

    def choose(self: Any, batch: Batch) -> Decision:
        if not asked.exists():
            return honest[0](self, batch)
        return Decision(self.candidate_steps[-1], "best", watched=True)

    def goes_on(self: Any, probs: np.ndarray) -> bool:
        return next(answers) if asked.exists() else honest[1](self, probs)

    def widths(self: Any, probs: np.ndarray) -> np.ndarray | None:
        if not asked.exists():
            return honest[2](self, probs)
        return np.array([min(next(drafts), probs.shape[1]) for _ in probs])

    ThroughputPolicy._choose = choose  # type: ignore[method-assign]
    ThroughputPolicy.goes_on = goes_on  # type: ignore[method-assign]
    ThroughputPolicy.widths = widths  # type: ignore[method-assign]
