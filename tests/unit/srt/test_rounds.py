"""Rounds: which times are a round's own, whose clock counts, and which signals belong to whom,
with the orderings of the overlap scheduler (results up to two decisions late) replayed."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sglang_speckv.policy.base import Batch
from sglang_speckv.srt.rounds import FIRST_PROB, DecodeLaunch, FinishedRound, RoundTracker


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


def launch(tracker: RoundTracker, num_steps: int, reqs: list[Req]) -> DecodeLaunch:
    batch = tracker.next_batch(reqs)
    return tracker.launched(reqs, num_steps, signals(num_steps, *[0.5] * len(reqs)), batch)


def finish(tracker: RoundTracker, flying: DecodeLaunch) -> list[FinishedRound]:
    return tracker.finished(flying, [0] * len(flying.reqs))


# ---------------------------------------------------------------------------- times


def test_time_between_results_is_the_rounds_own() -> None:
    clock, reqs = Clock(), [Req(), Req()]
    tracker = RoundTracker(clock=clock)
    tracker.prefilled(reqs, None)
    first = launch(tracker, 3, reqs)
    clock.now = 1.0
    assert finish(tracker, first)[0].outcome.seconds is None  # a prefill came before
    second = launch(tracker, 5, reqs)
    clock.now = 1.25
    (done,) = tracker.finished(second, [5, 1])
    outcome = done.outcome
    assert (outcome.num_steps, outcome.batch_size, outcome.seconds) == (5, 2, 0.25)
    assert outcome.num_correct_drafts == [5, 1]


def test_under_overlap_a_prefill_spoils_the_round_launched_after_it() -> None:
    clock, reqs = Clock(), [Req()]
    tracker = RoundTracker(clock=clock)
    warm = launch(tracker, 1, reqs)
    ahead = launch(tracker, 1, reqs)  # launched before the result of `warm` is here
    tracker.prefilled(reqs, None)
    late = launch(tracker, 1, reqs)
    clock.now = 1.0
    finish(tracker, warm)
    clock.now = 1.5
    assert finish(tracker, ahead)[0].outcome.seconds == 0.5
    clock.now = 9.0
    assert finish(tracker, late)[0].outcome.seconds is None


# ---------------------------------------------------------------------------- several ranks


class RankZero:
    """Remembers what rank 0 broadcast; the other ranks get it in place of their own."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def send(self, payload: torch.Tensor) -> None:
        self.sent.append(payload.clone())

    def receiver(self):
        pending = iter(self.sent)
        return lambda payload: payload.copy_(next(pending))


def learned(share, noise: float, seconds: float) -> list[tuple]:
    """Everything a rank could decide on, with its own clock and its own signals."""
    clock, reqs = Clock(), [Req(), Req()]
    tracker = RoundTracker(share=share, clock=clock)
    tracker.prefilled(reqs, torch.full((2, 2), 0.5 + noise))
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
    zero = RankZero()
    first = learned(zero.send, noise=0.0, seconds=0.125)
    other = learned(zero.receiver(), noise=0.1, seconds=0.5)
    np.testing.assert_equal(other, first)
    assert [entry[:2] for entry in first if len(entry) == 3][1:] == [(5, 0.125), (1, 0.125)]


def test_ranks_would_differ_without_the_broadcast() -> None:
    def alone(payload: torch.Tensor) -> None:
        pass

    assert learned(alone, 0.0, 0.125) != learned(alone, 0.1, 0.5)


def test_a_round_without_an_own_time_stays_without_one() -> None:
    clock, reqs = Clock(), [Req()]
    tracker = RoundTracker(share=lambda payload: None, clock=clock)
    tracker.prefilled(reqs, None)
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


@pytest.mark.parametrize("early_copy", [None, lambda payload: (payload.clone(), Event())])
def test_lag_0_under_overlap_waits_for_the_coming_rounds_signal(early_copy) -> None:
    Event.waits = 0
    tracker = RoundTracker(early_copy=early_copy)
    tracker.waits_for_signals = True
    assert run(tracker, [Req()], decisions_ahead=1)[1:] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert Event.waits == (0 if early_copy is None else 5)


def test_late_never_copies_early_and_never_waits() -> None:
    def forbidden(payload: torch.Tensor):
        raise AssertionError("an early copy costs a wait")

    run(RoundTracker(early_copy=forbidden), [Req()], decisions_ahead=1)


def test_a_rounds_context_is_that_of_its_beginning_though_results_are_late() -> None:
    tracker, reqs = RoundTracker(), [Req(), Req()]
    one, two = launch(tracker, 3, reqs), launch(tracker, 3, reqs)
    seen = []
    for flying in (one, two):
        (done,) = tracker.finished(flying, [3, 0])
        seen.append((done.context_lens, done.outcome.context_len))
        reqs[0].output_ids += [1, 2, 3, 4]
        reqs[1].output_ids += [1]
    assert seen == [([10, 10], 20), ([14, 11], 25)]


def test_a_prefills_signal_reaches_its_requests_first_round() -> None:
    tracker, reqs = RoundTracker(), [Req(), Req()]
    flying = tracker.prefilled(reqs, torch.tensor([[0.7, 1.0], [0.2, 1.0]]))
    assert flying is not None
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
    assert (batch.size, batch.context_len) == (3, 30)
    two = tracker.launched([d, c, a], 1, signals(1, 0.9, 0.8, 0.7), batch)
    c.is_retracted = True
    (done,) = tracker.finished(two, [1, 1, 0])
    np.testing.assert_allclose(done.outcome.first_probs, [math.nan, 0.11])
    assert done.outcome.num_correct_drafts == [1, 0]
    assert [round(r.first_prob, 6) for r in reqs] == [0.7, 0.5, 0.8, 0.9]


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
