"""The one noun of this package, a step policy, and what passes between it and the engine.

Thirteen words, one idea each; SGLang's names where it has them:

- round: draft, verify and accept, once for every request of a decode batch;
- request: one answer that is being made; it is in one round after another;
- depth, ``num_steps``: how many tokens a round drafts per request (the papers' gamma); 0 is none;
- tier: a depth that the server has built, one of ``candidate_steps``. With trees (topk above 1) it
  is a shape, steps and verified tokens; a tier's number is then its place among the candidate
  shapes, and so is ``num_steps`` of a decision and of a round;
- correct drafts, ``num_correct_drafts``: those that were accepted, the bonus token not counted;
- accept length: correct drafts + 1, the bonus token counted;
- width: how many of a request's drafts a round verifies, the first ones;
- label: what a round says of one position of one request, accepted or rejected; nothing where an
  earlier draft was rejected or none was made;
- signal: what the draft says of itself, its top-1 probability or entropy at a position;
- load: how many requests decode together, and what is known of such batches;
- price, the papers' lambda: the tokens per second that the load's best rounds are expected to earn;
- worth: the tokens that a depth is expected to bring, less its time at that price;
- asleep: of rounds at depth 0 through which a separate draft reads nothing; it reads what it missed
  before it drafts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of a decode batch before its round starts.

    ``first_probs`` [size] is per request the draft's newest known top-1 probability of a first
    draft token: of the coming round where the host has it in time, else of an earlier round; NaN
    where unknown. None where nothing taps the draft. ``requests`` [size] are numbers that tell
    requests apart, the same from round to round; None where nobody numbers them. ``closed``: rows
    of requests that take no drafts, whatever their signals say.
    """

    size: int
    first_probs: np.ndarray | None = None
    requests: Sequence[int] | None = None
    closed: Sequence[int] = ()

    @property
    def open_probs(self) -> np.ndarray | None:
        """To decide by and not to learn from: ``first_probs``, 0 in the rows ``closed``."""
        if self.first_probs is None or not self.closed:
            return self.first_probs
        probs = np.array(self.first_probs, dtype=float)
        probs[list(self.closed)] = 0.0
        return probs


@dataclass(frozen=True, slots=True)
class Decision:
    """The depth chosen for one round, why (one word, for traces), and what was expected of it.

    ``expected_accept_length`` is the mean per request, bonus included; None where the policy
    does not predict. ``awake``: at depth 0 a separate draft reads the round's tokens all the same,
    so that the next round has its signal at once; else it sleeps where the engine lets it.
    ``tokens_per_s``: what the policy believes that this load earns, None where it does not say.
    ``watched``: the round's own drafts may change it. At every tier from 2 on the way to
    ``num_steps``, which is then the deepest that it may come to, the engine asks the policy's
    ``goes_on`` whether to draft on, and after the last draft its ``widths`` how many of each
    request's are to be verified. Where a device drafts by itself, it has the policy's ``stop_rule``
    instead, for every draft, and ``num_steps`` is what is verified.
    """

    num_steps: int
    reason: str
    expected_accept_length: float | None = None
    awake: bool = False
    tokens_per_s: float | None = None
    watched: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """The outcome of one decode round.

    ``num_steps`` is the tier that really produced it (under overlap not the current one).
    ``num_correct_drafts`` has one entry per live request, each in 0..num_steps: an entry equal
    to ``num_steps`` is censored (it could have gone deeper). ``seconds`` is the round's share of
    wall time, None where it was not clean (prefill or idleness in between, or it woke the draft).

    ``first_probs`` [live]: what :class:`Batch` said of these requests when the depth was decided,
    so that what is learned has the lag of what is used. ``signals`` [live, num_steps, 2]: per
    draft position the draft's top-1 probability and its entropy divided by the log of the draft
    vocabulary, known only after drafting. Both None where nothing taps the draft. ``asleep``: a
    round at depth 0 that the draft slept through, the cheaper kind. ``requests`` [live] as in
    :class:`Batch`. ``stopped``: it ended before the depth that was decided, by what its own drafts
    said. ``widths`` [live]: how many of each request's drafts were verified, None where all were;
    ``cut``: how many in the whole batch were not. ``made``: where it stopped on the device, the
    drafts that it made of each request, at least 1; ``num_steps`` were verified, those that were
    not made never to be accepted. None where all were made. ``nodes`` [live, drafts, 3], of a tree:
    of every draft that was verified the joint probability of the path to it, its level from 1 on,
    and 1 where it was accepted. None of a chain.
    """

    num_steps: int
    batch_size: int
    num_correct_drafts: Sequence[int]
    seconds: float | None = None
    first_probs: np.ndarray | None = None
    signals: np.ndarray | None = None
    asleep: bool = False
    requests: Sequence[int] | None = None
    stopped: bool = False
    widths: np.ndarray | None = None
    cut: int = 0
    made: int | None = None
    nodes: np.ndarray | None = None


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
