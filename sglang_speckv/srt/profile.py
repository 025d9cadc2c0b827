"""The start-up profile in the scheduler: real rounds at every tier, timed before serving.

While :mod:`~sglang_speckv.srt.profile_load` keeps the engine busy, a :class:`ProfileRun` takes the
policy's place and walks through the tiers; its round times become the policies' first cost rows.
What the draft gets accepted of dummy text teaches nothing and is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.srt.lag import Cell, SignalLag

STATE_KEY = "speckv_profile"
ROUNDS = 4
"""Consecutive rounds at a tier before the next: the first one after a switch is not typical."""
SAMPLES = 32
"""Times that a cell keeps."""
WALKS = 16
"""There and back as often the profile ends by itself, whoever started it and whatever became of
them: twice what the launcher's load takes."""


class ProfileRun:
    """Walks there and back through the tiers and keeps what their rounds took. Deterministic: ranks
    agree.

    Where the draft ``sleeps`` at depth 0, both kinds of such rounds are tiers. Where the host may
    wait for signals or not, it waits on the way back.
    """

    def __init__(
        self, candidate_steps: Sequence[int], lag: SignalLag, sleeps: bool = False
    ) -> None:
        walk = [(steps, False) for steps in candidate_steps]
        if sleeps and 0 in candidate_steps:
            walk.insert(0, (0, True))
        self._order = [*walk, *reversed(walk)]
        """Depths, and whether the draft sleeps."""
        self._lag = lag
        self._turn: dict[int, int] = {}
        self._rounds = 0
        self._seconds: dict[bool, dict[Cell, list[float]]] = {True: {}, False: {}}
        """By whether the host waited for signals."""

    def decide(self, batch: Batch) -> Decision:
        turn = self._turn.get(batch.size, 0)
        self._turn[batch.size] = turn + 1
        step = turn // ROUNDS % len(self._order)
        if self._lag.open:
            self._lag.waits = step >= len(self._order) // 2
        num_steps, asleep = self._order[step]
        return Decision(num_steps, "profile", awake=not asleep)

    @property
    def ended(self) -> bool:
        return self._rounds >= WALKS * ROUNDS * len(self._order)

    def observe(self, outcome: Round, host_waited: bool) -> None:
        """``host_waited``: for the signals of this very round, whatever the mode is by now."""
        self._rounds += 1
        if outcome.seconds is None:
            return
        cell = outcome.batch_size, outcome.num_steps, outcome.asleep
        times = self._seconds[host_waited].setdefault(cell, [])
        if len(times) < SAMPLES:
            times.append(outcome.seconds)

    def finish(self) -> list[TimedRound]:
        """One per round; tells `auto` what waiting costs. Accepted drafts end a walk early: a depth
        that was only seen where the host waited is told by that."""
        if self._lag.open:
            self._lag.timed(*(_medians(self._seconds[waits]) for waits in (True, False)))
        known = self._seconds[not self._lag.waits] | self._seconds[self._lag.waits]
        return [
            TimedRound(size, steps, seconds, asleep)
            for (size, steps, asleep), times in sorted(known.items())
            for seconds in times
        ]


def _medians(cells: dict[Cell, list[float]]) -> dict[Cell, float]:
    return {cell: median(times) for cell, times in cells.items()}


def summary(rows: Sequence[TimedRound]) -> list[list[float]]:
    """[batch size, num_steps or, asleep, -1, median milliseconds] per cell."""
    cells: dict[Cell, list[float]] = {}
    for row in rows:
        cells.setdefault((row.batch_size, row.num_steps, row.asleep), []).append(row.seconds)
    return [
        [size, -1 if asleep else steps, round(1e3 * seconds, 3)]
        for (size, steps, asleep), seconds in _medians(cells).items()
    ]
