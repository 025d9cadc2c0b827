"""The one noun of this package, a step policy, and what passes between it and the engine.

Terms are SGLang's: ``num_steps`` is the draft depth of a round (the papers' gamma),
``num_correct_drafts`` counts accepted drafts without the bonus token and
``accept_length = num_correct_drafts + 1`` counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of a decode batch before its round starts."""

    size: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The depth chosen for one round, why (one word, for traces), and what was expected of it.

    ``expected_accept_length`` is the mean per request, bonus included; None where the policy
    does not predict.
    """

    num_steps: int
    reason: str
    expected_accept_length: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """The outcome of one decode round.

    ``num_steps`` is the tier that really produced it (under overlap not the current one).
    ``num_correct_drafts`` has one entry per live request, each in 0..num_steps: an entry equal
    to ``num_steps`` is censored (it could have gone deeper). ``seconds`` is the round's share of
    wall time, None where it was not clean (prefill or idleness in between).
    """

    num_steps: int
    batch_size: int
    num_correct_drafts: Sequence[int]
    seconds: float | None = None


class StepPolicy(Protocol):
    """Chooses a depth for every decode round. Deterministic: no clock, no randomness, so that
    tensor-parallel ranks that are fed the same rounds decide alike."""

    name: str
    candidate_steps: tuple[int, ...]

    def decide(self, batch: Batch) -> Decision:
        """Choose one of ``candidate_steps`` for the coming round."""

    def observe(self, outcome: Round) -> None:
        """Learn from a finished round; rounds come in order, up to two decisions late."""

    def snapshot(self) -> dict[str, object]:
        """State worth showing in ``/server_info``: JSON builtins only, bounded size."""
