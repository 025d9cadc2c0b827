"""How old first-token signals are when a depth is decided, and whether the host waits for them.

The draft-extend that ends round n - 1 draws the first draft token of round n; its probability
says most about round n. Whether it is on the host when round n is launched depends on the mode:

| overlap scheduler | `--speckv-signal-lag` | the decision sees the signal of | cost |
|---|---|---|---|
| off | any | the coming round (lag 0) | none: its result was processed before |
| on | `late` | the round before (lag 1) | none |
| on | `0` | the coming round (lag 0) | the host waits for the device every round |
| on | `auto` | the better of the two at this load | as chosen |

`auto` takes what waiting costs from the start-up profile and what it earns from what the policy has
learned of either signal since.

Accept lengths and the signals of deeper positions are one round older under overlap in every mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

Cell = tuple[int, int, bool]
"""Of a round: batch size, num_steps, whether the draft slept."""

SETTLE_ROUNDS = 256
"""Rounds after which `auto` weighs again."""


class SignalLag:
    """``waits``: let the host wait for the coming round's signal."""

    def __init__(self, mode: str, overlap: bool) -> None:
        self.mode = mode
        self.overlap = overlap
        self.waits = overlap and mode == "0"
        self._costs: dict[int, float] = {}
        """By batch size: what waiting costs, as a share of a round."""
        self._gain = 0.0

    @property
    def rounds(self) -> int:
        """Age, in rounds, of the first-token signal that a decision sees."""
        return 1 if self.overlap and not self.waits else 0

    @property
    def open(self) -> bool:
        """`auto` has something to choose."""
        return self.overlap and self.mode == "auto"

    def timed(self, waiting: Mapping[Cell, float], late: Mapping[Cell, float]) -> None:
        """Seconds per kind of round in either mode; `auto` starts without waiting."""
        ratios: dict[int, list[float]] = {}
        for cell in waiting.keys() & late.keys():
            ratios.setdefault(cell[0], []).append(waiting[cell] / late[cell])
        self._costs = {size: median(found) - 1.0 for size, found in ratios.items()}
        self.waits = False

    def settle(self, batch_size: int, gain: float) -> None:
        """`auto`: wait where that earns more of the tokens, ``gain``, than it costs of the time at
        the nearest batch size that was timed."""
        if self._costs:
            near = min(self._costs, key=lambda size: abs(math.log(size / batch_size)))
            self._gain = gain
            self.waits = gain > self._costs[near]

    def describe(self) -> dict[str, object]:
        told: dict[str, object] = {"mode": self.mode, "rounds": self.rounds}
        told["host_waits"] = self.waits
        if self._costs:
            told["gain"] = round(self._gain, 4)
            told["cost"] = {str(size): round(cost, 4) for size, cost in self._costs.items()}
        return told
