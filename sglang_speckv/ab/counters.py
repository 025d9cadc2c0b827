"""What a SpecKV server counts (``internal_states[0]["speckv"]``), and differences of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec

from sglang_speckv.ab.client import ServerError

Reliability = tuple[tuple[float, float, float], ...]


class Counters(msgspec.Struct, frozen=True):
    """Cumulative since start, or what one block added.

    ``rounds`` are decode rounds by step count, ``request_rounds`` the same times requests;
    ``recent`` the newest rounds as (seconds since start, num_steps, batch size, and whatever a
    later version adds).
    """

    rounds: dict[str, int]
    request_rounds: int
    proposed_drafts: int
    correct_drafts: int
    switches: int = 0
    fallbacks: int = 0
    recent: tuple[tuple[float, ...], ...] = ()

    def since(self, before: Counters) -> Counters:
        rounds = {tier: n - before.rounds.get(tier, 0) for tier, n in self.rounds.items()}
        new = sum(rounds.values())
        return Counters(
            rounds,
            self.request_rounds - before.request_rounds,
            self.proposed_drafts - before.proposed_drafts,
            self.correct_drafts - before.correct_drafts,
            self.switches - before.switches,
            self.fallbacks - before.fallbacks,
            self.recent[-new:] if new > 0 else (),
        )

    def __add__(self, other: Counters) -> Counters:
        tiers = self.rounds.keys() | other.rounds.keys()
        return Counters(
            {tier: self.rounds.get(tier, 0) + other.rounds.get(tier, 0) for tier in tiers},
            self.request_rounds + other.request_rounds,
            self.proposed_drafts + other.proposed_drafts,
            self.correct_drafts + other.correct_drafts,
            self.switches + other.switches,
            self.fallbacks + other.fallbacks,
            self.recent + other.recent,
        )

    @property
    def accept_rate(self) -> float | None:
        """Correct / proposed, with what was really proposed; None where nothing was."""
        return self.correct_drafts / self.proposed_drafts if self.proposed_drafts else None

    @property
    def accept_length(self) -> float | None:
        """Tokens per request and decode round, bonus token included."""
        return 1 + self.correct_drafts / self.request_rounds if self.request_rounds else None

    def shares(self, batch_sizes: tuple[int, int] | None = None) -> dict[str, float]:
        """Part of the rounds by num_steps, ascending; of batches above the one size and up to the
        other only the newest rounds are known."""
        if batch_sizes is None:
            return shares_of(self.rounds)
        low, high = batch_sizes
        found: dict[str, float] = {}
        for _, num_steps, size, *_ in self.recent:
            if low < size <= high:
                found[str(int(num_steps))] = found.get(str(int(num_steps)), 0) + 1
        return shares_of(found)

    def step_seconds(self, batch_sizes: tuple[int, int] | None = None) -> dict[str, float]:
        """Seconds by num_steps of the newest rounds of one block: a round lasts from the one before
        it."""
        low, high = batch_sizes or (0, 1 << 30)
        found: dict[str, float] = {}
        for (before, *_), (moment, num_steps, size, *_) in pairwise(self.recent):
            if low < size <= high:
                tier = str(int(num_steps))
                found[tier] = found.get(tier, 0.0) + moment - before
        return found


def shares_of(amounts: Mapping[str, float]) -> dict[str, float]:
    """Of their sum, ascending by num_steps."""
    total = sum(amounts.values())
    return {tier: amounts[tier] / total for tier in sorted(amounts, key=int) if amounts[tier]}


def read_reliability(state: dict[str, Any]) -> Reliability:
    """How often drafts were accepted that the policy gave a probability: bins of (mean prediction,
    share accepted, drafts); empty where the policy does not predict."""
    speckv = state.get("speckv")
    told = speckv.get("policy_state") if isinstance(speckv, dict) else None
    calibration = told.get("calibration") if isinstance(told, dict) else None
    bins = calibration.get("reliability", ()) if isinstance(calibration, dict) else ()
    try:
        return msgspec.convert(bins, Reliability)
    except msgspec.ValidationError:
        return ()


def read_counters(state: dict[str, Any], server: str) -> Counters | None:
    """The counters in one ``internal_states`` entry; None where SpecKV is not active."""
    speckv = state.get("speckv")
    if not isinstance(speckv, dict) or speckv.get("active") is not True:
        return None
    try:
        return msgspec.convert(speckv, Counters)
    except msgspec.ValidationError as error:
        raise ServerError(
            f"server {server}: its SpecKV counters are unreadable ({error})"
        ) from None
