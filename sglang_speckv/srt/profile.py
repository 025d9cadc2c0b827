"""The start-up profile in the scheduler: real rounds at every tier, timed before serving.

While :mod:`~sglang_speckv.srt.profile_load` keeps the engine busy, a :class:`ProfileRun` takes the
policy's place and walks through the tiers; its round times become the policies' first cost rows.
What the draft gets accepted of dummy text teaches nothing and is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.prior import OFF
from sglang_speckv.srt.lag import SignalLag

STATE_KEY = "speckv_profile"
ROUNDS = 4
"""Consecutive rounds at a tier before the next: the first one after a switch is not typical."""
SAMPLES = 32
"""Times that a cell remembers."""
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
        walk = [OFF, *candidate_steps] if sleeps and 0 in candidate_steps else [*candidate_steps]
        self._order = [*walk, *reversed(walk)]
        self._lag = lag
        self._turn: dict[int, int] = {}
        self._rounds = 0
        self._seconds: dict[tuple[int, int, bool], list[float]] = {}
        self._context: dict[tuple[int, int], int] = {}

    def decide(self, batch: Batch) -> Decision:
        turn = self._turn.get(batch.size, 0)
        self._turn[batch.size] = turn + 1
        step = turn // ROUNDS % len(self._order)
        if self._lag.open:
            self._lag.waits = step >= len(self._order) // 2
        tier = self._order[step]
        return Decision(max(tier, 0), "profile", awake=tier != OFF)

    @property
    def ended(self) -> bool:
        return self._rounds >= WALKS * ROUNDS * len(self._order)

    def observe(self, outcome: Round, host_waited: bool) -> None:
        """``host_waited``: for the signals of this very round, whatever the mode is by now."""
        self._rounds += 1
        if outcome.seconds is None:
            return
        cell = outcome.batch_size, OFF if outcome.asleep else outcome.num_steps
        times = self._seconds.setdefault((*cell, host_waited), [])
        if len(times) < SAMPLES:
            times.append(outcome.seconds)
        self._context[cell] = outcome.context_len

    def finish(self) -> list[tuple[int, int, int, float]]:
        """Rows of (batch_size, num_steps, context_len, seconds), one per round, num_steps -1 for a
        draft asleep; settles `auto`. Drafts that are accepted end a walk early: a tier that was
        only seen in the mode that is not chosen is told by that one."""
        by_mode: dict[bool, dict[tuple[int, int], list[float]]] = {True: {}, False: {}}
        for (size, steps, waits), times in self._seconds.items():
            by_mode[waits][size, steps] = times
        if self._lag.open:
            waiting, late = (_medians(by_mode[waits]) for waits in (True, False))
            self._lag.choose(waiting, late)
        known = by_mode[not self._lag.waits] | by_mode[self._lag.waits]
        return [
            (size, steps, self._context[size, steps], seconds)
            for (size, steps), times in sorted(known.items())
            for seconds in times
        ]


def _medians(cells: dict[tuple[int, int], list[float]]) -> dict[tuple[int, int], float]:
    return {cell: median(times) for cell, times in cells.items()}


def summary(rows: Sequence[tuple[int, int, int, float]]) -> list[list[float]]:
    """[batch size, num_steps or -1, median milliseconds] per cell."""
    cells: dict[tuple[int, int], list[float]] = {}
    for size, steps, _, seconds in rows:
        cells.setdefault((size, steps), []).append(seconds)
    return [[*cell, round(1e3 * seconds, 3)] for cell, seconds in _medians(cells).items()]
