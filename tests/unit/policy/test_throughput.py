"""The throughput policy on synthetic traces, against every single depth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

import pytest

from sglang_speckv.policy import Batch, Round, StepPolicy, create_policy
from sglang_speckv.policy.throughput import LOOK_ROUNDS
from tests.unit.policy.simulate import (
    STRONG,
    USELESS,
    WEAK,
    Cost,
    Engine,
    Noise,
    Phase,
    versus_best_static,
)

TIERS = (0, 1, 2, 3, 5, 7)


def throughput() -> StepPolicy:
    return create_policy("throughput", TIERS, 3)


def regret_free(phases: Sequence[Phase], noise: Noise = Noise(), seeds: int = 2) -> float:  # noqa: B008
    """Mean rate over that of the best single depth."""
    return mean(
        versus_best_static(
            throughput, lambda k: create_policy(f"static:{k}", TIERS, k), phases, noise, seed
        )
        for seed in range(seeds)
    )


@pytest.mark.parametrize("size", [1, 4, 16, 64])
@pytest.mark.parametrize("draft", [WEAK, (0.85,)], ids=["weak", "strong"])
@pytest.mark.parametrize("draft_cost", [0.03, 0.15, 0.5])
@pytest.mark.parametrize("width", [0.002, 0.02])
def test_finds_the_best_depth(
    size: int, draft: Sequence[float], draft_cost: float, width: float
) -> None:
    cost = Cost(0.04, width, 0.04 * draft_cost, 0.04 * draft_cost)
    assert regret_free([Phase(1500, size, draft, cost)], seeds=1) >= 0.96


@pytest.mark.parametrize("width", [0.03, 0.05])
@pytest.mark.parametrize(("rounds", "size"), [(300, 1), (150, 4)])
def test_short_runs(rounds: int, size: int, width: float) -> None:
    assert regret_free([Phase(rounds, size, cost=Cost(width=width))], seeds=8) >= 0.95


NARROW, SLOW_DRAFT = Cost(width=0.02), Cost(draft=0.008)


@pytest.mark.parametrize(
    "phases",
    [
        [Phase(200, 4, p, NARROW) for p in (STRONG, WEAK, STRONG)],
        [Phase(300, size, STRONG) for size in (1, 32, 1)],
        [Phase(300, size, WEAK, SLOW_DRAFT) for size in (1, 64, 2)],
        [Phase(400, 8, USELESS), Phase(600, 8, STRONG)],
        [
            Phase(400, 1, STRONG, Cost(width=0.01)),
            Phase(600, 1, STRONG, Cost(width=0.01, draft=0.03)),
        ],
    ],
    ids=["acceptance", "load", "heavy load and back", "out of tier 0", "dear draft"],
)
def test_follows_a_change_that_no_single_depth_fits(phases: list[Phase]) -> None:
    assert regret_free(phases) > 1.0


@pytest.mark.parametrize(
    "noise",
    [
        Noise(drift=0.3),
        Noise(spikes=0.15),
        Noise(jitter=0.2),
        Noise(jitter=0.0, spikes=0.0),
        Noise(lag=2),
        Noise(unclean=0.7),
        Noise(spread=1.5),
    ],
    ids=lambda noise: str(noise).removeprefix("Noise"),
)
def test_noise_does_not_mislead(noise: Noise) -> None:
    assert regret_free([Phase(800, 2, (0.7, 0.7, 0.65, 0.6), Cost(width=0.03))], noise) >= 0.955


@pytest.mark.parametrize(
    "draft", [USELESS, (0.99,), (0.3, 0.9, 0.95, 0.98)], ids=["useless", "perfect", "inverted"]
)
def test_odd_drafts(draft: Sequence[float]) -> None:
    assert regret_free([Phase(1000, 4, draft, Cost(width=0.01))]) >= 0.95


def test_the_first_look_is_short_and_spread() -> None:
    policy = throughput()
    decisions = [policy.decide(Batch(1)) for _ in range(3 * LOOK_ROUNDS)]
    assert [d.num_steps for d in decisions] == [3] * LOOK_ROUNDS + [7] * LOOK_ROUNDS + [
        0
    ] * LOOK_ROUNDS
    assert {d.reason for d in decisions} == {"look"}


def test_without_round_times_it_stays_at_the_launch_step() -> None:
    policy = throughput()
    for _ in range(100):
        steps = policy.decide(Batch(1)).num_steps
        policy.observe(Round(steps, 1, [steps], None))
    assert policy.decide(Batch(1)).num_steps == 3
    assert policy.decide(Batch(1)).reason == "launch"


def test_a_large_gain_switches_at_once_and_a_small_one_waits() -> None:
    phases = [Phase(150, 4, STRONG, NARROW), Phase(150, 4, USELESS, NARROW)]
    result = Engine(phases, Noise(spread=0.0)).run(throughput())
    after = result.steps[150:]
    assert mean(after[30:]) < 1.5
    held = [s for s, r in zip(result.steps, result.reasons, strict=True) if r == "best"]
    assert sum(a != b for a, b in pairwise(held)) < 25


def test_its_state_can_be_read() -> None:
    policy = throughput()
    Engine([Phase(200, 2)]).run(policy)
    state = policy.snapshot()
    assert len(state["survival"]) == 7  # type: ignore[arg-type]
    assert set(state["round_ms"]) == {"0", "1", "2", "3", "5", "7"}  # type: ignore[call-overload]
    # 60 tokens/s by one request's figures: the rate of the best tier at the last batch size
    assert 40 < state["tokens_per_s"] < 120  # type: ignore[operator]
    assert sum(state["decisions"].values()) == 200  # type: ignore[attr-defined]
