"""What holds for every policy on every trace, and for any input at all."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_speckv.policy import Batch, Round
from tests.policies import CASES, Case, every_policy
from tests.unit.policy.simulate import TRACES, Engine, Noise


@every_policy
@pytest.mark.parametrize("trace", TRACES)
def test_the_protocol_holds(case: Case, trace: str) -> None:
    policy = case.create()
    result = Engine(TRACES[trace], Noise(lag=2)).run(policy)
    assert set(result.steps) <= set(case.candidate_steps)
    assert all(reason.isidentifier() for reason in result.reasons)
    assert len(json.dumps(policy.snapshot(), allow_nan=False)) < 2000


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
        assert 1.0 <= decision.expected_accept_length <= decision.num_steps + 1


@every_policy
def test_nothing_grows(case: Case) -> None:
    policy = case.create()
    rng = np.random.default_rng(0)
    sizes = []
    for n in range(6000):
        batch_size = int(rng.integers(1, 300))
        steps = policy.decide(Batch(batch_size)).num_steps
        correct = rng.integers(0, steps + 1, batch_size).tolist()
        policy.observe(Round(steps, batch_size, correct, float(rng.lognormal())))
        if n % 250 == 249:
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
rounds = st.builds(
    Round,
    num_steps=st.one_of(st.integers(0, 7), anything),
    batch_size=st.one_of(st.integers(1, 64), anything),
    num_correct_drafts=st.lists(anything, max_size=5),
    seconds=st.one_of(st.floats(0.001, 1), anything),
)


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=["usual", "deep"])
@given(outcomes=st.lists(rounds, max_size=30), size=st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_any_input_is_survived(case: Case, outcomes: list[Any], size: int) -> None:
    policy = case.create()
    for outcome in outcomes:
        policy.observe(outcome)
        assert policy.decide(Batch(size)).num_steps in case.candidate_steps
    assert json.dumps(policy.snapshot(), allow_nan=False)


@given(outcomes=st.lists(st.builds(
    Round,
    num_steps=st.integers(0, 7),
    batch_size=st.integers(1, 64),
    num_correct_drafts=st.lists(st.integers(0, 7), max_size=9),
    seconds=st.one_of(st.none(), st.floats(1e-8, 1e5)),
), max_size=60))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_beliefs_stay_finite_at_any_scale(outcomes: list[Round]) -> None:
    policy = CASES[4].create()
    for outcome in outcomes:
        policy.observe(outcome)
        expected = policy.decide(Batch(outcome.batch_size)).expected_accept_length
        assert expected is not None and math.isfinite(expected)
    json.dumps(policy.snapshot(), allow_nan=False)
