"""An SGLang plugin for some tests: while a file exists, rounds stop by a fixed sequence."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

FILE = "SPECKV_FORCED_STOPS"
"""Environment variable with the path of that file."""
GOES_ON = (True, False, True, True, False, True, True, True, False, False)


def register() -> None:
    from sglang_speckv.policy.throughput import ThroughputPolicy

    asked = Path(os.environ[FILE])
    stops, goes_on = ThroughputPolicy._stops, ThroughputPolicy.goes_on
    answers = itertools.cycle(GOES_ON)

    def always(self: Any, *args: Any) -> bool:
        return True if asked.exists() else stops(self, *args)

    def anywhere(self: Any, probs: Any) -> bool:
        return next(answers) if asked.exists() else goes_on(self, probs)

    ThroughputPolicy._stops = always  # type: ignore[method-assign]
    ThroughputPolicy.goes_on = anywhere  # type: ignore[method-assign]
