"""Counts that add up, and the metrics that carry them."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from sglang_speckv.config import SpecKVConfig, parse_shapes
from sglang_speckv.policy.base import Round
from sglang_speckv.srt.controller import EnginePolicy
from sglang_speckv.srt.counters import RECENT_ROUNDS, Counters
from sglang_speckv.srt.metrics import Metrics

TIERS = (0, 1, 3)


@st.composite
def some_rounds(draw: st.DrawFn) -> Round:
    k = draw(st.sampled_from(TIERS))
    correct = draw(st.lists(st.integers(0, k), max_size=5))
    widths = [draw(st.integers(c, k)) for c in correct] if draw(st.booleans()) else None
    made = draw(st.none() | st.integers(max([1, *correct]), k)) if k and widths is None else None
    return Round(
        k,
        max(1, len(correct)),
        correct,
        stopped=draw(st.booleans()),
        widths=None if widths is None else np.array(widths, dtype=int),
        made=made,
    )


def made_of(outcome: Round) -> int:
    return outcome.num_steps if outcome.made is None else outcome.made


def widths_of(outcome: Round) -> list[int]:
    if outcome.widths is not None:
        return list(outcome.widths.tolist())
    return [made_of(outcome)] * len(outcome.num_correct_drafts)


@given(st.lists(some_rounds()))
def test_everything_adds_up(outcomes: list[Round]) -> None:
    counters = Counters(SpecKVConfig(candidate_steps=TIERS))
    for outcome in outcomes:
        counters.count(outcome)
    correct = [c for o in outcomes for c in o.num_correct_drafts]
    assert counters.request_rounds == len(correct)
    assert counters.correct_drafts == sum(correct) == sum(c for _, c in counters.positions())
    assert counters.proposed_drafts == sum(sum(widths_of(o)) for o in outcomes)
    assert counters.drafted_tokens == sum(made_of(o) * len(o.num_correct_drafts) for o in outcomes)
    assert counters.stopped_rounds == sum(o.stopped for o in outcomes)
    for position, (judged, right) in enumerate(counters.positions(), start=1):
        reached = [
            c
            for o in outcomes
            for w, c in zip(widths_of(o), o.num_correct_drafts, strict=True)
            if w >= position and c >= position - 1
        ]
        assert (judged, right) == (len(reached), sum(c >= position for c in reached))


def test_the_recent_rounds_are_bounded() -> None:
    counters = Counters(SpecKVConfig(candidate_steps=TIERS))
    for _ in range(2 * RECENT_ROUNDS):
        counters.count(Round(1, 1, [1]))
    assert len(counters.snapshot()["recent"]) == RECENT_ROUNDS


ODD = np.array([[0.5, np.nan, 2.0], [np.inf, -1.0, 1.0005]])
"""Probabilities, of which four are none."""


@pytest.mark.parametrize("seconds", [0.0, -1.0, np.nan, np.inf, 1e9])
def test_readings_that_cannot_be_are_counted(seconds: float) -> None:
    counters = Counters(SpecKVConfig(candidate_steps=TIERS))
    for time_and_signals in ((None, None), (0.01, np.ones((2, 3, 2))), (0.01, np.ones((0, 3, 2)))):
        counters.count(Round(3, 2, [0, 0], time_and_signals[0], signals=time_and_signals[1]))
    assert (counters.odd_signals, counters.odd_times) == (0, 0)
    counters.count(Round(3, 2, [0, 0], seconds, signals=np.stack([ODD, ODD], axis=-1)))
    assert (counters.odd_signals, counters.odd_times) == (4, 1)
    shown = counters.snapshot()
    assert (shown["odd_signals"], shown["odd_times"]) == (4, 1)


def test_decisions_and_switches_are_shown_with_their_times() -> None:
    counters = Counters(SpecKVConfig(candidate_steps=TIERS))
    assert counters.snapshot()["switch_microseconds"] == 0
    for seconds in (3e-6, 1e-6):
        counters.decided(seconds)
        counters.switched(2 * seconds)
    shown = counters.snapshot()
    assert (shown["decisions"], shown["switches"]) == (2, 2)
    assert shown["decision_microseconds"] == pytest.approx(2)
    assert shown["slowest_decision_microseconds"] == pytest.approx(3)
    assert shown["switch_microseconds"] == pytest.approx(4)


def test_metrics_carry_the_counters() -> None:
    engine = EnginePolicy(SpecKVConfig(policy="static:3", candidate_steps=TIERS), 3)
    registry = CollectorRegistry()
    metrics = Metrics(engine, registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"speckv:{name}", labels)

    engine.get_steps_for_batch(2)
    engine.observe(Round(3, 2, [3, 1], -1.0, signals=np.full((2, 3, 2), np.nan)))
    engine.trace = SimpleNamespace(dropped=4)  # type: ignore[assignment]
    engine.fuse.armed = True
    with engine.fuse.guard("a seam"):
        raise RuntimeError
    engine.counters.count_exact(["min_p", "min_p"])
    engine.counters.answers.extend([0.25, 1.0, 0.33])
    metrics.carry()
    assert value("rounds_total", num_steps="3") == 1
    assert [value("active"), value("held")] == [1, 1]
    assert [value("odd_signals_total"), value("odd_times_total")] == [6, 1]
    assert value("num_steps") == 3
    assert [value("proposed_drafts_total", position=str(p)) for p in (1, 2, 3)] == [2, 2, 1]
    assert [value("correct_drafts_total", position=str(p)) for p in (1, 2, 3)] == [2, 1, 1]
    assert value("drafted_tokens_total") == 6
    assert value("decisions_total") == 1
    assert value("exact_rounds_total", parameter="min_p") == 2
    assert [value("request_accept_rate_bucket", le=le) for le in ("0.2", "0.3", "1.0")] == [0, 1, 3]
    assert not engine.counters.answers, "each answer is told of once"
    assert value("trace_dropped_rounds_total") == 4
    assert value("failures_total", seam="a seam") == 1
    engine.observe(Round(3, 1, [0]))
    engine.select("static:3")
    metrics.carry()
    assert value("held") == 0
    assert value("rounds_total", num_steps="3") == 2


def test_metrics_are_carried_while_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a failure in between does not end that."""
    engine = EnginePolicy(SpecKVConfig(policy="static:3", candidate_steps=TIERS), 3)
    engine.fuse.armed = True
    registry = CollectorRegistry()
    metrics = Metrics(engine, registry)
    monkeypatch.setattr("sglang_speckv.srt.metrics.EVERY_SECONDS", 0.01)
    counters, engine.counters = engine.counters, None  # type: ignore[assignment]
    metrics.start()
    _until(lambda: engine.fuse.failures.get("metrics", 0) > 0)
    engine.counters = counters
    engine.observe(Round(3, 1, [0]))
    _until(lambda: registry.get_sample_value("speckv:rounds_total", {"num_steps": "3"}) == 1)
    assert not engine.held


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rounds_without_drafts_are_counted_by_parameter() -> None:
    counters = Counters(SpecKVConfig(candidate_steps=(0, 1)))
    for names in (["min_p"], [], ["min_p", "presence_penalty"]):
        counters.count_exact(names)
    assert counters.snapshot()["exact_rounds"] == {"min_p": 2, "presence_penalty": 1}


def test_trees_are_counted_by_shape() -> None:
    config = SpecKVConfig(candidate_shapes=parse_shapes("1x2,3x8,5x16"))
    counters = Counters(config)
    counters.count(Round(2, 2, [3, 0]))
    counters.count(Round(3, 1, [4]))
    counters.count(Round(0, 1, [0]))
    shown = counters.snapshot()
    assert shown["rounds"] == {"0": 1, "1x2": 0, "3x8": 1, "5x16": 1}
    assert shown["proposed_drafts"] == shown["drafted_tokens"] == 2 * 7 + 15
    assert shown["correct_drafts"] == 7
    assert counters.positions() == [(3, 2), (2, 2), (2, 2), (1, 1), (1, 0)]
