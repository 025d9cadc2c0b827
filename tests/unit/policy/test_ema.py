"""Our EMA rule against SGLang's own, step for step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_speckv.config import ConfigError
from sglang_speckv.policy import Batch, Round, create_policy
from sglang_speckv.policy.ema import EmaPolicy

ALL = tuple(range(9))

slot = st.fixed_dictionaries(
    {"candidate_steps": st.lists(st.integers(0, 8), min_size=1, max_size=5)},
    optional={
        "ema_alpha": st.floats(0.05, 1),
        "update_interval": st.integers(1, 6),
        "warmup_batches": st.integers(0, 12),
        "down_hysteresis": st.floats(-1, 1),
        "up_hysteresis": st.floats(-1, 1),
        "ceiling_coeff": st.sampled_from([0, 0.7, 1, 1.5, 3]),
    },
)
config = st.builds(
    lambda slots, common: {**{str(size): each for size, each in slots.items()}, **common},
    st.dictionaries(st.integers(1, 40), slot, min_size=1, max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "ema_alpha": st.floats(0.05, 1),
            "warmup_batches": st.integers(0, 5),
            "speckv": st.just({"policy": "ema"}),
        },
    ),
)
rounds = st.lists(st.tuples(st.integers(1, 48), st.integers(0, 8), st.booleans()), max_size=80)


def outcome(size: int, depth: int, steps: int, empty: bool) -> Round:
    correct = [] if empty else [min(steps, (depth + i) % 9) for i in range(size)]
    return Round(steps, size, correct)


@pytest.fixture(scope="module")
def theirs() -> Any:
    module = pytest.importorskip("sglang.srt.speculative.adaptive_spec_params")
    return module.AdaptiveSpeculativeParams


@given(
    settings_json=st.one_of(st.none(), config),
    initial=st.integers(0, 8),
    graph_sizes=st.one_of(st.none(), st.lists(st.integers(1, 40), max_size=5)),
    trace=rounds,
)
@settings(max_examples=200)
def test_every_step_is_sglangs(
    theirs: Any,
    tmp_path_factory: pytest.TempPathFactory,
    settings_json: dict | None,
    initial: int,
    graph_sizes: list[int] | None,
    trace: list[tuple[int, int, bool]],
) -> None:
    path: Path | None = None
    if settings_json is not None:
        path = tmp_path_factory.getbasetemp() / "adaptive.json"
        path.write_text(json.dumps(settings_json))
    reference = theirs(initial, str(path) if path else None)
    ours = EmaPolicy(ALL, initial, settings_json)
    reference.set_cuda_graph_bs(graph_sizes)
    ours.set_cuda_graph_bs(graph_sizes)
    for size, depth, empty in trace:
        steps = ours.decide(Batch(size)).num_steps
        assert steps == reference.get_steps_for_batch(size)
        result = outcome(size, depth, steps, empty)
        reference.on_verify_complete(list(result.num_correct_drafts), size)
        ours.observe(result)
    for size in range(1, 50):
        assert ours.decide(Batch(size)).num_steps == reference.get_steps_for_batch(size)


def test_the_default_slots_are_sglangs() -> None:
    module = pytest.importorskip("sglang.srt.speculative.adaptive_spec_params")
    ours, theirs = EmaPolicy(ALL, 3), module.AdaptiveSpeculativeParams(3)
    for size, reference in theirs._slots.items():
        mine = ours._slots[size]
        assert mine.steps == reference.candidate_steps
        for name in ("down_hysteresis", "up_hysteresis", "ceiling_coeff", "ema_alpha"):
            assert getattr(mine, name) == getattr(reference, name)


def test_a_json_without_slots_means_the_default_ones() -> None:
    policy = EmaPolicy(ALL, 3, {"speckv": {}, "warmup_batches": 0, "update_interval": 1})
    assert list(policy.snapshot()) == ["1", "8", "32", "64"]
    for _ in range(4):
        policy.observe(Round(3, 1, [3]))
    assert policy.decide(Batch(1)).num_steps == 5


def test_a_users_slot_outside_of_the_candidates_is_refused() -> None:
    slots = {"1": {"candidate_steps": [0, 5]}}
    with pytest.raises(ConfigError, match=r"step 5 for batches of 1 and more; add it"):
        create_policy("ema", (0, 1, 3), 3, adaptive_config=slots)


@pytest.mark.parametrize("candidates", [(0, 1, 3), (0, 2), (4, 9), (7,)])
def test_default_slots_are_trimmed_to_the_tiers_that_exist(candidates: tuple[int, ...]) -> None:
    policy = create_policy("ema", candidates, candidates[-1])
    assert {policy.decide(Batch(size)).num_steps for size in (1, 8, 40, 100)} <= set(candidates)


@pytest.mark.parametrize("key", ["\u00b2", "\u0661", "+1", "1_0", " 1", 5000 * "9"])
def test_what_is_no_batch_size_is_no_slot(key: str) -> None:
    policy = EmaPolicy(ALL, 3, {"5": {"candidate_steps": [1]}, key: {"candidate_steps": [8]}})
    assert list(policy.snapshot()) == ["5"]


@pytest.mark.parametrize(
    "bad",
    [
        {"1": {}},
        {"1": {"candidate_steps": []}},
        {"1": {"candidate_steps": [True]}},
        {"1": {"candidate_steps": [-1]}},
        {"1": 3},
        {"1": {"candidate_steps": [1], "ema_alpha": "x"}},
        {"1": {"candidate_steps": [1], "ema_alpha": 5}},
        {"1": {"candidate_steps": [1], "ceiling_coeff": 10**400}},
        {"1": {"candidate_steps": [1], "update_interval": 0}},
    ],
)
def test_a_bad_slot_is_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="adaptive config"):
        EmaPolicy(ALL, 3, bad)
