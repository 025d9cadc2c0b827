"""What a token of context adds to a round: the slope of time within cells of equal work."""

from __future__ import annotations

MEMORY = 2000.0
"""Weight of samples after which one weighs half."""


class ContextSlope:
    """Regression of a cell's deviation in time on its deviation in context, over all cells.

    Between cells, context goes with batch size, so only deviations within a cell are used. The
    slope counts for as much as it explains more than noise, and never below zero.
    """

    def __init__(self) -> None:
        self._weight = self._xx = self._xy = self._yy = 0.0
        self.value = 0.0
        """Seconds per token of the requests' summed context."""

    def learn(self, context: float, seconds: float, weight: float) -> None:
        """Deviations from a cell's mean; contexts in tokens."""
        keep = MEMORY / (MEMORY + weight)
        self._weight = keep * self._weight + weight
        self._xx = keep * self._xx + weight * context * context
        self._xy = keep * self._xy + weight * context * seconds
        self._yy = keep * self._yy + weight * seconds * seconds
        if self._xx <= 0.0 or self._xy <= 0.0:
            self.value = 0.0
            return
        explained = self._xy * self._xy / self._xx
        noise = max(0.0, self._yy - explained) / max(self._weight - 1.0, 1.0)
        self.value = self._xy / self._xx * explained / (explained + 2.0 * noise)
