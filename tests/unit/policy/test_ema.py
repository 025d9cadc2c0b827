"""What our EMA rule reads from an adaptive config; its steps against SGLang's own are compared in
``tests/engine/test_ema_is_sglangs.py``."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.policy import Batch, Round, create_policy
from sglang_speckv.policy.ema import EmaPolicy

ALL = tuple(range(9))


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


def test_requests_that_took_no_drafts_say_nothing() -> None:
    slots = {"1": {"candidate_steps": [0, 3, 5]}, "warmup_batches": 0, "update_interval": 1}
    alone, beside = EmaPolicy(ALL, 3, slots), EmaPolicy(ALL, 3, slots)
    for _ in range(3):
        alone.observe(Round(3, 1, [3]))
        beside.observe(Round(3, 2, [3, 0], widths=np.array([3, 0])))
    assert alone.snapshot() == beside.snapshot()
