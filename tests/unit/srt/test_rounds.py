"""Rounds: which times are a round's own, whose clock counts, and which signals belong to whom,
with the orderings of the overlap scheduler (results up to two decisions late) replayed."""

import gc
import math
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sglang_speckv.config import Shape
from sglang_speckv.policy.base import Batch, Decision
from sglang_speckv.srt.rounds import (
    FIRST_PROB,
    TROUBLE,
    DecodeLaunch,
    FinishedRound,
    RoundTracker,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Req:
    """What the tracker reads of SGLang's request."""

    origin_input_ids: list[int] = field(default_factory=lambda: [0] * 10)
    output_ids: list[int] = field(default_factory=list)
    is_retracted: bool = False
    done: bool = False

    def finished(self) -> bool:
        return self.done

    @property
    def first_prob(self) -> float:
        return getattr(self, FIRST_PROB, math.nan)


def signals(num_steps: int, *rows: float) -> torch.Tensor:
    """One row per request: the coming round's first probability is `row`, others count up."""
    table = torch.zeros(len(rows), num_steps + 1, 2)
    for i, value in enumerate(rows):
        table[i, :, 0] = torch.arange(num_steps + 1) / 100 + i / 10
        table[i, :, 1] = 2.0
        table[i, -1, 0] = value
    return table


UNKNOWN = torch.full((1, 1, 2), math.nan)
"""A prefill's signals that say nothing."""


def launch(tracker: RoundTracker, num_steps: int, reqs: list[Req]) -> DecodeLaunch:
    batch = tracker.next_batch(reqs)
    return tracker.launched(reqs, num_steps, signals(num_steps, *[0.5] * len(reqs)), batch)


def finish(tracker: RoundTracker, flying: DecodeLaunch) -> list[FinishedRound]:
    return tracker.finished(flying, [0] * len(flying.reqs))


# ---------------------------------------------------------------------------- times


def test_time_between_results_is_the_rounds_own() -> None:
    clock, reqs = Clock(), [Req(), Req()]
    tracker = RoundTracker(clock=clock)
    tracker.prefilled(reqs, UNKNOWN.expand(len(reqs), 1, 2))
    first = launch(tracker, 3, reqs)
    clock.now = 1.0
    assert finish(tracker, first)[0].outcome.seconds is None  # a prefill came before
    second = launch(tracker, 5, reqs)
    clock.now = 1.25
    (done,) = tracker.finished(second, [5, 1])
    outcome = done.outcome
    assert (outcome.num_steps, outcome.batch_size, outcome.seconds) == (5, 2, 0.25)
    assert outcome.num_correct_drafts == [5, 1]


def test_under_overlap_a_prefill_spoils_the_rounds_on_both_sides() -> None:
    """The time between the results of `warm` and `ahead` holds the prefill's launch."""
    clock, reqs = Clock(), [Req()]
    tracker = RoundTracker(clock=clock)
    warm = launch(tracker, 1, reqs)
    ahead = launch(tracker, 1, reqs)  # launched before the result of `warm` is here
    finish(tracker, warm)
    tracker.prefilled(reqs, UNKNOWN)
    clock.now = 1.5
    assert finish(tracker, ahead)[0].outcome.seconds is None
    late, then = launch(tracker, 1, reqs), launch(tracker, 1, reqs)
    clock.now = 9.0
    assert finish(tracker, late)[0].outcome.seconds is None
    launch(tracker, 1, reqs)
    clock.now = 9.5
    assert finish(tracker, then)[0].outcome.seconds == 0.5


# ---------------------------------------------------------------------------- several ranks


class Ranks:
    """Two ranks in lockstep: what `_share` of the worker does, rank 0 first."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []
        self.received = 0

    def zero(self, payload: torch.Tensor) -> torch.Tensor:
        self.sent.append(payload.clone())
        return payload

    def one(self, payload: torch.Tensor) -> torch.Tensor:
        """Rank 0's numbers. (Its payload cannot show rank 1's trouble: it is sent already.)"""
        shared = self.sent[self.received].clone()
        shared[TROUBLE] += payload[TROUBLE]
        self.received += 1
        return shared


def learned(share, noise: float, seconds: float) -> list[tuple]:
    """Everything a rank could decide on, with its own clock and its own signals."""
    clock, reqs = Clock(), [Req(), Req()]
    tracker = RoundTracker(share=share, clock=clock)
    tracker.prefilled(reqs, torch.full((2, 1, 2), 0.5 + noise))
    seen = []
    for num_steps in (3, 5, 1, 0):
        batch = tracker.next_batch(reqs)
        seen.append(tuple(batch.first_probs))
        table = signals(num_steps, 0.3 + noise, 0.6 + noise)
        flying = tracker.launched(reqs, num_steps, table, batch)
        clock.now += seconds
        for done in tracker.finished(flying, [0, 0]):
            outcome = done.outcome
            seen.append((outcome.num_steps, outcome.seconds, outcome.signals.tolist()))
    return seen


def test_every_rank_learns_what_rank_zero_measured() -> None:
    ranks = Ranks()
    first = learned(ranks.zero, noise=0.0, seconds=0.125)
    other = learned(ranks.one, noise=0.1, seconds=0.5)
    np.testing.assert_equal(other, first)
    assert [entry[:2] for entry in first if len(entry) == 3][1:] == [(5, 0.125), (1, 0.125)]


def test_ranks_would_differ_without_the_broadcast() -> None:
    def alone(payload: torch.Tensor) -> torch.Tensor:
        return payload

    assert learned(alone, 0.0, 0.125) != learned(alone, 0.1, 0.5)


def test_nothing_keeps_rounds_alive_that_are_over() -> None:
    """Every launch held the one before it through the rounds whose time it settled."""
    tracker = RoundTracker(share=Ranks().zero)
    alive: list[weakref.ref] = []
    for _ in range(50):
        reqs = [Req(), Req()]
        alive += map(weakref.ref, reqs)
        finish(tracker, launch(tracker, 3, reqs))
        del reqs
    gc.collect()
    launches = sum(type(thing) is DecodeLaunch for thing in gc.get_objects())
    assert sum(ref() is not None for ref in alive) <= 4
    assert launches <= 2


def test_ranks_that_decide_alike_raise_no_alarm() -> None:
    ranks, alarms = Ranks(), []
    for share in (ranks.zero, ranks.one):
        tracker = RoundTracker(share=share, alarm=lambda: alarms.append(1))
        for digest in (3, 0xFFFFFF, 0):
            finish(tracker, tracker.launched([Req()], 1, signals(1, 0.5), digest=digest))
    assert not alarms


def test_a_rank_that_decided_by_other_beliefs_alarms_every_rank() -> None:
    """It finds out with the result, tells the others with its next launch, and all of them are
    alarmed by that one's result."""
    ranks: list[tuple[RoundTracker, list[int]]] = []
    round_of: list[int] = []
    payloads: list[torch.Tensor] = []

    def share(rank: int):
        def shared(payload: torch.Tensor) -> torch.Tensor:
            if rank == 0:
                payloads.append(payload)
            payloads[-1][TROUBLE] += payload[TROUBLE] if rank else 0
            return payloads[-1]

        return shared

    for rank in (0, 1):
        alarms: list[int] = []
        note = lambda alarms=alarms: alarms.append(len(round_of))  # noqa: E731
        ranks.append((RoundTracker(share=share(rank), alarm=note), alarms))
    for number in range(4):
        round_of.append(number)
        digests = (7, 8 if number == 1 else 7)
        flying = [
            tracker.launched([Req()], 1, signals(1, 0.5), digest=digest)
            for (tracker, _), digest in zip(ranks, digests, strict=True)
        ]
        for (tracker, _), launched in zip(ranks, flying, strict=True):
            finish(tracker, launched)
    assert [alarms for _, alarms in ranks] == [[3], [3]]


def test_one_rank_alone_is_alarmed_at_once() -> None:
    alarms: list[int] = []
    RoundTracker(alarm=lambda: alarms.append(1)).distrust()
    assert alarms == [1]


def test_a_round_without_an_own_time_stays_without_one() -> None:
    clock, reqs = Clock(), [Req()]
    tracker = RoundTracker(share=Ranks().zero, clock=clock)
    tracker.prefilled(reqs, UNKNOWN.expand(len(reqs), 1, 2))
    assert finish(tracker, launch(tracker, 3, reqs)) == []
    (done,) = finish(tracker, launch(tracker, 3, reqs))
    assert done.outcome.seconds is None


# ---------------------------------------------------------------------------- signals and their lag


def run(tracker: RoundTracker, reqs: list[Req], decisions_ahead: int) -> list[float]:
    """What the decision for round n knows, n = 0, 1, ...; the first draft of round n + 1 gets the
    probability n / 10. `decisions_ahead` results are outstanding when a round is launched."""
    flying: list[DecodeLaunch] = []
    known = []
    for n in range(6):
        batch = tracker.next_batch(reqs)
        known.append(float(batch.first_probs[0]))
        flying.append(tracker.launched(reqs, 2, signals(2, n / 10), batch))
        while len(flying) > decisions_ahead:
            finish(tracker, flying.pop(0))
    return known


def test_without_overlap_the_signal_is_that_of_the_coming_round() -> None:
    assert run(RoundTracker(), [Req()], decisions_ahead=0)[1:] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3, 0.4]
    )


def test_late_under_overlap_means_the_signal_of_the_round_before() -> None:
    assert run(RoundTracker(), [Req()], decisions_ahead=1)[2:] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3]
    )


class Event:
    waits = 0

    def synchronize(self) -> None:
        Event.waits += 1


def test_lag_0_under_overlap_waits_for_the_coming_rounds_signal() -> None:
    Event.waits = 0
    tracker = RoundTracker(early_copy=lambda payload: (payload.clone(), Event()))
    tracker.waits_for_signals = True
    assert run(tracker, [Req()], decisions_ahead=1)[1:] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert Event.waits == 5


def test_late_never_copies_early_and_never_waits() -> None:
    def forbidden(payload: torch.Tensor):
        raise AssertionError("an early copy costs a wait")

    run(RoundTracker(early_copy=forbidden), [Req()], decisions_ahead=1)


def test_a_requests_context_is_that_of_its_rounds_beginning_though_results_are_late() -> None:
    tracker, reqs = RoundTracker(), [Req(), Req()]
    one, two = launch(tracker, 3, reqs), launch(tracker, 3, reqs)
    seen = []
    for flying in (one, two):
        (done,) = tracker.finished(flying, [3, 0])
        seen.append(done.context_lens)
        reqs[0].output_ids += [1, 2, 3, 4]
        reqs[1].output_ids += [1]
    assert seen == [[10, 10], [14, 11]]


def test_a_prefills_signal_reaches_its_requests_first_round() -> None:
    tracker, reqs = RoundTracker(), [Req(), Req()]
    flying = tracker.prefilled(reqs, torch.tensor([[[0.7, 1.0]], [[0.2, 1.0]]]))
    assert np.isnan(tracker.next_batch(reqs).first_probs).all()
    tracker.landed(flying)
    np.testing.assert_allclose(tracker.next_batch(reqs).first_probs, [0.7, 0.2], rtol=1e-6)


def test_signals_follow_the_request_when_rows_move() -> None:
    """Round 1 holds a, b, c; b finishes with it; round 2 was launched with d in front."""
    tracker = RoundTracker()
    tracker.log_vocab = 4.0
    a, b, c, d = reqs = [Req() for _ in range(4)]
    one = launch(tracker, 2, [a, b, c])
    b.done = True
    (done,) = tracker.finished(one, [2, 1, 0])
    assert (done.live, done.outcome.num_correct_drafts) == ([0, 2], [2, 0])
    assert done.outcome.batch_size == 3
    np.testing.assert_allclose(done.outcome.signals[:, :, 0], [[0.0, 0.01], [0.2, 0.21]], atol=1e-6)
    np.testing.assert_allclose(done.outcome.signals[:, :, 1], 0.5)  # nats over log vocabulary
    setattr(a, FIRST_PROB, 0.11), setattr(c, FIRST_PROB, 0.33)
    batch = tracker.next_batch([d, c, a])
    np.testing.assert_allclose(batch.first_probs, [math.nan, 0.33, 0.11])
    assert batch.size == 3
    two = tracker.launched([d, c, a], 1, signals(1, 0.9, 0.8, 0.7), batch)
    c.is_retracted = True
    (done,) = tracker.finished(two, [1, 1, 0])
    np.testing.assert_allclose(done.outcome.first_probs, [math.nan, 0.11])
    assert done.outcome.num_correct_drafts == [1, 0]
    assert [round(r.first_prob, 6) for r in reqs] == [0.7, 0.5, 0.8, 0.9]


def test_widths_follow_the_request_when_one_is_gone() -> None:
    tracker, reqs = RoundTracker(), [Req() for _ in range(3)]
    decision = Decision(5, "best", watched=True)
    widths = np.array([2, 0, 1])
    batch = tracker.next_batch(reqs)
    flying = tracker.launched(reqs, 2, signals(2, 0.5, 0.5, 0.5), batch, decision, widths=widths)
    reqs[0].done = True
    (done,) = tracker.finished(flying, [2, 0, 1])
    assert done.outcome.stopped and done.outcome.cut == 3
    assert done.outcome.widths is not None and done.outcome.widths.tolist() == [0, 1]
    whole = finish(tracker, launch(tracker, 2, reqs))[0].outcome
    assert (whole.stopped, whole.widths, whole.cut) == (False, None, 0)


@pytest.mark.parametrize(
    ("made", "told"), [(1, 1), (3, 3), (5, None), (0, None), (9, None), (None, None)]
)
def test_a_round_says_where_the_device_stopped_it(made: int | None, told: int | None) -> None:
    tracker, reqs = RoundTracker(), [Req()]
    decision, batch = Decision(5, "best", watched=True), tracker.next_batch(reqs)
    device = None if made is None else torch.tensor(made, dtype=torch.int32)
    flying = tracker.launched(reqs, 5, signals(5, 0.5), batch, decision, made=device)
    outcome = finish(tracker, flying)[0].outcome
    assert (outcome.num_steps, outcome.made, outcome.stopped) == (5, told, told is not None)
    assert (outcome.widths, outcome.cut) == (None, 0)
    np.testing.assert_allclose(outcome.signals[0, :, 0], np.arange(5) / 100, atol=1e-6)


def test_the_tier_of_a_round_is_the_one_that_launched_it() -> None:
    tracker, reqs = RoundTracker(), [Req()]
    deep, shallow, off = (launch(tracker, k, reqs) for k in (7, 1, 0))
    outcomes = [tracker.finished(x, [c])[0].outcome for x, c in ((deep, 6), (shallow, 1), (off, 0))]
    assert [(o.num_steps, o.num_correct_drafts) for o in outcomes] == [(7, [6]), (1, [1]), (0, [0])]
    assert [o.signals.shape for o in outcomes] == [(1, 7, 2), (1, 1, 2), (1, 0, 2)]


def test_a_launch_whose_result_never_comes_is_forgotten() -> None:
    tracker, reqs = RoundTracker(), [Req()]
    for _ in range(10):
        launch(tracker, 1, reqs)
    last = launch(tracker, 1, reqs)
    assert len(finish(tracker, last)) == 1
    assert not tracker._flying


def test_what_a_decision_saw_comes_back_with_its_outcome() -> None:
    tracker, reqs = RoundTracker(), [Req()]
    setattr(reqs[0], FIRST_PROB, 0.25)
    flying = launch(tracker, 1, reqs)
    setattr(reqs[0], FIRST_PROB, 0.75)  # newer, but not known when the depth was decided
    assert finish(tracker, flying)[0].outcome.first_probs.tolist() == [0.25]
    assert isinstance(flying.batch, Batch)


def test_what_a_closed_requests_draft_says_is_learned_from_all_the_same() -> None:
    tracker, reqs = RoundTracker(), [Req(), Req()]
    for req in reqs:
        setattr(req, FIRST_PROB, 0.75)
    batch = tracker.next_batch(reqs, closed=[1])
    assert batch.open_probs is not None and batch.open_probs.tolist() == [0.75, 0.0]
    flying = tracker.launched(reqs, 2, signals(2, 0.5, 0.6), batch)
    (done,) = tracker.finished(flying, [1, 0])
    assert done.outcome.first_probs.tolist() == [0.75, 0.75]


def test_requests_without_drafts_are_counted_and_not_learned_from() -> None:
    tracker, reqs = RoundTracker(), [Req(), Req(), Req()]
    batch = tracker.next_batch(reqs, closed=[0, 2])
    assert batch.open_probs is not None and batch.open_probs[[0, 2]].tolist() == [0.0, 0.0]
    names = ("min_p", None, "presence_penalty")
    flying = tracker.launched(reqs, 2, signals(2, 0.5, 0.6, 0.7), batch, exact=names)
    reqs[2].done = True
    (done,) = tracker.finished(flying, [0, 1, 0])
    assert (done.exact, list(done.live), done.outcome.num_correct_drafts) == (["min_p"], [1], [1])
    assert done.outcome.batch_size == 3 and done.outcome.requests == [1]


# ---------------------------------------------------------------------------- trees


def test_a_trees_nodes_go_with_their_requests() -> None:
    tracker, reqs = RoundTracker(), [Req(), Req()]
    told = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float() / 100
    told[:, -1, 0] = torch.tensor([0.25, 0.75])
    flying = tracker.launched(reqs, 2, told, tracker.next_batch(reqs), tree=Shape(3, 4))
    assert flying.shape == (3, 4)
    reqs[0].done = True
    (done,) = tracker.finished(flying, [1, 2])
    assert done.outcome.signals is None and done.outcome.num_correct_drafts == [2]
    assert done.outcome.nodes is not None
    np.testing.assert_allclose(done.outcome.nodes, told[1:, :-1].numpy())
    assert [req.first_prob for req in reqs] == [0.25, 0.75]


def test_a_chain_has_no_nodes() -> None:
    tracker, reqs = RoundTracker(), [Req()]
    flying = launch(tracker, 3, reqs)
    assert flying.shape == (3, 4)
    assert finish(tracker, flying)[0].outcome.nodes is None
