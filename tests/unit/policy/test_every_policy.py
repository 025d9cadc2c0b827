"""What holds for every policy on every trace, and for any input at all."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sglang_speckv.policy import Batch, Round
from sglang_speckv.policy.cost import TimedRound
from tests.policies import Case, every_policy
from tests.unit.policy.simulate import TRACES, Engine, Noise

SEEN = Noise(lag=2, content=0.5, signal="true")
BLIND = replace(SEEN, signal="")


@every_policy
@pytest.mark.parametrize("trace", TRACES)
def test_the_protocol_holds(case: Case, trace: str) -> None:
    policy = case.create()
    result = Engine(TRACES[trace], SEEN).run(policy)
    assert set(result.steps) <= set(case.candidate_steps)
    assert all(reason.isidentifier() for reason in result.reasons)
    assert len(shown(policy)) < 2000
    if case.spec.startswith(("confidence", "paper")):
        assert result.steps != Engine(TRACES[trace], BLIND).run(case.create()).steps
    if case.spec.startswith("paper"):
        assert set(result.reasons[SEEN.lag + 1 :]) == {"predicted"}


@every_policy
def test_the_same_rounds_bring_the_same_decisions(case: Case) -> None:
    first, second = (Engine(TRACES["phases"]).run(case.create()) for _ in range(2))
    assert first.steps == second.steps
    assert first.reasons == second.reasons


@every_policy
def test_expectations_are_accept_lengths(case: Case) -> None:
    policy = case.create()
    Engine(TRACES["phases"]).run(policy)
    decision = policy.decide(Batch(2))
    if decision.expected_accept_length is not None:
        most = case.depth_of(decision.num_steps) + 1
        assert 1.0 <= decision.expected_accept_length <= most


@every_policy
def test_nothing_grows(case: Case) -> None:
    policy = case.create()
    rng = np.random.default_rng(0)
    sizes = []
    for n in range(1500):
        size = int(rng.integers(1, 100))
        firsts = rng.random(size)
        steps = policy.decide(Batch(size, firsts)).num_steps
        correct = rng.integers(0, steps + 1, size).tolist()
        signals = rng.random((size, steps, 2))
        time, asleep = float(rng.lognormal()), steps == 0 and n % 2 == 0
        policy.observe(Round(steps, size, correct, time, firsts, signals, asleep))
        if n % 60 == 59:
            sizes.append(len(pickle.dumps(vars(policy))))
    assert max(sizes[12:]) <= max(sizes[:12]) * 1.05


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.integers(),
    st.floats(),
    st.sampled_from([np.int64(3), np.float32(0.1), np.nan, -1, 10**400]),
)
numbers = st.one_of(
    anything,
    st.lists(anything, max_size=5),
    arrays(float, array_shapes(min_dims=1, max_dims=3, max_side=4), elements=st.floats()),
)
sizes, depths = st.integers(1, 64), st.integers(0, 7)
"""Depths of :data:`CASES` and others."""
times = st.floats(1e-8, 1e5)


def shares(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(float, shape, elements=st.floats(0, 1) | st.just(np.nan))


@st.composite
def true_rounds(draw: st.DrawFn) -> Round:
    """What an engine may say, at any scale of time."""
    live, steps = draw(st.integers(0, 4)), draw(depths)
    correct = draw(st.lists(st.integers(0, steps), min_size=live, max_size=live))
    widths = draw(st.none() | st.just([draw(st.integers(c, steps)) for c in correct]))
    return Round(
        steps,
        max(1, live),
        correct,
        draw(st.none() | times),
        draw(st.none() | shares(live)),
        draw(st.none() | shares(live, steps, 2)),
        asleep=steps == 0 and draw(st.booleans()),
        stopped=draw(st.booleans()),
        widths=None if widths is None else np.array(widths, dtype=int),
        cut=0 if widths is None else steps * live - sum(widths),
        made=draw(st.none() | st.integers(max([1, *correct]), steps)) if steps else None,
    )


garbled_rounds = st.builds(
    Round,
    num_steps=depths | anything,
    batch_size=sizes | anything,
    num_correct_drafts=st.lists(anything, max_size=5),
    seconds=st.floats(0.001, 1) | anything,
    first_probs=numbers,
    signals=numbers,
    asleep=st.booleans(),
    stopped=st.booleans(),
    widths=numbers,
    cut=anything,
    made=st.none() | anything,
)
garbled_batches = st.builds(Batch, size=sizes | anything, first_probs=numbers)
true_rows = st.builds(TimedRound, sizes, depths, times)
garbled_rows = st.builds(
    TimedRound, sizes | anything, st.integers(-2, 9) | anything, anything, st.booleans()
)
asleep_rows = st.builds(TimedRound, sizes, st.just(0), times, st.just(True))
"""All there is where the profile of a draft that sleeps was cut short."""


def profiles(*rows: st.SearchStrategy[TimedRound]) -> st.SearchStrategy[list[Any]]:
    return st.one_of(*(st.lists(row, max_size=8) for row in (asleep_rows, *rows)))


def shown(policy: Any) -> str:
    """What a policy shows, as JSON: built-in types, which NumPy's floats only look like, and finite
    numbers."""
    return json.dumps(msgspec.to_builtins(policy.snapshot()), allow_nan=False)


def tell(policy: Any, news: Any) -> None:
    if isinstance(news, Round):
        policy.observe(news)
    elif hasattr(policy, "profiled"):
        policy.profiled(news)


@every_policy
@given(
    news=st.lists(garbled_rounds | true_rounds() | profiles(garbled_rows), max_size=12),
    batches=st.lists(garbled_batches, min_size=1, max_size=3),
)
@example(
    news=[Round(0, 1, [], 1.0), Round(1, 3, [0, 0, 0], None), []], batches=[Batch(np.int64(3))]
)
@settings(max_examples=20)
def test_any_input_is_survived(case: Case, news: list[Any], batches: list[Batch]) -> None:
    policy = case.create()
    for item in news:
        tell(policy, item)
        for batch in batches:
            decision = policy.decide(batch)
            assert decision.num_steps in case.candidate_steps
            if decision.watched:
                probs = np.array(batch.first_probs, dtype=float)[:, None]
                assert policy.goes_on(probs) in (True, False)
                policy.widths(probs)
                policy.stop_rule()
    assert shown(policy)


@every_policy
@given(
    news=st.lists(true_rounds() | profiles(true_rows), max_size=30), firsts=st.none() | shares(3)
)
@settings(max_examples=20)
def test_beliefs_stay_finite_at_any_scale(
    case: Case, news: list[Any], firsts: np.ndarray | None
) -> None:
    policy = case.create()
    for item in news:
        tell(policy, item)
        expected = policy.decide(Batch(3, firsts)).expected_accept_length
        assert expected is None or 1.0 <= expected <= case.depth_of(case.candidate_steps[-1]) + 1
    assert shown(policy)
