"""One policy serves some requests, several at a time, round by round, as an engine would ask it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_speckv.policy import Batch, Decision, Round, StepPolicy
from sglang_speckv.replay.positions import Positions

NOISE = 0.05
"""Spread of the round times that a policy is told, in logs; it is scored by the true ones."""

Witness = Callable[[int, Batch, Decision, "Walk"], Any]


class Walk:
    """``size`` slots, each with one request; where one ends, the next of ``order`` takes its place.
    It is over as soon as there is none left: all slots are busy in every round.

    ``row`` and ``request`` [size] are where each slot is.
    """

    def __init__(self, positions: Positions, order: Sequence[int], size: int, lag: int = 0) -> None:
        """``lag``: by so many rounds the draft's signals are old when a depth is decided."""
        self.positions = positions
        self._waiting = iter(order[size:])
        self.request = np.array(order[:size])
        self.row = positions.start[self.request]
        self._end = positions.start[self.request + 1]
        self.is_over = len(self.request) < size
        self.names = list(range(size))
        """[size]: numbers that tell requests apart, also the same one in another pass."""
        self._served = size
        self._first = positions.signals[:, 0, 0].astype(float)
        self._told = deque([np.full(size, np.nan) for _ in range(lag)])
        self._told.append(self._first[self.row])

    def first_probs(self) -> np.ndarray:
        """What is known of the coming round's first drafts, [size]."""
        return self._told[0]

    def signals(self) -> np.ndarray:
        """[size, depth, 2]: what the coming round's drafts will say."""
        return self.positions.signals[self.row]

    def correct(self) -> np.ndarray:
        return self.positions.correct[self.row]

    def advance(self, correct: np.ndarray, asleep: bool = False) -> np.ndarray:
        """Go on after a round with so many correct drafts [size]; returns the tokens it brought. A
        draft that was ``asleep`` says nothing of the round to come."""
        self._told.popleft()
        tokens = correct + 1
        if self.positions.walked:
            tokens = np.minimum(tokens, self._end - self.row)
            self.row = self.row + correct + 1
        else:
            self.row = self.row + 1
        for slot in (self.row >= self._end).nonzero()[0].tolist():
            self._replace(slot)
        if not self.is_over:
            now = self._first[self.row]
            self._told.append(np.full(len(now), np.nan) if asleep else now)
        return tokens

    def _replace(self, slot: int) -> None:
        request = next(self._waiting, None)
        if request is None:
            self.is_over = True
            return
        self.request[slot] = request
        self.names[slot], self._served = self._served, self._served + 1
        self.row[slot], self._end[slot] = self.positions.start[request : request + 2]
        for told in self._told:
            told[slot] = np.nan


@dataclass(frozen=True)
class Price:
    """Seconds of a round by num_steps, at one batch size; ``asleep`` is a round without the draft,
    None where there is none or the draft cannot sleep. ``token``: of one verified token; ``draft``:
    of one forward of the draft."""

    seconds: dict[int, float]
    asleep: float | None = None
    token: float = 0.0
    draft: float = 0.0

    def of(
        self,
        num_steps: int,
        sleeps: bool = False,
        slept: bool = False,
        cut: int = 0,
        spared: int = 0,
    ) -> float:
        """Of a round in which ``cut`` drafts are not verified, or the last ``spared`` ones not
        made. A draft that ``slept`` through the round before reads up what it missed: one pass
        more, as much as sleeping had saved."""
        seconds = self.seconds[num_steps] - cut * self.token - spared * self.draft
        if self.asleep is None or not (sleeps or slept):
            return seconds
        return self.asleep if sleeps else seconds + self.seconds[0] - self.asleep


@dataclass(frozen=True, eq=False)
class Played:
    """Per round [n]: num_steps, the expected accept length or NaN, seconds. Per request-round
    [n * size], the requests of a round side by side: which one, and its tokens."""

    num_steps: np.ndarray
    expected: np.ndarray
    seconds: np.ndarray
    request: np.ndarray
    tokens: np.ndarray

    @property
    def size(self) -> int:
        return len(self.tokens) // max(1, len(self.num_steps))


def play(
    policy: StepPolicy,
    walk: Walk,
    price: Price,
    lag: int = 0,
    noise: np.random.Generator | None = None,
    stop: int | None = None,
    witness: Witness | None = None,
    captured: bool = False,
) -> Played:
    """Decide, look up, observe, until the walk is over or for ``stop`` rounds. ``captured``: a
    graph drafts and stops by itself, and the whole depth is verified.

    Results reach the policy ``lag`` decisions late. A policy with a ``foresee`` method is shown
    the coming drafts' signals first: what stopping inside of the round would know.
    """
    size = len(walk.request)
    steps: list[int] = []
    expected, seconds, requests, tokens = [], [], [], []
    late: deque[Round] = deque()
    foresee: Any = getattr(policy, "foresee", None)
    slept = False
    while not walk.is_over and len(steps) != stop:
        names = tuple(walk.names)
        batch = Batch(size, walk.first_probs(), names)
        if foresee is not None:
            foresee(walk.signals())
        decision = policy.decide(batch)
        if witness is not None:
            witness(len(steps), batch, decision, walk)
        probs = walk.signals()[:, :, 0]
        if captured:
            k, widths = decision.num_steps, None
            made = drafted_in_graph(policy, decision, probs)
        else:
            k, widths = drafted(policy, decision, probs)
            made = k
        cut = 0 if widths is None else int(k * size - widths.sum())
        sleeps = k == 0 and price.asleep is not None and not decision.awake
        took = price.of(k, sleeps, slept, cut, k - made)
        told: float | None = (
            took if noise is None else took * float(np.exp(noise.normal(0.0, NOISE)))
        )
        if slept and not sleeps:
            told = None  # as in the engine: the round also reads what the draft missed
        correct = np.minimum(walk.correct(), made if widths is None else widths)
        signals = walk.signals()[:, :k] if k else None
        firsts = batch.first_probs
        early = made < decision.num_steps
        late.append(
            Round(
                k,
                size,
                correct.tolist(),
                told,
                firsts,
                signals,
                sleeps,
                names,
                stopped=early,
                widths=widths,
                cut=cut,
                made=made if made < k else None,
            )
        )
        if len(late) > lag:
            policy.observe(late.popleft())
        steps.append(k)
        length = decision.expected_accept_length
        expected.append(np.nan if length is None else length)
        seconds.append(took)
        requests.append(walk.request.copy())
        tokens.append(walk.advance(correct, sleeps))
        slept = sleeps
    empty = np.empty(0, dtype=np.int64)
    return Played(
        np.array(steps, dtype=np.int64),
        np.array(expected),
        np.array(seconds),
        np.concatenate([empty, *requests]),
        np.concatenate([empty, *tokens]),
    )


def drafted(policy: Any, decision: Decision, probs: np.ndarray) -> tuple[int, np.ndarray | None]:
    """How many drafts a round makes, whose drafts would have the top-1 probabilities ``probs``
    [size, depth], and how many of each request's it verifies; None where all are."""
    if not decision.watched:
        return decision.num_steps, None
    between = (k for k in policy.candidate_steps if 2 <= k < decision.num_steps)
    steps = next((k for k in between if not policy.goes_on(probs[:, :k])), decision.num_steps)
    return steps, policy.widths(probs[:, :steps])


def drafted_in_graph(policy: Any, decision: Decision, probs: np.ndarray) -> int:
    """How many drafts a device makes by the policy's rule."""
    rule = policy.stop_rule() if decision.watched else None
    made: int = decision.num_steps if rule is None else rule.drafts(probs[:, : decision.num_steps])
    return made


def order_of(
    positions: Positions, traffic: str, passes: int, rng: np.random.Generator
) -> list[int]:
    """Requests in the order in which they come: all of them shuffled, or label after label
    (``phases``), several times over."""
    order: list[int] = []
    labels = positions.labels
    for _ in range(passes):
        shuffled = rng.permutation(len(labels))
        if traffic == "phases":
            shuffled = shuffled[np.argsort(labels[shuffled], kind="stable")]
        order += shuffled.tolist()
    return order
