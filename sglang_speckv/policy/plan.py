"""From expected tokens and times to what a batch size earns in the long run, and by which tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECENT = 64
"""Rounds of one load whose mix of ``first_prob`` tells what its rounds earn. 400 are no better on
the paper's records."""


STAY = 0.01
"""Relative gain for which a draft is put to sleep or woken: near a tie it would be both at random,
and waking costs what was saved."""


class Mix:
    """How the requests of recent rounds at one load were spread over the acceptance table's rows.

    Shares rather than counts, so that sizes of one bucket go together.
    """

    def __init__(self, rows: int):
        self._shares = np.zeros((RECENT, rows))
        self._rounds = 0

    def add(self, counts: np.ndarray, size: int) -> None:
        np.divide(counts, size, out=self._shares[self._rounds % RECENT])
        self._rounds += 1

    def shares(self) -> np.ndarray:
        """[rounds, rows], rounds >= 1; all unknown before the first round."""
        if not self._rounds:
            unknown = np.zeros((1, self._shares.shape[1]))
            unknown[0, -1] = 1.0
            return unknown
        return self._shares[: self._rounds]


def long_run_rate(
    tokens: np.ndarray, times: np.ndarray, rate: float, iterations: int = 20
) -> float:
    """The most tokens per second that rounds can earn when each has its own best tier.

    ``tokens`` [rounds, tiers], ``times`` [tiers]. Renewal reward: the best choices maximise
    ``tokens - rate * times`` at the very rate they earn together (Dinkelbach's iteration, which
    converges quadratically from any start).
    """
    every = np.arange(len(tokens))
    for _ in range(iterations):
        choice = (tokens - rate * times).argmax(axis=1)
        earned = float(tokens[every, choice].sum() / times[choice].sum())
        if abs(earned - rate) <= 1e-6 * rate:
            break
        rate = earned
    return earned


@dataclass(slots=True)
class Plan:
    """Every tier's prospects at one batch size, and what is earned there in the long run.

    Tiers are meant by index everywhere; ``tokens`` are per round, bonus included, ``times`` in the
    cost model's units.
    """

    tokens: list[float]
    """Mean over the recent rounds of this load."""
    times: list[float]
    rates: list[float]
    """What each tier would earn if it were kept."""
    best: int
    """The best of them."""
    rate: float
    """What the best choice for every round earns: the price of time."""
    off: bool = False
    """No draft at all earns more: tier 0 is a round that the draft sleeps through."""
    waking: float = 0.0
    """What the draft's pass over what it missed takes then, before it drafts."""

    @classmethod
    def of(
        cls,
        size: int,
        lengths: np.ndarray,
        shares: np.ndarray,
        times: Sequence[float],
        before: Plan | None = None,
        off_time: float | None = None,
    ) -> Plan:
        """``lengths`` [rows, tiers]: expected tokens per request; ``shares`` [rounds, rows].
        From the rate of the plan ``before`` one step of the iteration is enough. ``off_time``:
        that of a round that the draft sleeps through, where tier 0 is depth 0 and it can."""
        each = shares @ lengths
        each *= size
        tokens = (np.add.reduce(each) / len(each)).tolist()
        rates = [n / t for n, t in zip(tokens, times, strict=True)]
        best = rates.index(max(rates))
        rate = rates[best]
        if len(each) > 1:
            clock = np.array(times)
            near = before if before and not before.off else None
            rate = long_run_rate(each, clock, *((near.rate, 1) if near else (rate,)))
        plan = cls(tokens, list(times), rates, best, rate)
        if off_time is not None:
            plan._sleep_if_it_pays(size, off_time, before is not None and before.off)
        return plan

    def _sleep_if_it_pays(self, size: int, off_time: float, asleep: bool) -> None:
        """Decided for the load and not for a round: a draft that slept has no signal for the next
        one, and reads what it missed before it drafts."""
        earned = size / off_time
        if earned > self.rate * (1.0 - STAY if asleep else 1.0 + STAY):
            self.off, self.best, self.rate = True, 0, earned
            self.waking = self.times[0] - off_time
            self.times[0], self.rates[0] = off_time, earned

    def choose(self, tokens: Sequence[float]) -> tuple[int, list[float]]:
        """The tier for a round that may expect ``tokens``, and what each tier loses against it,
        in the cost model's seconds."""
        rate = self.rate
        worth = [n / rate - t for n, t in zip(tokens, self.times, strict=True)]
        if self.off:
            worth = [worth[0], *(w - self.waking for w in worth[1:])]
        most = max(worth)
        return worth.index(most), [most - w for w in worth]

    def loss(self, tier: int) -> float:
        """What a usual round of ``tier`` costs against the best one, in rounds of the best one."""
        lost = self.times[tier] - self.tokens[tier] / self.rates[self.best]
        return max(0.0, lost) / self.times[self.best]

    def most_promising(
        self, hope: Sequence[float], errors: Sequence[float], most_loss: float
    ) -> int | None:
        """The tier that would beat the present rate by most if ``hope`` [tiers] times as many
        tokens come and its time is one standard error, ``errors`` [tiers], shorter than believed;
        None where no affordable tier would."""
        promise, found = self.rate, None
        for tier, (hoped, error) in enumerate(zip(hope, errors, strict=True)):
            if tier == self.best or self.loss(tier) > most_loss:
                continue
            hoped *= self.rates[tier] / (1.0 - min(error, 0.5))
            if hoped > promise:
                promise, found = hoped, tier
        return found
