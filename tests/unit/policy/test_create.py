"""Policies by name."""

from __future__ import annotations

import pytest

from sglang_speckv.config import POLICY_NAMES, ConfigError
from sglang_speckv.policy import Batch, Prior, create_policy
from tests.policies import MLP

TIERS = (0, 1, 2, 3, 5, 7)


@pytest.mark.parametrize("spec", [*POLICY_NAMES[:-1], "static:3"])
def test_each_name_makes_its_policy(spec: str) -> None:
    policy = create_policy(spec, TIERS, 3, prior=Prior(mlp=MLP))
    assert policy.name == spec
    assert policy.candidate_steps == TIERS
    assert policy.decide(Batch(1)).num_steps == 3


@pytest.mark.parametrize("spec", ["fast", "", "static", "static:x", "static:-1", "ema:2"])
def test_an_unknown_name_is_refused_with_the_names(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"throughput, ema, .*static:K"):
        create_policy(spec, TIERS, 3)


def test_a_pinned_step_has_to_be_a_candidate() -> None:
    with pytest.raises(ConfigError, match="add 4 to the candidate steps"):
        create_policy("static:4", TIERS, 3)


def test_static_never_moves() -> None:
    policy = create_policy("static:5", TIERS, 3)
    assert {policy.decide(Batch(size)).num_steps for size in (1, 4, 500)} == {5}
    assert policy.decide(Batch(1)).reason == "pinned"
