"""How old first-token signals are when a depth is decided, and whether the host waits for them.

The draft-extend that ends round n - 1 draws the first draft token of round n; its probability
says most about round n. Whether it is on the host when round n is launched depends on the mode:

| overlap scheduler | `--speckv-signal-lag` | the decision sees the signal of | cost |
|---|---|---|---|
| off | any | the coming round (lag 0) | none: its result was processed before |
| on | `late` | the round before (lag 1) | none |
| on | `0` | the coming round (lag 0) | the host waits for the device every round |
| on | `auto` | the better of the two | as chosen |

Accept lengths and the signals of deeper positions are one round older under overlap in every mode.
"""

from __future__ import annotations

import logging
from statistics import median

logger = logging.getLogger(__name__)

FRESH_GAIN = 0.01
"""What the fresh signal is worth in throughput, at least, against the one of the round before: for
one request with a draft of 0.05 to 0.1 of the target's time a table on the fresh signal gained 1
to 2 % over the best fixed depth where tables on lagged ones gained about 0."""


class SignalLag:
    """``waits``: let the host wait for the coming round's signal."""

    def __init__(self, mode: str, overlap: bool) -> None:
        self.mode = mode
        self.overlap = overlap
        self.waits = overlap and mode == "0"
        self._timed: dict[bool, list[float]] = {True: [], False: []}

    @property
    def rounds(self) -> int:
        """Age, in rounds, of the first-token signal that a decision sees."""
        return 1 if self.overlap and not self.waits else 0

    @property
    def open(self) -> bool:
        """`auto` has something to choose."""
        return self.overlap and self.mode == "auto"

    def choose(self, waiting: dict[tuple[int, int], float], late: dict[tuple[int, int], float]):
        """Settle `auto` by round times in seconds per (batch size, num_steps) in either mode."""
        shared = [waiting[cell] / late[cell] for cell in waiting.keys() & late.keys()]
        cost = median(shared) - 1.0 if shared else float("inf")
        self.waits = cost < FRESH_GAIN
        logger.info(
            "SpecKV: --speckv-signal-lag auto chose %s: waiting for the coming round's signal "
            "costs %.1f %% of a round, it is taken to gain %.1f %%",
            "0" if self.waits else "late",
            100 * cost,
            100 * FRESH_GAIN,
        )

    def describe(self) -> dict[str, object]:
        return {"mode": self.mode, "rounds": self.rounds, "host_waits": self.waits}
