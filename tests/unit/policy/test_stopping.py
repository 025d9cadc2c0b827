"""Stopping inside of a round: what its drafts say of going on, and what stopped rounds teach."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.policy import Batch, Round
from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.stopping import Stopping
from sglang_speckv.policy.throughput import ThroughputPolicy
from sglang_speckv.replay.walk import drafted

DEPTH = 5


def drafts(rng: np.random.Generator, size: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 probabilities [size, DEPTH] and correct drafts [size] of a draft that knows itself."""
    probs = rng.choice([0.1, 0.9], (size, DEPTH))
    return probs, np.cumprod(rng.random((size, DEPTH)) < probs, axis=1).sum(axis=1)


def window(probs: np.ndarray) -> np.ndarray:
    return np.stack([probs, 1.0 - probs], axis=-1)


def taught(rounds: int = 500) -> Stopping:
    rng, model = np.random.default_rng(0), Stopping(DEPTH)
    for _ in range(rounds):
        probs, correct = drafts(rng)
        model.learn(DEPTH, correct, window(probs))
    return model


def test_drafts_that_are_made_count_by_their_own_probability() -> None:
    survival = taught().survival(np.array([[0.9, 0.9, 0.1], [0.9, 0.1, 0.9]]))
    assert survival is not None
    assert survival[:, 0] == pytest.approx([0.9, 0.9], abs=0.1)
    assert survival[:, 2] == pytest.approx([0.081, 0.081], abs=0.05)
    assert (np.diff(survival) < 0).all()


def test_the_next_draft_counts_by_the_one_before_it() -> None:
    """Of a draft whose confidence lasts, the newest probability says what comes."""
    rng, model = np.random.default_rng(1), Stopping(DEPTH)
    for _ in range(500):
        probs = np.repeat(rng.choice([0.1, 0.9], (2, 1)), DEPTH, axis=1)
        correct = np.cumprod(rng.random((2, DEPTH)) < probs, axis=1).sum(axis=1)
        model.learn(DEPTH, correct, window(probs))
    sure, unsure = (model.survival(np.array([[p]])) for p in (0.9, 0.1))
    assert sure is not None and unsure is not None
    assert sure[0, 1] / sure[0, 0] > unsure[0, 1] / unsure[0, 0] + 0.4


def test_a_request_that_does_worse_than_its_drafts_say_is_believed_to() -> None:
    model = taught()
    probs = np.full((2, DEPTH), 0.9)
    for _ in range(8):
        model.learn(DEPTH, [DEPTH, 0], window(probs), [7, 8])
    good, bad, new = (model.survival(probs[:1, :2], [name]) for name in (7, 8, 9))
    assert good is not None and bad is not None and new is not None
    assert good[0, 2] > new[0, 2] > bad[0, 2] + 0.05


@pytest.mark.parametrize("probs", [[[math.nan, 0.5]], [[0.5, 7.0]], [[0.5, -1.0]]])
def test_an_unknown_signal_tells_nothing(probs: list[list[float]]) -> None:
    model = taught(20)
    before = model.survival(np.array([[0.5]]))
    assert model.survival(np.array(probs)) is None
    assert model.learn(2, [1], window(np.array(probs))) is None
    assert np.array_equal(before, model.survival(np.array([[0.5]])))


@given(
    st.lists(
        st.tuples(
            st.integers(1, DEPTH),
            st.lists(st.integers(-2, 9) | st.floats(), min_size=1, max_size=3),
            st.lists(st.floats(allow_nan=True), min_size=DEPTH, max_size=DEPTH),
        ),
        max_size=20,
    )
)
def test_it_stays_finite_whatever_comes(
    rounds: list[tuple[int, list[float], list[float]]],
) -> None:
    model = Stopping(DEPTH)
    for steps, correct, probs in rounds:
        signals = window(np.tile(probs[:steps], (len(correct), 1)))
        model.learn(steps, correct, signals, list(range(len(correct))))  # type: ignore[arg-type]
        survival = model.survival(np.array([[0.5, 0.999]]), [0])
        assert survival is not None and np.isfinite(survival).all()
        assert (np.diff(survival) <= 0).all()


def test_rounds_that_stopped_do_not_make_deep_drafts_look_better() -> None:
    """They go deep where the drafts were sure: without what was expected of those that were not
    made, deep positions would seem to be accepted more often than they are. In one round of four
    all are made, as in a probe."""
    truth, found = (0.5**2 + 0.9**2) / (0.5 + 0.9), {}
    for told in (True, False):
        rng, stopping, model = np.random.default_rng(3), Stopping(DEPTH), Acceptance(DEPTH)
        for number in range(4000):
            probs = np.full((1, DEPTH), rng.choice([0.5, 0.9]))
            correct = np.cumprod(rng.random((1, DEPTH)) < probs, axis=1).sum(axis=1)
            made = 1 if probs[0, 0] < 0.6 and number % 4 else DEPTH
            shown = np.minimum(correct, made)
            expected = stopping.learn(made, shown, window(probs[:, :made]))
            model.learn(made, shown, None, expected=expected if told and made < DEPTH else None)
        usual = model.survival(np.array([math.nan]))[0]
        found[told] = usual[1] / usual[0]
    assert found[True] == pytest.approx(truth, abs=0.05)
    assert found[False] > truth + 0.08


TIERS = (0, 1, 2, 3, 5)


def policy(draft_seconds: float, stops: bool = True) -> ThroughputPolicy:
    """Knows what rounds take and, from 300 rounds at depth 5, drafts that know themselves."""
    made = ThroughputPolicy(TIERS, 3)
    if stops:
        made.watch(stops=True, widths=False)
    made.profiled(TimedRound(1, k, 0.1 + draft_seconds * max(k - 1, 0)) for k in TIERS)
    rng = np.random.default_rng(5)
    for _ in range(300):
        probs, correct = drafts(rng, 1)
        made.observe(Round(5, 1, correct.tolist(), None, probs[:, 0], window(probs)))
    return made


SURE, UNSURE = np.array([[0.9, 0.9]]), np.array([[0.9, 0.1]])


def test_a_round_goes_on_while_another_draft_is_worth_its_time() -> None:
    cheap, dear = policy(0.001), policy(0.03)
    for each in (cheap, dear):
        decision = each.decide(Batch(1, np.array([0.9])))
        assert (decision.num_steps, decision.watched) == (5, True)
    assert cheap.goes_on(SURE) and dear.goes_on(SURE)
    assert not dear.goes_on(UNSURE)


def test_where_one_draft_is_best_one_is_made() -> None:
    dear = policy(0.06)
    decision = dear.decide(Batch(1, np.array([0.1])))
    assert decision.num_steps == 1


@pytest.mark.parametrize("first", [None, [math.nan], [7.0], "x", [0.9, 0.9]])
def test_a_batch_of_unknown_signals_has_a_depth_of_its_own(first: object) -> None:
    assert not policy(0.001).decide(Batch(1, first)).watched  # type: ignore[arg-type]


def test_only_where_the_engine_asks() -> None:
    assert not policy(0.001, stops=False).decide(Batch(1, np.array([0.9]))).watched


def test_a_signal_that_gets_lost_within_a_round_ends_it_at_the_launch_depth() -> None:
    cheap = policy(0.0001)
    cheap.decide(Batch(1, np.array([0.9])))
    assert cheap.goes_on(np.array([[0.9, math.nan]]))
    assert not cheap.goes_on(np.array([[0.9, 0.9, math.nan]]))


def test_probes_draft_what_was_decided() -> None:
    """Else nothing would be known of drafts that no round wants."""
    cheap = policy(0.001)
    told = [cheap.decide(Batch(1, np.array([0.9]))) for _ in range(100)]
    assert {d.watched for d in told if d.reason == "best"} == {True}
    assert {d.watched for d in told if d.reason == "probe"} == {False}


def batch_policy(token_seconds: float, widths: bool = True) -> ThroughputPolicy:
    """Of four requests, on a machine where a verified token takes so long."""
    made = ThroughputPolicy(TIERS, 3)
    made.watch(stops=False, widths=widths)
    made.profiled(
        TimedRound(4, k, 0.1 + 0.001 * max(k - 1, 0) + token_seconds * 4 * (k + 1)) for k in TIERS
    )
    rng = np.random.default_rng(5)
    for _ in range(300):
        probs, correct = drafts(rng, 4)
        made.observe(Round(5, 4, correct.tolist(), None, probs[:, 0], window(probs)))
    return made


MIXED = np.array([[0.9, 0.9, 0.9], [0.1, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.1]])


def test_of_each_request_the_drafts_are_verified_that_are_worth_their_time() -> None:
    dear = batch_policy(0.006)
    assert dear.decide(Batch(4, MIXED[:, 0])).watched
    widths = dear.widths(MIXED)
    assert widths is not None
    assert widths[0] == 3 and widths[1] < widths[0] and widths[2] <= widths[3]
    free = batch_policy(0.0)
    free.decide(Batch(4, MIXED[:, 0]))
    assert free.widths(MIXED) is None, "none is dear enough"


def test_a_width_does_not_depend_on_later_drafts() -> None:
    """Else a draft that was drawn could be left out for what came of it, and rejection sampling
    would be biased."""
    dear = batch_policy(0.006)
    dear.decide(Batch(4, MIXED[:, 0]))
    for last in (0.01, 0.5, 0.99):
        probs = np.column_stack([MIXED[:, :2], np.full(4, last)])
        widths, before = dear.widths(probs), dear.widths(MIXED[:, :2])
        assert before is not None and widths is not None
        assert (np.minimum(widths, 2) == before).all()


def test_only_where_the_engine_cuts() -> None:
    dear = batch_policy(0.006, widths=False)
    dear.decide(Batch(4, MIXED[:, 0]))
    assert dear.widths(MIXED) is None


def test_drafts_that_are_not_verified_do_not_make_the_others_look_better() -> None:
    """In one round of four all are, as in a probe."""
    found = {}
    for told in (True, False):
        rng, stopping, model = np.random.default_rng(3), Stopping(DEPTH), Acceptance(DEPTH)
        for number in range(1500):
            probs, correct = drafts(rng)
            sure = (probs > 0.5) | (number % 4 == 0)
            widths = np.cumprod(sure, axis=1).sum(axis=1)
            shown = np.minimum(correct, widths)
            expected = stopping.learn(DEPTH, shown, window(probs), None, widths)
            model.learn(DEPTH, shown, None, None, widths, expected if told else None)
        found[told] = model.survival(np.array([math.nan]))[0, 0]
        coming = stopping.survival(np.array([[0.9]]))
        assert coming is not None
        assert coming[0, 1] / coming[0, 0] == pytest.approx(0.5, abs=0.12), "of drafts to come"
    assert found[True] == pytest.approx(0.5, abs=0.1)
    assert found[False] > 0.7


def test_a_round_that_was_cut_counts_for_a_whole_one() -> None:
    """Else the time of a verified token would seem to shrink, and ever more would be cut."""
    dear = batch_policy(0.006)
    before = dear._cost.times(4)
    token = dear._cost.token_time(4)
    probs = np.full((4, 5), 0.9)
    for _ in range(200):
        widths = np.array([1, 2, 0, 5])
        seconds = before[5] - 12 * token
        news = Round(5, 4, [0, 0, 0, 0], seconds, probs[:, 0], window(probs), widths=widths, cut=12)
        dear.observe(news)
    assert dear._cost.times(4)[5] == pytest.approx(before[5], rel=0.02)


@pytest.mark.parametrize("slower", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_drafts_are_cut_on_a_machine_that_is_slower_than_its_profile(
    slower: float, seed: int
) -> None:
    """What was not known of its speed was once taken for cuts that save nothing. Then nothing was
    cut, and nothing could show the opposite."""

    def seconds(size: int, steps: int) -> float:
        return 0.04 + 0.0008 * size * (steps + 1) + 0.001 * max(steps - 1, 0)

    made, rng, cuts = ThroughputPolicy(TIERS, 3), np.random.default_rng(seed), []
    made.watch(stops=True, widths=True)
    made.profiled(TimedRound(n, k, seconds(n, k)) for n in (1, 4, 8) for k in TIERS)
    for _ in range(1000):
        probs = 1.0 / (1.0 + np.exp(-rng.normal(1.0, 1.6, (8, TIERS[-1]))))
        right = np.cumprod(rng.random(probs.shape) < probs, axis=1).sum(axis=1)
        decision = made.decide(Batch(8, probs[:, 0], range(8)))
        steps, widths = drafted(made, decision, probs)
        kept = np.full(8, steps) if widths is None else widths
        cuts.append(8 * steps - int(kept.sum()))
        took = slower * (seconds(8, steps) - 0.0008 * cuts[-1]) * np.exp(rng.normal(0, 0.05))
        made.observe(
            Round(
                steps,
                8,
                np.minimum(right, kept).tolist(),
                float(took),
                probs[:, 0],
                window(probs[:, :steps]),
                requests=range(8),
                stopped=steps < decision.num_steps,
                widths=widths,
                cut=cuts[-1],
            )
        )
    assert np.mean(cuts[-300:]) > 1.0


# ---------------------------------------------------------------------------- on a device


EVERY = tuple(range(DEPTH + 1))


def device_policy(size: int, draft_seconds: float, token_seconds: float = 0.0) -> ThroughputPolicy:
    """Whose rounds the device stops; like :func:`policy`, of ``size`` requests."""
    made = ThroughputPolicy(EVERY, 3)
    made.watch(stops=True, widths=False, on_device=True)
    made.profiled(
        TimedRound(n, k, 0.1 + draft_seconds * max(k - 1, 0) + token_seconds * n * (k + 1))
        for k in EVERY
        for n in (1, size, 4 * size)
    )
    rng = np.random.default_rng(5)
    for _ in range(300):
        probs, correct = drafts(rng, size)
        made.observe(Round(DEPTH, size, correct.tolist(), None, probs[:, 0], window(probs)))
    return made


def test_a_device_goes_on_where_the_policy_would() -> None:
    """With every depth a tier and the same price for the next one."""
    rng, found = np.random.default_rng(6), []
    for draft_seconds in (0.005, 0.02, 0.03, 0.045):
        asked = policy(draft_seconds)
        asked.candidate_steps = EVERY
        for _ in range(20):
            probs = rng.uniform(0.02, 0.98, (1, DEPTH))
            asked.decide(Batch(1, probs[:, 0], [3]))
            assert asked._weighed is not None and asked._stopping is not None
            price = asked._weighed.price * np.diff(asked._weighed.whole)
            rule = asked._stopping.rule(0.0, 1, [3])._replace(price=price)
            made = 1
            while made < DEPTH and asked.goes_on(probs[:, :made]):
                made += 1
            assert rule.drafts(probs) == made
            found.append(made)
    assert set(found) == set(range(1, DEPTH + 1))


def test_a_draft_costs_a_device_the_time_of_its_forward() -> None:
    """What verifying it takes is paid whether it is made or not."""
    for token_seconds in (0.0, 0.004):
        made = device_policy(4, 0.01, token_seconds)
        made.decide(Batch(4, np.full(4, 0.9)))
        rule = made.stop_rule()
        assert rule is not None and made._weighed is not None
        assert rule.price == pytest.approx(made._weighed.price * 0.01, rel=0.15)


@pytest.mark.parametrize("slope", [0.5, 3.0])
def test_a_device_drafts_nothing_for_requests_that_take_no_drafts(slope: float) -> None:
    made = device_policy(2, 0.03)
    made.decide(Batch(2, np.array([0.99, 0.9]), [1, 2], [0]))
    assert made._stopping is not None
    for model in (made._stopping._by_own, made._stopping._by_last):
        model.mean[DEPTH:] = slope
    rule = made.stop_rule()
    assert rule is not None
    sure = np.full((1, DEPTH), 0.999)
    for other in (0.1, 0.5, 0.9, 0.99):
        probs = np.concatenate([sure, np.full((1, DEPTH), other)])
        alone = rule._replace(offsets=rule.offsets[1:])
        assert rule.drafts(probs) == alone.drafts(probs[1:])


def test_a_round_that_the_device_stopped_says_nothing_beyond_its_depth() -> None:
    made = device_policy(1, 0.01)
    learned: list[np.ndarray | None] = []
    made._acceptance.learn = lambda *told: learned.append(told[-1])  # type: ignore[method-assign]
    probs, _ = drafts(np.random.default_rng(0), 1)
    for depth, stopped, made_ in ((3, True, 1), (3, False, None)):
        said = window(probs)[:, :depth]
        news = Round(depth, 1, [0], 0.05, probs[:, 0], said, stopped=stopped, made=made_)
        made.observe(news)
    assert learned[0] is not None and learned[0].shape == (1, 3) and learned[1] is None


def test_a_device_verifies_the_best_depth() -> None:
    made = device_policy(1, 0.03)
    decision = made.decide(Batch(1, np.array([0.9])))
    assert decision.watched and made._weighed is not None
    assert decision.num_steps == EVERY[np.argmax(made._weighed.worth)]


def test_where_nothing_may_stop_a_device_has_no_rule() -> None:
    made = device_policy(1, 0.01)
    assert made.stop_rule() is None, "nothing was decided"
    made.watch(stops=False, widths=False, on_device=True)
    made.decide(Batch(1, np.array([0.9])))
    assert made.stop_rule() is None


def test_a_round_that_the_device_stopped_teaches_what_it_drafted() -> None:
    """As one of that depth that the host stopped, and nothing of how long its tier takes."""
    by_device, by_host = device_policy(2, 0.01), device_policy(2, 0.01)
    before = by_device._cost.times(2)
    rng = np.random.default_rng(8)
    for _ in range(50):
        probs, correct = drafts(rng, 2)
        shown = np.minimum(correct, 2).tolist()
        said = window(probs)
        told = Round(2, 2, shown, None, probs[:, 0], said[:, :2], requests=[1, 2], stopped=True)
        by_host.observe(told)
        said[:, 2:] = math.nan
        told = Round(DEPTH, 2, shown, 0.05, probs[:, 0], said, requests=[1, 2], stopped=True)
        by_device.observe(replace(told, made=2))
    for one, other in (
        (by_device._acceptance._model, by_host._acceptance._model),
        (by_device._stopping._by_own, by_host._stopping._by_own),  # type: ignore[union-attr]
        (by_device._stopping._by_last, by_host._stopping._by_last),  # type: ignore[union-attr]
    ):
        assert np.array_equal(one.mean, other.mean)
    assert by_device._cost.times(2) == before
    by_device.observe(replace(told, made=None))
    assert by_device._cost.times(2) != before
