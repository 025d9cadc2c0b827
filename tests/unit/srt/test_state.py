"""Steering from outside: what is refused, what is applied, and that neither ends the scheduler."""

import sys
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.policy.base import Round
from sglang_speckv.srt import state
from sglang_speckv.srt.controller import EnginePolicy


class UpdateRejected(Exception):
    pass


class UpdateHandler:
    def __init__(self, validate: Any, apply: Any) -> None:
        self.validate, self.apply = validate, apply


@pytest.fixture(autouse=True)
def engine_names(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sglang.srt.managers.scheduler_components.internal_state"
    module = ModuleType(name)
    vars(module).update(UpdateRejected=UpdateRejected, _UpdateHandler=UpdateHandler)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def policy() -> EnginePolicy:
    policy = EnginePolicy(SpecKVConfig(policy="static:3", candidate_steps=(0, 1, 3)), 3)
    policy.fuse.armed = True
    return policy


def scheduler(policy: EnginePolicy) -> SimpleNamespace:
    return SimpleNamespace(scheduler=SimpleNamespace(draft_worker=SimpleNamespace(speckv=policy)))


def post(policy: EnginePolicy, key: str, value: Any) -> None:
    """As SGLang handles one key; raises UpdateRejected."""
    handler = state.add_handlers({}, scheduler(policy))[key]
    handler.validate(key, value)
    handler.apply(key, value)


def shown(policy: EnginePolicy) -> Any:
    answer: dict[str, Any] = {}
    state.add_speckv(None, scheduler(policy), answer)
    return answer["speckv"]


def test_what_each_key_does(policy: EnginePolicy) -> None:
    post(policy, state.PIN_KEY, 1)
    assert policy.pinned == 1
    post(policy, state.PIN_KEY, -1)
    assert policy.pinned is None
    post(policy, state.AWAKE_KEY, 1)
    assert policy.kept_awake
    post(policy, state.POLICY_KEY + "throughput", 1)
    assert policy.policy_name == "throughput"
    post(policy, state.POLICY_KEY + "throughput#2", 1)
    assert policy.policy_name == "throughput#2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (state.PIN_KEY, 2),
        (state.PIN_KEY, float("nan")),
        (state.PIN_KEY, 1e300),
        (state.AWAKE_KEY, 2),
        (state.PROFILE_KEY, -1),
        (state.POLICY_KEY + "throughput", 0),
    ],
)
def test_what_is_no_value_of_a_key_is_refused(policy: EnginePolicy, key: str, value: Any) -> None:
    before = shown(policy)
    with pytest.raises(UpdateRejected, match=key):
        post(policy, key, value)
    assert {**shown(policy), "recent": 0} == {**before, "recent": 0}


def test_the_profile_runs_once(policy: EnginePolicy) -> None:
    post(policy, state.PROFILE_KEY, 1)
    assert policy.profiling
    post(policy, state.PROFILE_KEY, 0)
    with pytest.raises(UpdateRejected, match="before the server is ready"):
        post(policy, state.PROFILE_KEY, 1)
    assert not policy.profiling


def test_a_server_that_was_not_to_profile_cannot_be_made_to() -> None:
    config = SpecKVConfig(policy="static:3", candidate_steps=(0, 3), profile_seconds=0)
    with pytest.raises(UpdateRejected):
        post(EnginePolicy(config, 3), state.PROFILE_KEY, 1)


def test_a_profile_that_nobody_ends_ends_itself(policy: EnginePolicy) -> None:
    post(policy, state.PROFILE_KEY, 1)
    rounds = 0
    while policy.profiling:
        steps = policy.get_steps_for_batch(1)
        policy.observe(Round(steps, 1, [0], 0.1))
        rounds += 1
        assert rounds < 1000
    assert policy.get_steps_for_batch(1) == 3
    assert shown(policy)["profile"]


def test_a_fault_behind_a_key_refuses_it(policy: EnginePolicy) -> None:
    def broken(name: str) -> None:
        raise OSError("the artifact is gone")

    policy.prepare = broken  # type: ignore[method-assign]
    with pytest.raises(UpdateRejected, match="the artifact is gone"):
        post(policy, state.POLICY_KEY + "ema", 1)
    policy.pin = broken  # type: ignore[method-assign, assignment]
    post(policy, state.PIN_KEY, 1)
    assert policy.fuse.failures == {"/set_internal_state": 1}


@pytest.mark.parametrize("snapshot", [lambda: 1 / 0, lambda: {"odd": np.float32(1)}])
def test_a_snapshot_that_fails_leaves_the_answer_whole(policy: EnginePolicy, snapshot: Any) -> None:
    policy.policy.snapshot = snapshot  # type: ignore[method-assign]
    assert shown(policy) == {"active": True, "failed": "see the server's log"}
    assert policy.fuse.failures == {"/server_info": 1}
    assert not policy.held


def test_selecting_a_policy_releases_a_held_depth(policy: EnginePolicy) -> None:
    policy.select("static:1")
    policy.hold()
    assert policy.get_steps_for_batch(1) == 3 and shown(policy)["held"]
    assert policy.decision is not None and policy.decision.reason == "fallback"
    post(policy, state.POLICY_KEY + "static:1", 1)
    assert policy.get_steps_for_batch(1) == 1


KEYS = (state.PIN_KEY, state.AWAKE_KEY, state.PROFILE_KEY, f"{state.POLICY_KEY}ema", "speckv_x")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KEYS) | st.text(),
            st.integers(-2, 4) | st.integers() | st.floats() | st.booleans(),
        ),
        max_size=8,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_the_next_round_is_one_that_was_built(
    commands: list[tuple[str, Any]],
) -> None:
    """SGLang's request lets numbers through and nothing else."""
    engine = EnginePolicy(SpecKVConfig(policy="throughput", candidate_steps=(0, 1, 3)), 3)
    engine.fuse.armed = True
    for key, value in commands:
        if key in state.add_handlers({}, scheduler(engine)):
            with suppress(UpdateRejected):
                post(engine, key, value)
        assert engine.get_steps_for_batch(1) in engine.candidate_steps
    assert engine.fuse.failures == {} and shown(engine)["active"]
    assert len(engine._policies) <= 2 * len(engine.selectable())


def test_without_speckv_nothing_is_added() -> None:
    stock = SimpleNamespace(scheduler=SimpleNamespace(draft_worker=None))
    answer: dict[str, Any] = {}
    state.add_speckv(None, stock, answer)
    assert answer == {} and state.add_handlers({"a": 1}, stock) == {"a": 1}
