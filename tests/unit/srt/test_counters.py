"""Counts that add up, and the metrics that carry them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.policy.base import Round
from sglang_speckv.srt.controller import EnginePolicy
from sglang_speckv.srt.counters import RECENT_ROUNDS, Counters
from sglang_speckv.srt.metrics import Metrics

TIERS = (0, 1, 3)
rounds = st.lists(
    st.sampled_from(TIERS).flatmap(
        lambda k: st.builds(
            lambda correct: Round(k, len(correct), correct),
            st.lists(st.integers(0, k), max_size=5),
        )
    )
)


@given(rounds)
def test_everything_adds_up(outcomes: list[Round]) -> None:
    counters = Counters(TIERS)
    for outcome in outcomes:
        counters.count(outcome)
    correct = [c for o in outcomes for c in o.num_correct_drafts]
    assert counters.request_rounds == len(correct)
    assert counters.correct_drafts == sum(correct) == sum(c for _, c in counters.positions())
    assert counters.proposed_drafts == sum(
        o.num_steps * len(o.num_correct_drafts) for o in outcomes
    )
    for position, (judged, right) in enumerate(counters.positions(), start=1):
        drafted = [o for o in outcomes if o.num_steps >= position]
        reached = [c for o in drafted for c in o.num_correct_drafts if c >= position - 1]
        assert (judged, right) == (len(reached), sum(c >= position for c in reached))


def test_the_recent_rounds_are_bounded() -> None:
    counters = Counters(TIERS)
    for _ in range(2 * RECENT_ROUNDS):
        counters.count(Round(1, 1, [1]))
    assert len(counters.snapshot()["recent"]) == RECENT_ROUNDS


def test_decisions_and_switches_are_shown_with_their_times() -> None:
    counters = Counters(TIERS)
    assert counters.snapshot()["switch_microseconds"] == 0
    for seconds in (3e-6, 1e-6):
        counters.decided(seconds)
        counters.switched(2 * seconds)
    shown = counters.snapshot()
    assert (shown["decisions"], shown["switches"]) == (2, 2)
    assert shown["decision_microseconds"] == pytest.approx(2)
    assert shown["slowest_decision_microseconds"] == pytest.approx(3)
    assert shown["switch_microseconds"] == pytest.approx(4)


def test_metrics_carry_the_counters_once_a_second() -> None:
    engine = EnginePolicy(SpecKVConfig(policy="static:3", candidate_steps=TIERS), 3)
    registry = CollectorRegistry()
    metrics = Metrics(engine, registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"speckv:{name}", labels)

    engine.get_steps_for_batch(2)
    engine.observe(Round(3, 2, [3, 1]))
    metrics.tick(now=10.0, dropped=4)
    assert value("rounds_total", num_steps="3") == 1
    assert value("active") == 1
    assert value("num_steps") == 3
    assert [value("proposed_drafts_total", position=str(p)) for p in (1, 2, 3)] == [2, 2, 1]
    assert [value("correct_drafts_total", position=str(p)) for p in (1, 2, 3)] == [2, 1, 1]
    assert value("drafted_tokens_total") == 6
    assert value("decisions_total") == 1
    assert value("trace_dropped_rounds_total") == 4
    engine.observe(Round(3, 1, [0]))
    metrics.tick(now=10.5)
    assert value("rounds_total", num_steps="3") == 1
    metrics.tick(now=11.5)
    assert value("rounds_total", num_steps="3") == 2
