"""Our EMA rule against SGLang's own, step for step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.speculative.adaptive_spec_params import AdaptiveSpeculativeParams

from sglang_speckv.policy import Batch, Round
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


@given(
    settings_json=st.one_of(st.none(), config),
    initial=st.integers(0, 8),
    graph_sizes=st.one_of(st.none(), st.lists(st.integers(1, 40), max_size=5)),
    trace=rounds,
)
@settings(max_examples=200)
def test_every_step_is_sglangs(
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
    reference = AdaptiveSpeculativeParams(initial, str(path) if path else None)
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
    ours, theirs = EmaPolicy(ALL, 3), AdaptiveSpeculativeParams(3)
    for size, reference in theirs._slots.items():
        mine = ours._slots[size]
        assert mine.steps == reference.candidate_steps
        for name in ("down_hysteresis", "up_hysteresis", "ceiling_coeff", "ema_alpha"):
            assert getattr(mine, name) == getattr(reference, name)
