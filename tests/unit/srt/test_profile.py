"""The start-up profile: every tier gets its rounds, within the time that was given."""

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.policy.base import Batch, Round
from sglang_speckv.srt.controller import EnginePolicy
from sglang_speckv.srt.lag import SignalLag
from sglang_speckv.srt.profile import ROUNDS, STATE_KEY, WALKS, ProfileRun, summary
from sglang_speckv.srt.profile_load import BATCH_SIZES, HttpTarget, run

TIERS = (0, 1, 3)


def walk(profile: ProfileRun, rounds: int, size: int = 2, slow_wait: float = 1.0) -> None:
    for _ in range(rounds):
        decision = profile.decide(Batch(size))
        seconds = 0.1 + 0.01 * decision.num_steps
        seconds *= slow_wait if profile._lag.waits else 1.0
        outcome = Round(decision.num_steps, size, [0] * size, seconds)
        profile.observe(outcome, profile._lag.waits)


def test_rows_are_rounds_by_batch_size_and_tier() -> None:
    profile = ProfileRun(TIERS, SignalLag("auto", overlap=False))
    walk(profile, 48)
    profile.observe(Round(3, 2, [0, 0], 99.0), False)  # a pause
    profile.observe(Round(1, 2, [0, 0], None), False)  # not clean
    rows = profile.finish()
    assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)
    assert len(rows) == 49
    assert summary(rows) == [[2, 0, 100.0], [2, 1, 110.0], [2, 3, 130.0]]


def test_one_time_is_better_than_none() -> None:
    """Under overlap the first and the last round of a request have no time of their own."""
    profile = ProfileRun(TIERS, SignalLag("auto", overlap=False))
    profile.observe(Round(1, 1, [0], 0.2), False)
    assert summary(profile.finish()) == [[1, 1, 200.0]]


def test_a_draft_that_can_sleep_is_timed_both_ways_at_depth_0() -> None:
    profile = ProfileRun(TIERS, SignalLag("auto", overlap=False), sleeps=True)
    for _ in range(32):
        decision = profile.decide(Batch(1))
        asleep = decision.num_steps == 0 and not decision.awake
        seconds = 0.08 if asleep else 0.1
        outcome = Round(decision.num_steps, 1, [0], seconds, asleep=asleep)
        profile.observe(outcome, False)
    assert summary(profile.finish())[:2] == [[1, 0, 100.0], [1, -1, 80.0]]


@pytest.mark.parametrize(("gain", "waits"), [(0.01, False), (0.03, True)])
def test_auto_waits_where_that_earns_more_than_it_costs(gain: float, waits: bool) -> None:
    lag = SignalLag("auto", overlap=True)
    profile = ProfileRun(TIERS, lag)
    lag.settle(2, gain)
    assert not lag.waits, "nothing is known of what it costs"
    walk(profile, 96, slow_wait=1.02)
    rows = profile.finish()
    assert not lag.waits and rows[0].seconds == pytest.approx(0.1), "nor of what it earns"
    lag.settle(3, gain)
    assert (lag.waits, lag.rounds) == (waits, 0 if waits else 1)
    assert lag.describe()["cost"] == {"2": pytest.approx(0.02, abs=1e-3)}
    lag.settle(3, 0.0)
    assert not lag.waits


def test_a_round_has_the_mode_that_it_ran_in_though_its_result_is_late() -> None:
    """The mode changes while results are two rounds behind."""
    lag = SignalLag("auto", overlap=True)
    profile = ProfileRun(TIERS, lag)
    flying: list[tuple[Round, bool]] = []
    for _ in range(24 * 4):
        waited = lag.waits  # as the worker launches: before the decision moves it
        steps = profile.decide(Batch(2)).num_steps
        seconds = 0.1 + 0.01 * steps + (1.0 if waited else 0.0)
        flying.append((Round(steps, 2, [0, 0], seconds), waited))
        if len(flying) > 2:
            profile.observe(*flying.pop(0))
    late = [time for times in profile._seconds[False].values() for time in times]
    assert late and max(late) < 0.2
    profile.finish()
    assert lag.describe()["cost"] == {"2": pytest.approx(9.0, abs=1.0)}


def test_the_launchers_load_fits_into_what_a_profile_takes() -> None:
    """A profile ends by itself only where nobody ended it."""
    rounds = 0
    target = FakeTarget(1e-4)
    for _, tokens in profiled(target, 600.0, requests=64).calls:
        rounds += tokens
    profile = ProfileRun(TIERS, SignalLag("auto", overlap=True), sleeps=True)
    assert 1.5 * rounds < WALKS * ROUNDS * len(profile._order)


def test_auto_compares_every_tier_and_a_walk_that_ended_early_leaves_none_out() -> None:
    profile = ProfileRun(TIERS, SignalLag("auto", overlap=True))
    walk(profile, 24, slow_wait=1.002)  # there and back
    assert [row[:2] for row in summary(profile.finish())] == [[2, 0], [2, 1], [2, 3]]
    lag = SignalLag("auto", overlap=True)
    profile = ProfileRun(TIERS, lag)
    walk(profile, 16, slow_wait=1.002)  # accepted drafts: the way back ended at the deepest tier
    assert [row[:2] for row in summary(profile.finish())] == [[2, 0], [2, 1], [2, 3]]


@pytest.mark.parametrize(
    ("mode", "overlap", "waits", "rounds"),
    [
        ("late", True, False, 1),
        ("0", True, True, 0),
        ("auto", True, False, 1),
        ("late", False, False, 0),
        ("0", False, False, 0),
        ("auto", False, False, 0),
    ],
)
def test_lag_of_every_mode(mode: str, overlap: bool, waits: bool, rounds: int) -> None:
    lag = SignalLag(mode, overlap)
    assert (lag.waits, lag.rounds) == (waits, rounds)


class Learner:
    name = "learner"
    candidate_steps = TIERS
    rows: tuple = ()

    def decide(self, batch: Batch):
        raise AssertionError("the profile decides")

    def observe(self, outcome: Round) -> None:
        raise AssertionError("dummy text teaches nothing")

    def profiled(self, rows) -> None:
        self.rows = rows

    def snapshot(self) -> dict[str, object]:
        return {}


def test_the_controller_profiles_in_the_policys_place() -> None:
    engine = EnginePolicy(SpecKVConfig(policy="static:3", candidate_steps=TIERS), 3)
    learner = Learner()
    engine._policies["static:3"] = engine.policy = learner  # type: ignore[assignment]
    engine.start_profile()
    served = set()
    for _ in range(24):
        steps = engine.get_steps_for_batch(1)
        served.add(steps)
        engine.observe(Round(steps, 1, [0], 0.1))
    assert served == set(TIERS)
    assert engine.counters.request_rounds == 0
    engine.finish_profile()
    assert len(learner.rows) == 24
    assert len(engine.snapshot()["profile"]) == 3
    engine.finish_profile()  # harmless


def test_a_policy_that_chokes_on_its_profile_is_counted() -> None:
    engine = EnginePolicy(SpecKVConfig(policy="static:3", candidate_steps=TIERS), 3)
    engine.policy.profiled = lambda rows: 1 / 0  # type: ignore[attr-defined]
    engine.start_profile()
    for _ in range(24):
        engine.observe(Round(engine.get_steps_for_batch(1), 1, [0], 0.1))
    engine.finish_profile()
    assert engine.counters.fallbacks == 1


class FakeTarget:
    """Takes `per_token` seconds for a token, whatever the batch."""

    def __init__(self, per_token: float) -> None:
        self.now = 0.0
        self.per_token = per_token
        self.calls: list[tuple[int, int]] = []
        self.states: list[int] = []
        self.flushed = 0

    def generate(self, input_ids: list[list[int]], max_new_tokens: int) -> None:
        self.calls.append((len(input_ids), max_new_tokens))
        self.now += self.per_token * max_new_tokens

    def set_state(self, values: dict[str, int]) -> None:
        self.states.append(values[STATE_KEY])

    def flush(self) -> None:
        self.flushed += 1


def profiled(target: FakeTarget, seconds: float, requests: int = 48) -> FakeTarget:
    run(target, seconds, len(TIERS), requests, 512, clock=lambda: target.now)
    return target


def test_a_fast_engine_is_profiled_at_every_batch_size() -> None:
    target = profiled(FakeTarget(0.005), seconds=10.0)
    sizes = {size for size, tokens in target.calls if tokens > 10}
    assert sizes == {size for size in BATCH_SIZES if size <= 48}
    assert (target.states, target.flushed) == ([1, 0], 1)
    assert target.now < 10.0


def test_every_load_is_walked_before_any_is_walked_again() -> None:
    target = profiled(FakeTarget(0.02), seconds=2.1, requests=16)
    walks = [size for size, tokens in target.calls if tokens > 4]
    assert walks == [1, 4, 16]
    assert profiled(FakeTarget(0.02), 10.0, 16).calls[-3:] == [(1, 32), (4, 32), (16, 32)]


def test_a_size_whose_first_rounds_were_slow_is_walked_whole() -> None:
    """As where they compile what they need, or other work passed by."""
    target = FakeTarget(0.3)
    generate = target.generate

    def warm_after_one(*asked: Any) -> None:
        generate(*asked)
        target.per_token = 0.01

    target.generate = warm_after_one  # type: ignore[method-assign]
    profiled(target, seconds=5.0, requests=1)
    trial, *walk = [tokens for _, tokens in target.calls]
    assert trial == ROUNDS and walk == [12, 20, 32]


def test_every_data_parallel_rank_gets_as_many_requests() -> None:
    """SGLang hands them out in turn; what one rank can run limits what each gets."""
    alone, pair = FakeTarget(0.02), FakeTarget(0.02)
    profiled(alone, seconds=10.0, requests=16)
    run(pair, 10.0, len(TIERS), 16, 512, ranks=2, clock=lambda: pair.now)
    assert pair.calls == [(2 * size, tokens) for size, tokens in alone.calls]


@pytest.mark.parametrize("answers", [[], [False], [True, False]])
def test_a_rank_that_does_not_profile_costs_the_profile(
    answers: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    class Answering(HttpTarget):
        def _post(self, path: str, body: dict[str, Any]) -> Any:
            return SimpleNamespace(json=lambda: answers)

    run(Answering("", None, None), 10.0, len(TIERS), 16, 512)
    assert "no start-up profile" in caplog.text


@pytest.mark.parametrize("per_token", [0.05, 0.3, 2.0])
def test_a_slow_engine_keeps_to_its_time(per_token: float) -> None:
    target = profiled(FakeTarget(per_token), seconds=10.0)
    assert target.now <= 10.0 + 4 * per_token * (1 + len(BATCH_SIZES))
    assert target.states == [1, 0]


def test_trouble_costs_the_profile_and_not_the_server(caplog: pytest.LogCaptureFixture) -> None:
    target = FakeTarget(0.01)
    target.generate = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    profiled(target, seconds=10.0)
    assert target.states == [1, 0]
    assert "no start-up profile" in caplog.text
