"""While serving nothing fails: a broken policy means the launch depth, a count and one line."""

import json
import logging
from typing import Any

import numpy as np
import pytest

from sglang_speckv.config import SWITCHES, ConfigError, SpecKVConfig, parse_shapes
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.stopping import StopRule
from sglang_speckv.policy.throughput import ThroughputPolicy
from sglang_speckv.srt.controller import EnginePolicy
from sglang_speckv.srt.counters import RECENT_ROUNDS


class Broken:
    name = "broken"
    candidate_steps = (1, 3)

    def __init__(self, num_steps: Any) -> None:
        self.num_steps = num_steps

    def decide(self, batch: Batch) -> Decision:
        if self.num_steps is None:
            raise ZeroDivisionError
        return Decision(self.num_steps, "best")

    def observe(self, outcome: Round) -> None:
        raise RuntimeError("no")

    def snapshot(self) -> dict[str, object]:
        return {}


def controller(policy: str = "static:3") -> EnginePolicy:
    return EnginePolicy(SpecKVConfig(policy=policy, candidate_steps=(0, 1, 3)), launch_steps=1)


WRONG = [7, -1, 10**400, 3.0, True, np.int64(3), np.nan, np.inf, "3", [3]]


@pytest.mark.parametrize("answer", [None, *WRONG])
def test_a_failing_policy_falls_back_and_is_logged_once(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = controller()
    engine.policy = Broken(answer)
    with caplog.at_level(logging.ERROR):
        assert [engine.get_steps_for_batch(2) for _ in range(3)] == [1, 1, 1]
        engine.observe(Round(1, 1, [1]))
    assert engine.counters.fallbacks == 4
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "decision",
    [None, 3, "best", object(), Decision(3, "best", "much"), Decision(3, "", 1, tokens_per_s=[])],
)
def test_what_is_no_decision_is_not_followed(decision: Any) -> None:
    engine = controller()
    engine.policy.decide = lambda batch: decision  # type: ignore[method-assign]
    assert engine.get_steps_for_batch(2) == 1
    assert engine.counters.fallbacks == 1 and not engine.held


@pytest.mark.parametrize(
    "widths",
    ["1", 1, [], [1], [[1, 1]], [-1, 1], [1, 5], [0.5, 1], [np.nan, 1], [1, None], [1, 10**30]],
)
def test_widths_that_no_round_has_are_not_verified(widths: Any) -> None:
    engine = controller("throughput")
    engine.policy.widths = lambda probs: widths  # type: ignore[attr-defined]
    assert engine.widths(np.full((2, 3), 0.5)) is None
    assert engine.counters.fallbacks == 1
    engine.policy.widths = lambda probs: np.array([0, 3], dtype=np.int32)  # type: ignore[attr-defined]
    found = engine.widths(np.full((2, 3), 0.5))
    assert found is not None and found.dtype == np.int64 and found.tolist() == [0, 3]


def test_pinning_holds_and_releases() -> None:
    engine = controller()
    engine.pin(0)
    assert engine.get_steps_for_batch(1) == 0
    engine.pin(None)
    assert engine.get_steps_for_batch(1) == 3


def test_a_policy_keeps_what_it_learned_while_another_serves() -> None:
    engine = controller("throughput")
    learned = engine.policy
    engine.select("static:1")
    assert engine.get_steps_for_batch(1) == 1
    engine.select("throughput")
    assert engine.policy is learned


def test_the_second_time_of_a_policy_learns_for_itself() -> None:
    engine = controller("throughput")
    first = engine.policy
    engine.select("throughput#2")
    assert type(engine.policy) is type(first) and engine.policy is not first
    assert engine.policy_name == "throughput#2"
    with pytest.raises(ConfigError):
        engine.select("throughput#3")


@pytest.mark.parametrize("name", ["static:9", "magic"])
def test_selecting_what_is_not_there_changes_nothing(name: str) -> None:
    engine = controller()
    with pytest.raises(ConfigError):
        engine.select(name)
    assert engine.policy_name == "static:3"


def test_counts_are_true_per_tier_and_bounded() -> None:
    engine = controller()
    for _ in range(RECENT_ROUNDS + 10):
        engine.observe(Round(3, 2, [3, 0]))
    engine.observe(Round(0, 1, [0]))
    shown = json.loads(json.dumps(engine.snapshot()))
    assert shown["rounds"] == {"0": 1, "1": 0, "3": RECENT_ROUNDS + 10}
    assert shown["proposed_drafts"] == 6 * (RECENT_ROUNDS + 10)
    assert shown["accept_rate"] == 0.5
    assert len(shown["recent"]) == RECENT_ROUNDS


def test_a_draft_can_be_kept_awake_at_a_pinned_depth() -> None:
    engine = controller()
    engine.pin(1)
    engine.get_steps_for_batch(1)
    assert not engine.awake
    engine.keep_awake(True)
    assert engine.awake and engine.snapshot()["kept_awake"]


def test_every_tier_gets_every_graph_size() -> None:
    engine = controller()
    assert engine.cuda_graph_bs_for_step(3) is None
    engine.set_cuda_graph_bs([4, 1, 2])
    assert engine.cuda_graph_bs_for_step(0) == [1, 2, 4]


def test_the_default_policy_knows_what_a_batch_is_padded_to() -> None:
    engine = controller("throughput")
    engine.set_cuda_graph_bs([8, 1, 2])
    cost = engine.policy._cost  # type: ignore[attr-defined]
    assert cost.row_of(3) == cost.row_of(8) != cost.row_of(2)
    assert cost.row_of(9) != cost.row_of(8), "no graph is as large: it runs as it is"


def test_a_round_that_fell_back_says_so() -> None:
    engine = controller()
    engine.policy = Broken(None)
    engine.get_steps_for_batch(1)
    assert engine.decision is not None
    assert (engine.decision.num_steps, engine.decision.reason) == (1, "fallback")
    engine.pin(3)
    engine.get_steps_for_batch(1)
    assert engine.decision is None


def test_a_fault_of_the_adapter_itself_serves_the_launch_depth() -> None:
    engine = controller()
    engine.fuse.armed = True
    engine.counters = None  # type: ignore[assignment]
    assert engine.get_steps_for_batch(1) == 1
    assert engine.held and engine.fuse.failures == {"choosing a depth": 1}


def test_a_digest_tells_decisions_and_beliefs_apart() -> None:
    engine = controller()
    digests = set()
    for decision in (
        None,
        Decision(1, "best"),
        Decision(1, "best", 1.5),
        Decision(1, "best", np.nextafter(1.5, 2)),
        Decision(1, "best", 1.5, False, 100.0),
    ):
        engine.decision = decision
        digests.add(engine.digest)
        assert np.float32(engine.digest) == engine.digest
    assert len(digests) == 4  # nothing believed is nothing believed
    engine.num_steps = 3
    assert engine.digest not in digests


def test_the_default_policy_says_what_it_believes() -> None:
    engine = controller("throughput")
    engine.policy.profiled([TimedRound(1, steps, 0.01 + 0.001 * steps) for steps in (0, 1, 3)])
    engine.get_steps_for_batch(1)
    assert engine.decision is not None and engine.decision.tokens_per_s is not None


def test_a_draft_that_is_kept_awake_is_priced_awake() -> None:
    """Asleep, a round without drafts would be the cheapest by far."""
    engine = controller("throughput")
    rows = [TimedRound(1, steps, 0.1) for steps in (0, 1, 3)]
    engine.policy.profiled([TimedRound(1, 0, 0.01, asleep=True), *rows])
    assert engine.get_steps_for_batch(1) == 0
    engine.keep_awake(True)
    assert engine.get_steps_for_batch(1) == 3
    engine.keep_awake(False)
    assert engine.get_steps_for_batch(1) == 0


class Stopping(ThroughputPolicy):
    """Its rounds stop after ``last`` drafts."""

    def __init__(self, last: int) -> None:
        super().__init__((0, 1, 2, 4), 1)
        self.last = last

    def decide(self, batch: Batch) -> Decision:
        return Decision(4, "best", watched=True)

    def goes_on(self, probs: np.ndarray) -> bool:
        if self.last < 0:
            raise ZeroDivisionError
        return probs.shape[1] < self.last


@pytest.mark.parametrize(("last", "made"), [(2, 2), (3, 4), (4, 4), (-1, 2)])
def test_a_round_is_asked_at_every_tier_before_its_depth(last: int, made: int) -> None:
    """A policy that fails to answer goes on up to the launch depth."""
    config = SpecKVConfig(policy="throughput", candidate_steps=(0, 1, 2, 4))
    engine = EnginePolicy(config, launch_steps=1)
    engine.watch_rounds(None, None)
    engine.policy = Stopping(last)
    assert engine.get_steps_for_batch(1) == 4
    drafts = 2
    while drafts < 4:
        if engine.asks_after(drafts) and not engine.goes_on(np.full((1, drafts), 0.5)):
            break
        drafts += 1
    assert drafts == made
    assert engine.counters.fallbacks == (last < 0)
    assert not engine.asks_after(3) and not engine.asks_after(4)


def test_pinned_and_held_rounds_are_not_asked() -> None:
    engine = controller("throughput")
    engine.watch_rounds(None, None)
    engine.policy = Stopping(2)
    engine.pin(3)
    engine.get_steps_for_batch(1)
    assert not engine.asks_after(1)
    engine.pin(None)
    engine.hold()
    engine.get_steps_for_batch(1)
    assert not engine.asks_after(1)


def test_a_device_has_a_rule_in_rounds_that_may_stop() -> None:
    engine = controller("throughput")
    engine.watch_rounds(None, "no widths", on_device=True)
    assert isinstance(engine.policy, ThroughputPolicy) and engine.policy._on_device
    rule = StopRule(np.zeros((2, 5)), np.zeros((2, 5)), np.zeros(1), np.zeros(5))
    engine.policy = Ruling(rule)
    engine.get_steps_for_batch(1)
    assert engine.stop_rule() is rule
    engine.policy.steps = 1
    engine.get_steps_for_batch(1)
    assert engine.stop_rule() is None, "its only draft is there before it"
    engine.policy = Ruling(None)
    engine.get_steps_for_batch(1)
    assert engine.stop_rule() is None and engine.counters.fallbacks == 1
    engine.policy = Ruling(rule)
    engine.pin(3)
    engine.get_steps_for_batch(1)
    assert engine.stop_rule() is None
    engine.pin(None)
    engine.get_steps_for_batch(1)
    engine.hold()
    assert engine.stop_rule() is None


class Ruling(ThroughputPolicy):
    """None: it fails."""

    def __init__(self, rule: StopRule | None) -> None:
        super().__init__((0, 1, 3), 3)
        self.rule, self.steps = rule, 3

    def decide(self, batch: Batch) -> Decision:
        return Decision(self.steps, "best", watched=True)

    def stop_rule(self) -> StopRule:
        if self.rule is None:
            raise ZeroDivisionError
        return self.rule


def test_a_policy_is_told_what_rounds_may_do() -> None:
    engine = controller("throughput")
    engine.watch_rounds(None, None)
    shown = engine.snapshot()
    assert (shown["stops"], shown["widths"]) == ("on", "on")
    told = {}
    for name in ("", SWITCHES[0], SWITCHES[1], SWITCHES[2], "#2", f"{SWITCHES[0]}#2"):
        engine.select(f"throughput{name}")
        assert isinstance(engine.policy, ThroughputPolicy)
        told[name] = engine.policy._stops, engine.policy._cuts
    assert told == {
        "": (True, True),
        ",stop=off": (False, True),
        ",width=off": (True, False),
        ",stop=off,width=off": (False, False),
        "#2": (True, True),
        ",stop=off#2": (False, True),
    }
    off = controller("throughput")
    off.watch_rounds("somebody said so", None)
    assert off.snapshot()["stops"] == "off: somebody said so"
    assert isinstance(off.policy, ThroughputPolicy)
    assert (off.policy._stops, off.policy._cuts) == (False, True)


def test_the_shallowest_depth_where_nothing_else_is_of_use_or_has_room() -> None:
    engine = controller()
    engine.undrafted = True
    assert engine.get_steps_for_batch(1) == engine.num_steps == engine.candidate_steps[0]
    assert engine.decision is not None and engine.decision.reason == "exact"
    engine.pin(3)
    assert engine.get_steps_for_batch(1) == 3
    engine.short_of_kv = True
    assert engine.get_steps_for_batch(1) == engine.candidate_steps[0]
    assert engine.decision is not None and engine.decision.reason == "kv"


def tree_controller(policy: str = "static:5x16", lag: str = "auto") -> EnginePolicy:
    shapes = parse_shapes("1x2,3x8,5x16,3x36")
    config = SpecKVConfig(policy=policy, candidate_shapes=shapes, signal_lag=lag)
    return EnginePolicy(config, launch_steps=3, overlap=True)


@pytest.mark.parametrize(
    ("most", "served"), [(None, "5x16"), (9, "5x16"), (4, "3x8"), (2, "1x2"), (0, "0")]
)
def test_a_bound_of_steps_takes_the_largest_smaller_tree(most: int | None, served: str) -> None:
    engine = tree_controller()
    engine.most_steps = most
    assert engine.name_of(engine.get_steps_for_batch(2)) == served


def test_trees_never_wait_for_signals_by_themselves() -> None:
    assert tree_controller().lag.mode == "late"
    assert tree_controller(lag="0").lag.mode == "0"
    assert controller().lag.mode == "auto"


def test_what_is_shown_of_trees() -> None:
    engine = tree_controller("throughput")
    engine.get_steps_for_batch(1)
    shown = engine.snapshot()
    json.dumps(shown)
    assert shown["candidate_shapes"] == ["0", "1x2", "3x8", "5x16", "3x36"]
    assert shown["launch_shape"] == "5x16" and shown["shape"] in shown["candidate_shapes"]
    assert shown["policies"] == ["throughput", *(f"static:{s}" for s in shown["candidate_shapes"])]
    assert list(shown["rounds"]) == shown["candidate_shapes"]
