"""The throughput policy on synthetic traces, against every single depth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np
import pytest

from sglang_speckv.policy import Batch, Round, StepPolicy, create_policy
from sglang_speckv.policy.acceptance import RECENT
from sglang_speckv.policy.base import Decision
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.throughput import PROBE_SHARE, Load, ThroughputPolicy
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


def regret_free(
    phases: Sequence[Phase],
    noise: Noise = Noise(),  # noqa: B008
    seeds: int = 2,
    create: Callable[[], StepPolicy] = throughput,
) -> float:
    """Mean rate over that of the best single depth."""
    return mean(versus_best_static(create, phases, noise, seed) for seed in range(seeds))


@pytest.mark.parametrize(("size", "width"), [(1, 0.02), (4, 0.01), (64, 0.002)])
@pytest.mark.parametrize("draft", [WEAK, (0.85,)], ids=["weak", "strong"])
@pytest.mark.parametrize("draft_cost", [0.03, 0.15, 0.5])
def test_finds_the_best_depth(
    size: int, draft: Sequence[float], draft_cost: float, width: float
) -> None:
    cost = Cost(0.04, width, 0.04 * draft_cost, 0.04 * draft_cost)
    assert regret_free([Phase(1500, size, draft, cost)], seeds=1) >= 0.97


@pytest.mark.parametrize("width", [0.03, 0.05])
@pytest.mark.parametrize(("rounds", "size"), [(300, 1), (150, 4)])
def test_short_runs(rounds: int, size: int, width: float) -> None:
    assert regret_free([Phase(rounds, size, cost=Cost(width=width))], seeds=8) >= 0.96


DEMO = Cost(verify=0.050, width=0.01, extend=0.004, draft=0.0036)
"""The demo's machine: 60 ms rounds, a draft step 6 % of one."""


@pytest.mark.parametrize("draft", [(0.45, 0.45, 0.5), (0.55, 0.55, 0.65)], ids=["weak", "better"])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("profile", "bar"), [(False, 0.96), (True, 0.97)])
def test_a_cold_start_of_three_hundred_rounds(
    draft: Sequence[float], size: int, profile: bool, bar: float
) -> None:
    noise = Noise(jitter=0.1, spikes=0.02)
    rng = np.random.default_rng(9)
    rows = [
        TimedRound(b, k, DEMO.seconds(b, k) * float(np.exp(rng.normal(0, 0.05))))
        for b in (1, 4, 16)
        for k in TIERS
    ]

    def start() -> StepPolicy:
        policy = ThroughputPolicy(TIERS, 3)
        if profile:
            policy.profiled(rows)
        return policy

    assert regret_free([Phase(300, size, draft, DEMO)], noise, 4, start) >= bar


NARROW, SLOW_DRAFT = Cost(width=0.02), Cost(draft=0.008)


@pytest.mark.parametrize(
    "phases",
    [
        [Phase(200, 4, p, NARROW) for p in (STRONG, WEAK, STRONG)],
        [Phase(300, size, STRONG) for size in (1, 32, 1)],
        [Phase(300, size, WEAK, SLOW_DRAFT) for size in (1, 64, 2)],
        [Phase(400, 8, USELESS), Phase(600, 8, STRONG)],
        [Phase(n, 1, STRONG, Cost(width=0.01, draft=d)) for n, d in ((400, 0.0025), (600, 0.03))],
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


CONTENT = Noise(jitter=0.1, content=1.2, signal="true")
RISING = (0.6, 0.65, 0.7, 0.75, 0.8)
DEAR_DRAFT = Cost(0.04, 0.01, 0.01, 0.01)


def test_true_signals_pay_for_one_request_and_hurt_no_batch() -> None:
    assert regret_free([Phase(1500, 1, RISING, DEAR_DRAFT)], CONTENT, 1) >= 1.10
    assert regret_free([Phase(1500, 8, RISING, DEAR_DRAFT)], CONTENT) >= 1.0


@pytest.mark.parametrize("size", [1, 4])
def test_inverted_signals_are_as_good_as_true_ones(size: int) -> None:
    noise = replace(CONTENT, signal="inverted")
    assert regret_free([Phase(1500, size, RISING, DEAR_DRAFT)], noise, 1) >= 1.0


@pytest.mark.parametrize("size", [1, 4])
def test_signals_that_say_nothing_cost_little(size: int) -> None:
    noise = replace(CONTENT, signal="random")
    assert regret_free([Phase(2500, size, RISING, DEAR_DRAFT)], noise, 1) >= 0.97


def test_signals_that_turn_round_are_learned_anew() -> None:
    """One run is 5 % above or below another."""

    def misled() -> StepPolicy:
        policy = throughput()
        Engine([Phase(1000, 1, RISING, DEAR_DRAFT)], CONTENT).run(policy)
        return policy

    phases, turned = [Phase(2500, 1, RISING, DEAR_DRAFT)], replace(CONTENT, signal="inverted")
    assert regret_free(phases, turned, 4, misled) >= 0.97


@pytest.mark.parametrize(
    ("phases", "noise"),
    [
        ([Phase(30, s, (0.7,), NARROW) for s in (1, 16, 2, 64, 4, 1, 32) * 4], Noise()),
        ([Phase(200, 2, (0.75,), Cost(draft=d)) for d in (0.001, 0.01, 0.002)], Noise(drift=0.2)),
        ([Phase(250, 4, p, NARROW) for p in (STRONG, USELESS, STRONG, WEAK)], Noise(lag=2)),
    ],
    ids=["bursts", "drifting cost", "abrupt phases"],
)
def test_stress(phases: list[Phase], noise: Noise) -> None:
    assert regret_free(phases, noise) >= 0.97


def test_free_switches_follow_the_signal_round_by_round() -> None:
    policy = throughput()
    Engine([Phase(1200, 1, RISING, DEAR_DRAFT)], CONTENT).run(policy)
    high, low = (policy.decide(Batch(1, np.array([p]))) for p in (0.97, 0.1))
    assert high.num_steps >= 3 > low.num_steps
    assert high.expected_accept_length > low.expected_accept_length  # type: ignore[operator]


def test_a_profile_replaces_the_first_look_and_says_nothing_of_acceptance() -> None:
    policy = ThroughputPolicy(TIERS, 3)
    before = policy.snapshot()["survival"]
    policy.profiled([TimedRound(n, k, DEMO.seconds(n, k)) for n in (1, 4) for k in TIERS])
    assert policy.snapshot()["survival"] == before
    assert policy.decide(Batch(1)).reason == "best"
    untold = ThroughputPolicy(TIERS, 3)
    untold.profiled([])
    assert untold.decide(Batch(1)).reason == "look"


@pytest.mark.parametrize("probs", [None, np.array([0.9, np.nan])])
def test_the_newest_decision_can_be_explained(probs: np.ndarray | None) -> None:
    policy = ThroughputPolicy(TIERS, 3)
    assert policy.explain() == {}
    first = policy.decide(Batch(2, probs))
    assert policy.explain() == {"num_steps": first.num_steps, "reason": "look"}
    Engine([Phase(60, 2)]).run(policy)
    decision = policy.decide(Batch(2, probs))
    before = policy.snapshot()
    told: Any = policy.explain()
    assert json.loads(json.dumps(told, allow_nan=False)) == told == policy.explain()
    assert policy.snapshot() == before
    assert (told["num_steps"], told["reason"]) == (decision.num_steps, decision.reason)
    assert list(told["depths"]) == [str(steps) for steps in TIERS]
    of_chosen = told["depths"][str(decision.num_steps)]
    assert of_chosen["tokens"] == pytest.approx(2 * decision.expected_accept_length, abs=1e-3)
    price = told["tokens_per_s"] / 1e3
    for depth in told["depths"].values():
        assert depth["worth"] == pytest.approx(depth["tokens"] - price * depth["ms"], abs=0.01)
    if told["reason"] == "best":
        assert of_chosen["worth"] == max(depth["worth"] for depth in told["depths"].values())


@pytest.mark.parametrize(("correct", "sign"), [(3, 1), (0, -1)])
def test_what_was_not_expected_is_summed_up(correct: int, sign: int) -> None:
    policy = ThroughputPolicy(TIERS, 3)
    assert policy.unexpected_drafts == 0.0
    found = []
    for _ in range(200):
        policy.observe(Round(3, 1, [correct], 0.05))
        found.append(policy.unexpected_drafts)
    assert sign * found[0] > 0.3 and sign * found[-1] > sign * found[0]
    assert abs(found[-1] - found[-2]) < 0.1 * abs(found[0]), "by and by it is expected"


def test_the_first_look_is_short_and_spread() -> None:
    policy = throughput()
    decisions = [policy.decide(Batch(1)) for _ in range(3)]
    assert [d.num_steps for d in decisions] == [3, 7, 0]
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


OFF_S, WARM_S, DRAFTED_S, WAKING_S = 0.030, 0.036, 0.040, 0.008
SLEEPS = [TimedRound(1, 0, OFF_S, True), TimedRound(1, 0, WARM_S), TimedRound(1, 1, DRAFTED_S)]


def with_a_draft_that_sleeps(
    accepted: tuple[float, float],
    rounds: int = 600,
    profile: Sequence[TimedRound] = SLEEPS,
    at_first: tuple[float, float] | None = None,
    seed: int = 4,
    slow_at_first: Sequence[float] = (),
) -> tuple[list[Decision], float]:
    """Decisions of the later half, and tok/s then, for one request whose first draft is accepted
    with either probability, told by its signal where the draft was awake; in the first third with
    those of ``at_first``, on a machine that is by turns as many times slower."""
    policy = ThroughputPolicy((0, 1), 1)
    policy.profiled(profile)
    rng = np.random.default_rng(seed)
    awake, decisions, tokens, seconds = True, [], 0, 0.0
    for number in range(rounds):
        chances = at_first if at_first and number < rounds // 3 else accepted
        chance = chances[rng.integers(2)]
        firsts = np.array([chance if awake else np.nan])
        decision = policy.decide(Batch(1, firsts))
        steps, asleep = decision.num_steps, decision.num_steps == 0 and not decision.awake
        correct = int(steps > 0 and rng.random() < chance)
        took = OFF_S if asleep else (WARM_S, DRAFTED_S)[steps] + (0 if awake else WAKING_S)
        turns = slow_at_first if number < rounds // 3 else ()
        slow = turns[number // 37 % len(turns)] if turns else 1.0
        timed = took * rng.normal(1, 0.05) * slow if awake or asleep else None  # as in the engine
        policy.observe(Round(steps, 1, [correct], timed, firsts, asleep=asleep))
        awake = not asleep
        if number >= rounds // 2:
            decisions.append(decision)
            tokens, seconds = tokens + 1 + correct, seconds + took
    return decisions, tokens / seconds


@pytest.mark.parametrize("profile", [SLEEPS, []], ids=["profiled", "not profiled"])
def test_a_draft_sleeps_where_none_is_best(profile: Sequence[TimedRound]) -> None:
    decisions, earned = with_a_draft_that_sleeps((0.25, 0.15), profile=profile)
    assert sum(d.num_steps == 0 and not d.awake for d in decisions) > 0.8 * len(decisions)
    assert earned > 0.97 / OFF_S


def test_a_draft_stays_awake_where_signals_pay() -> None:
    decisions, earned = with_a_draft_that_sleeps((0.95, 0.05))
    idle = [d for d in decisions if d.num_steps == 0]
    assert len(idle) > 0.3 * len(decisions)
    assert all(d.awake for d in idle)
    assert earned > 0.97 * (1.95 + 1.0) / (DRAFTED_S + WARM_S)


@pytest.mark.parametrize("seed", [2, 4, 9])
def test_a_draft_wakes_when_it_became_good(seed: int) -> None:
    """However its first probes end. (One that paid was once followed by one that did not draft.)"""
    decisions, earned = with_a_draft_that_sleeps((0.8, 0.8), 900, at_first=(0.1, 0.1), seed=seed)
    assert sum(d.num_steps == 1 for d in decisions) > 0.9 * len(decisions)
    assert earned > 0.97 * 1.8 / DRAFTED_S


@pytest.mark.parametrize("seed", [2, 4, 9])
def test_a_draft_that_a_disturbed_profile_made_dear_is_found(seed: int) -> None:
    """Its probes take less than is believed. (They once came a thousand rounds apart.)"""
    disturbed = [row if row.asleep else row._replace(seconds=8 * row.seconds) for row in SLEEPS]
    _, earned = with_a_draft_that_sleeps((0.8, 0.8), 1800, disturbed, seed=seed)
    assert earned > 0.97 * 1.8 / DRAFTED_S


@pytest.mark.parametrize("factor", [2.0, 8.0])
@pytest.mark.parametrize("tiers", [(0, 1, 2, 3), (0, 1, 3, 5), (0, 1, 2, 3, 5, 7)], ids=str)
def test_deep_rounds_that_a_disturbed_profile_made_dear_are_found(
    tiers: tuple[int, ...], factor: float
) -> None:
    """From any depth, by its first probes: one time that is far shorter than expected tells. (They
    once came two thousand rounds apart, and moved what was known a little each.)"""
    policy = ThroughputPolicy(tiers, 1)
    policy.allow_sleep(False)
    seconds = {k: 0.030 + 0.004 * k for k in tiers}
    half = tiers[len(tiers) // 2]
    rows = [TimedRound(1, k, (factor if k >= half else 1.0) * seconds[k]) for k in tiers]
    policy.profiled(rows)
    rng, served = np.random.default_rng(3), []
    for _ in range(700):
        steps = policy.decide(Batch(1, np.array([0.99]))).num_steps
        right = int(np.argmin(np.append(rng.random(steps) < 0.99, False)))
        took = seconds[steps] * rng.normal(1, 0.05)
        policy.observe(Round(steps, 1, [right], took, np.array([0.99])))
        served.append(steps)
    assert served[-100:].count(tiers[-1]) >= 80


@pytest.mark.parametrize("seed", range(6))
def test_a_draft_that_slept_while_the_machine_was_slow_by_turns_wakes(seed: int) -> None:
    """Asleep rounds are timed often and others hardly ever: they change because the machine does,
    and the others with them. (Taken to change alone, they hid that drafting had become cheap.)"""
    _, earned = with_a_draft_that_sleeps(
        (0.9, 0.9), 1800, at_first=(0.1, 0.1), seed=seed, slow_at_first=(1.0, 2.0, 1.0, 5.0, 1.5)
    )
    assert earned > 0.97 * 1.9 / DRAFTED_S


def test_a_profile_of_asleep_rounds_alone_does_not_end_drafting() -> None:
    policy = ThroughputPolicy(TIERS, 3)
    policy.profiled([TimedRound(1, 0, 0.9 * DEMO.seconds(1, 0), True)] * 3)
    phases = [Phase(600, 1, STRONG, DEMO)]
    assert regret_free(phases, seeds=1, create=lambda: policy) >= 0.97


def test_a_probe_that_pays_is_repeated_soon_and_one_that_does_not_later() -> None:
    """Where the draft sleeps, nothing else tells that it has become good."""
    policy = ThroughputPolicy((0, 1), 1)
    policy.profiled(SLEEPS)

    def probes(rounds: int, correct: int) -> int:
        count = 0
        for _ in range(rounds):
            decision = policy.decide(Batch(1))
            count += decision.reason == "probe"
            steps, asleep = decision.num_steps, not decision.awake
            took = OFF_S if asleep else (WARM_S, DRAFTED_S)[steps]
            outcome = [correct * steps]
            policy.observe(Round(steps, 1, outcome, took, asleep=asleep and steps == 0))
        return count

    probes(300, 0)
    assert policy.decide(Batch(1)).num_steps == 0
    assert 1 <= probes(320, 0) <= 5, "one in 64 rounds at most, and within the budget"
    probes(200, 1)
    assert policy.decide(Batch(1)).num_steps == 1, "some probes in a row found it good"


def test_a_dear_probe_delays_the_next_at_most_twice_as_long_as_the_last_of_its_tier() -> None:
    """What it loses may be wrongly believed. (A draft once slept through 2,600 rounds for that.)"""
    load, waits = Load(), []
    for tier, lost in [(1, 100.0), (1, 100.0), (2, 100.0), (1, 100.0), (1, 0.3), (1, 0.0)]:
        load.probe(tier, lost)
        waits.append(load.to_probe)
    assert waits == [RECENT, 2 * RECENT, RECENT, 4 * RECENT, 0.3 / PROBE_SHARE, RECENT]


def test_a_probe_that_wakes_the_draft_takes_two_rounds() -> None:
    """The first one drafts nothing: it has no time of its own, so that it could not tell what a
    depth takes."""
    policy = ThroughputPolicy((0, 1), 1)
    policy.profiled([row if row.asleep else row._replace(seconds=1.0) for row in SLEEPS])
    served, asleep = [], True
    for _ in range(69):
        decision = policy.decide(Batch(1))
        steps, slept, asleep = decision.num_steps, asleep, not decision.awake
        served.append("asleep" if asleep else steps)
        took = OFF_S if asleep else DRAFTED_S if not slept else None
        policy.observe(Round(steps, 1, [0], took, asleep=asleep))
    assert served == ["asleep"] * 62 + [0, 1] + ["asleep"] * 5
    depths: Any = policy.explain()["depths"]
    assert depths["1"]["ms"] < 500


def test_luck_brings_one_more_probe_and_the_next_ones_as_late_as_before() -> None:
    load = Load()
    for _ in range(3):
        load.probe(1, 100.0)
    load.probe_cost = 2.0
    load.probed(1)
    assert load.to_probe == 4 * RECENT
    load.probe_cost = 2.0
    load.probed(3)
    assert load.to_probe == 0
    load.probe(1, 100.0)
    assert load.to_probe == 8 * RECENT


def test_sizes_that_share_a_row_each_have_a_price_of_their_own() -> None:
    """A graph of eight takes as long with three requests: they earn less in that time."""

    def price(sizes: Sequence[int]) -> float:
        policy = ThroughputPolicy(TIERS, 3)
        policy.set_cuda_graph_bs([8])
        policy.profiled([TimedRound(8, k, DEMO.seconds(8, k)) for k in TIERS])
        for size in sizes:
            steps = policy.decide(Batch(size)).num_steps
            policy.observe(Round(steps, size, [steps // 2] * size, DEMO.seconds(8, steps)))
        return policy.decide(Batch(3)).tokens_per_s or 0.0

    assert price([8, 3] * 100) == pytest.approx(price([3] * 200), rel=0.1)


def test_closed_requests_bring_no_drafts() -> None:
    policy = ThroughputPolicy(TIERS, 3)
    policy.profiled([TimedRound(2, k, DEMO.seconds(2, k)) for k in TIERS])
    lengths = []
    for closed in ([], [1], [0, 1]):
        policy.decide(Batch(2, np.array([0.9, 0.9]), [7, 8], closed))
        depths: Any = policy.explain()["depths"]
        lengths.append(depths["3"]["tokens"] - 2.0)
    every, one, none = lengths
    assert none < 0.1 * every and one == pytest.approx((every + none) / 2, abs=0.01)


def test_the_price_of_a_batch_that_takes_no_drafts_is_what_it_earns_without_any() -> None:
    prices = []
    for closed in (range(0), range(4), range(8)):
        policy = ThroughputPolicy(TIERS, 3)
        policy.profiled([TimedRound(8, k, DEMO.seconds(8, k)) for k in TIERS])
        prices.append(policy.decide(Batch(8, np.full(8, 0.9), range(8), closed)).tokens_per_s)
    every, half, none = map(float, prices)  # type: ignore[arg-type]
    assert none == pytest.approx(8 / DEMO.seconds(8, 0), rel=0.02) and none < half < every


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_probes_in_a_row_do_not_wake_the_draft_anew(lag: int) -> None:
    """Each would have no time of its own. The result of one comes after ``lag`` more decisions."""
    policy = ThroughputPolicy((0, 1), 1)
    policy.profiled(SLEEPS)
    late: list[Round] = []
    slept, woken, probes = True, 0, 0
    for number in range(600):
        decision = policy.decide(Batch(1))
        steps, asleep = decision.num_steps, not decision.awake
        probes += decision.reason == "probe"
        woken += decision.reason == "probe" and slept
        took = OFF_S if asleep else None if slept else (WARM_S, DRAFTED_S)[steps]
        right = steps * (number >= 250)
        late.append(Round(steps, 1, [right], took, asleep=asleep))
        slept = asleep
        if len(late) > lag:
            policy.observe(late.pop(0))
    assert probes >= 2 and woken == 0


def test_where_nothing_is_drafted_the_draft_is_never_woken() -> None:
    policy = ThroughputPolicy((0,), 0)
    policy.profiled([row for row in SLEEPS if row.num_steps == 0])
    for _ in range(300):
        assert not policy.decide(Batch(1)).awake
        policy.observe(Round(0, 1, [0], OFF_S, asleep=True))


def test_a_draft_that_is_used_again_is_soon_probed_when_it_sleeps_the_next_time() -> None:
    policy = ThroughputPolicy((0, 1), 1)
    policy.profiled(SLEEPS)
    policy.decide(Batch(1))
    (load,) = policy._loads.values()
    load.asleep, load.waits = True, {1: 5000.0}
    policy.allow_sleep(False)
    policy.decide(Batch(1))
    assert not load.asleep and load.waits == {}


def test_a_probe_costs_the_round_that_wakes_the_draft_too(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ThroughputPolicy((0, 1), 1)
    dear = TimedRound(1, 1, 3 * DRAFTED_S)
    policy.profiled([*SLEEPS[:2], dear])
    lost: list[float] = []
    policy.decide(Batch(1))
    (load,) = policy._loads.values()
    load.to_probe = 1
    monkeypatch.setattr(Load, "probe", lambda _, tier, much: lost.append(much))
    policy.decide(Batch(1))
    asked: Any = policy.explain()
    depths = asked["depths"]
    rounds = (depths["0"]["worth"] - depths["1"]["worth"]) / asked["tokens_per_s"] / OFF_S
    assert lost == [pytest.approx(rounds + WARM_S / OFF_S - 1, rel=0.02)]


def test_probes_go_both_ways() -> None:
    """A shallower tier may have become better than what is known of it, too."""
    policy = ThroughputPolicy(TIERS, 3)
    policy.profiled([TimedRound(1, k, DEMO.seconds(1, k)) for k in TIERS])
    rng, tried = np.random.default_rng(0), []
    for _ in range(2000):
        decision = policy.decide(Batch(1))
        steps = decision.num_steps
        if decision.reason == "probe":
            depths: Any = policy.explain()["depths"]
            best = max(depths, key=lambda k: depths[k]["worth"])
            tried.append(np.sign(steps - int(best)))
        correct = int(np.cumprod(rng.random(steps) < 0.6).sum())
        policy.observe(Round(steps, 1, [correct], DEMO.seconds(1, steps)))
    assert len(tried) > 20 and {-1, 1} <= set(tried)


def test_without_a_draft_that_sleeps_nothing_is_off() -> None:
    policy = ThroughputPolicy((0, 1), 1)
    policy.profiled([TimedRound(1, 0, WARM_S), TimedRound(1, 1, 10 * WARM_S)])
    decision = policy.decide(Batch(1))
    assert (decision.num_steps, decision.awake) == (0, True)


@pytest.mark.parametrize(("telling", "waits"), [(True, True), (False, False)])
def test_what_the_coming_rounds_signals_would_earn(telling: bool, waits: bool) -> None:
    """It is learned beside those of the round before, which say nothing here."""
    policy = ThroughputPolicy(TIERS, 3)
    assert policy.worth_of_fresh_signals() == 0.0
    policy.use_late_signals(True)
    policy.profiled([TimedRound(1, k, DEMO.seconds(1, k)) for k in TIERS])
    rng, before = np.random.default_rng(0), np.array([0.5])
    for _ in range(600):
        fresh = rng.choice([0.05, 0.95], 1)
        steps = policy.decide(Batch(1, before)).num_steps
        chance = fresh[0] if telling else 0.5
        correct = int(np.cumprod(rng.random(steps) < chance).sum())
        signals = np.full((1, steps, 2), fresh[0])
        policy.observe(Round(steps, 1, [correct], DEMO.seconds(1, steps), before, signals))
        before = fresh
    assert (policy.worth_of_fresh_signals() > 0.02) == waits
    late = policy.decide(Batch(1, np.array([0.95]))).expected_accept_length
    policy.use_late_signals(False)
    fresh_now = policy.decide(Batch(1, np.array([0.95]))).expected_accept_length
    assert late is not None and fresh_now is not None
    assert (fresh_now > late + 0.3) == telling
