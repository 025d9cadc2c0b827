"""A policy under replay meets what it would meet in the engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sglang_speckv.policy import Batch, Decision, Round
from sglang_speckv.policy.stopping import StopRule
from sglang_speckv.replay.walk import Price, Walk, order_of, play
from tests.unit.replay.answers import positions

PRICE = Price({k: 1.0 + 0.1 * k for k in (0, 1, 3, 7)})


class Notes:
    """Plays a sequence of depths and writes down what it is told."""

    name = "notes"
    candidate_steps = (0, 1, 3, 7)

    def __init__(self, *depths: int, awake: bool = True) -> None:
        self._depths, self._awake = depths, awake
        self.batches: list[Batch] = []
        self.outcomes: list[tuple[int, Round]] = []

    def decide(self, batch: Batch) -> Decision:
        self.batches.append(batch)
        steps = self._depths[(len(self.batches) - 1) % len(self._depths)]
        return Decision(steps, "told", 1.5, awake=self._awake)

    def observe(self, outcome: Round) -> None:
        self.outcomes.append((len(self.batches), outcome))

    def snapshot(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("depth", [0, 1, 3, 7])
def test_each_round_begins_where_the_one_before_it_ended(depth: int) -> None:
    at = positions(requests=1, length=50)
    rows: list[int] = []
    walk = Walk(at, [0], 1)
    played = play(Notes(depth), walk, PRICE, witness=lambda i, b, d, w: rows.append(int(w.row[0])))
    correct = np.minimum(at.correct[rows], depth)
    assert rows[0] == 0 and (np.diff(rows) == correct[:-1] + 1).all()
    assert played.tokens.sum() == 50, "all of the answer but its first token, at every depth"
    assert (played.num_steps == depth).all()


def test_recorded_rounds_follow_each_other() -> None:
    at = positions(requests=1, length=50, walked=False)
    played = play(Notes(1), Walk(at, [0], 1), PRICE)
    assert len(played.num_steps) == 50
    assert (played.tokens == np.minimum(at.correct, 1) + 1).all()


def test_requests_take_turns_and_all_slots_are_busy() -> None:
    at = positions(requests=10)
    order = order_of(at, "mixed", 3, np.random.default_rng(0))
    assert Counter(order) == dict.fromkeys(range(10), 3)
    played = play(Notes(3), Walk(at, order, 4), PRICE)
    rounds = played.request.reshape(-1, 4)
    assert len(rounds) == len(played.num_steps)
    served = Counter(played.request.tolist())
    assert set(served) == set(range(10))
    tokens = np.bincount(played.request, played.tokens, 10)
    assert tokens.sum() > 0.8 * 3 * 400, "only what is under way at the end is left out"


def test_phases_bring_one_class_after_the_other() -> None:
    at = positions(requests=10)
    order = order_of(at, "phases", 2, np.random.default_rng(0))
    assert at.labels[order].tolist() == ([0] * 5 + [1] * 5) * 2


def test_batches_and_outcomes_are_those_of_the_positions() -> None:
    at, policy = positions(), Notes(3, 7)
    rows: list[np.ndarray] = []
    play(policy, Walk(at, range(12), 4), PRICE, witness=lambda i, b, d, w: rows.append(w.row))
    batch, (_, outcome) = policy.batches[0], policy.outcomes[0]
    assert batch.size == 4 and (batch.first_probs == at.signals[rows[0], 0, 0]).all()
    assert outcome.num_steps == 3 and outcome.batch_size == 4
    assert outcome.num_correct_drafts == np.minimum(at.correct[rows[0]], 3).tolist()
    assert outcome.seconds == PRICE.seconds[3] and not outcome.asleep
    assert outcome.first_probs is batch.first_probs and outcome.signals is not None
    assert (outcome.signals == at.signals[rows[0], :3]).all()


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_results_and_signals_come_late_by_the_lag(lag: int) -> None:
    at, policy = positions(requests=3), Notes(1)
    rows: list[int] = []
    walk = Walk(at, range(3), 1, lag)
    play(policy, walk, PRICE, lag, witness=lambda i, b, d, w: rows.append(int(w.row[0])))
    assert policy.outcomes[0][0] == lag + 1
    assert len(policy.batches) - len(policy.outcomes) == lag
    seen = [float(batch.first_probs[0]) for batch in policy.batches]
    starts = set(at.start.tolist())
    for i in range(len(rows)):
        begun = next(j for j in range(i, -1, -1) if rows[j] in starts)
        if i - begun < lag:
            assert np.isnan(seen[i]), "another request's signals say nothing of this one"
        else:
            assert seen[i] == at.signals[rows[i - lag], 0, 0]


def test_a_round_that_the_draft_sleeps_through_is_cheaper_and_blinds_the_next() -> None:
    at = positions(requests=2)
    price = Price(PRICE.seconds, asleep=0.5)
    policy = Notes(0, 1, awake=False)
    played = play(policy, Walk(at, range(2), 1), price)
    # awake again it reads up what it missed, which costs what sleeping saved
    assert played.seconds[:3].tolist() == [0.5, 1.1 + 0.5, 0.5]
    assert policy.outcomes[0][1].asleep and not policy.outcomes[1][1].asleep
    assert policy.outcomes[1][1].seconds is None, "as in the engine"
    assert np.isnan(policy.batches[1].first_probs).all()
    assert not np.isnan(policy.batches[2].first_probs).any()
    late = Notes(0, 1, 1, 1, awake=False)
    play(late, Walk(at, range(2), 1, lag=1), price, lag=1, stop=4)
    blind = [bool(np.isnan(batch.first_probs).all()) for batch in late.batches]
    assert blind == [True, False, True, False], "the round after the sleep, told a round late"
    awake = Notes(0, awake=True)
    assert play(awake, Walk(at, range(2), 1), price).seconds[0] == 1.0


def test_a_policy_is_told_noisy_times_and_scored_by_the_true_ones() -> None:
    at, policy = positions(requests=2), Notes(1)
    played = play(policy, Walk(at, range(2), 1), PRICE, noise=np.random.default_rng(0))
    told = [outcome.seconds for _, outcome in policy.outcomes]
    assert (played.seconds == 1.1).all() and len(set(told)) == len(told)
    assert np.mean(told) == pytest.approx(1.1, rel=0.03)


def test_a_policy_that_foresees_is_shown_the_window() -> None:
    class Sees(Notes):
        def foresee(self, signals: np.ndarray) -> None:
            windows.append(signals)

    windows: list[np.ndarray] = []
    at = positions(requests=2)
    play(Sees(1), Walk(at, range(2), 1), PRICE, stop=3)
    assert len(windows) == 3 and (windows[0][0] == at.signals[0]).all()


class Changing(Notes):
    """Its rounds stop at ``last`` drafts and verify ``width`` of every other request."""

    def __init__(self, last: int, width: int) -> None:
        super().__init__(7)
        self.last, self.width = last, width
        self.asked: list[int] = []

    def decide(self, batch: Batch) -> Decision:
        return replace(super().decide(batch), watched=True)

    def goes_on(self, probs: np.ndarray) -> bool:
        self.asked.append(probs.shape[1])
        return probs.shape[1] < self.last

    def widths(self, probs: np.ndarray) -> np.ndarray:
        widths = np.full(len(probs), probs.shape[1])
        widths[::2] = self.width
        return widths


@pytest.mark.parametrize(("last", "made"), [(2, 3), (3, 3), (7, 7)])
def test_a_round_changes_as_its_drafts_say(last: int, made: int) -> None:
    """Asked at every tier from 2 on; a draft that is cut is not accepted and takes no time."""
    at, policy = positions(), Changing(last, 1)
    walk = Walk(at, list(range(12)), 4)
    price = replace(PRICE, token=0.01)
    rows: list[np.ndarray] = []
    played = play(policy, walk, price, witness=lambda i, b, d, w: rows.append(w.row.copy()))
    assert set(policy.asked) == {3}
    assert set(played.num_steps) == {made}
    assert set(played.seconds) == {price.seconds[made] - 2 * (made - 1) * 0.01}
    for (_, outcome), row in zip(policy.outcomes, rows, strict=True):
        widths = np.array([1, made, 1, made])
        assert outcome.num_correct_drafts == np.minimum(at.correct[row], widths).tolist()
        assert outcome.stopped == (made < 7) and outcome.cut == 2 * (made - 1)


class Ruled(Changing):
    """The device makes ``last`` drafts."""

    def stop_rule(self) -> StopRule:
        price = np.where(np.arange(7) < self.last, -1.0, 9.0)
        model = np.zeros((2, 7))
        return StopRule(model, model, np.zeros(4), price)


@pytest.mark.parametrize("last", [1, 4, 7])
def test_in_a_graph_the_device_stops_and_the_whole_depth_is_verified(last: int) -> None:
    at, policy = positions(), Ruled(last, 1)
    price = replace(PRICE, token=0.01, draft=0.02)
    rows: list[np.ndarray] = []
    played = play(
        policy,
        Walk(at, list(range(12)), 4),
        price,
        witness=lambda i, b, d, w: rows.append(w.row.copy()),
        captured=True,
    )
    assert policy.asked == [], "the host"
    assert set(played.num_steps) == {7}
    assert set(played.seconds) == {price.seconds[7] - (7 - last) * 0.02}
    for (_, outcome), row in zip(policy.outcomes, rows, strict=True):
        assert outcome.num_correct_drafts == np.minimum(at.correct[row], last).tolist()
        assert outcome.made == (last if last < 7 else None)
        assert outcome.stopped == (last < 7) and outcome.widths is None
