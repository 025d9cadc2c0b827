"""Blocks of every kind of traffic."""

from collections import Counter

import pytest

from sglang_speckv.ab.request import Prompt
from sglang_speckv.ab.traffic import Condition, Workload

KINDS = ("code", "qa", "reasoning", "sum")
PROMPTS = [Prompt(f"{kind}-{i}", kind, "x") for i in range(6) for kind in KINDS]
CONCURRENCIES = (1, 4, 16)
WORKLOAD = Workload(PROMPTS, CONCURRENCIES)


def test_every_four_mixed_blocks_are_balanced_over_classes():
    for concurrency in (1, 2, 4, 6):
        for start in (0, 4, 8):
            kinds = Counter(
                prompt.kind
                for index in range(start, start + 4)
                for prompt in WORKLOAD.block(index, Condition("mixed", concurrency)).prompts
            )
            assert kinds == dict.fromkeys(KINDS, concurrency)


def test_phases_have_one_class_at_a_time_and_go_through_its_prompts():
    workload = Workload(PROMPTS, (2,))
    blocks = [workload.block(index, Condition("phases", 2)) for index in range(12)]
    assert all(len({prompt.kind for prompt in block.prompts}) == 1 for block in blocks)
    assert [block.prompts[0].kind for block in blocks[:5]] == [*KINDS, "code"]
    assert {prompt.id for block in blocks for prompt in block.prompts} == {p.id for p in PROMPTS}


def test_a_sweep_rises_and_falls_in_one_block():
    (condition,) = WORKLOAD.conditions("sweep")
    block = WORKLOAD.block(3, condition)
    assert [segment.concurrency for segment in block.segments] == [1, 4, 16, 4, 1]
    assert [len(segment.prompts) for segment in block.segments] == [1, 4, 16, 4, 1]
    assert block.condition.concurrency == 16


def test_bursts_come_between_single_requests():
    block = WORKLOAD.block(0, Condition("bursty", 4))
    assert [segment.concurrency for segment in block.segments] == [1, 4, 1, 4]


@pytest.mark.parametrize("traffic", ["sweep", "bursty"])
def test_moving_traffic_is_one_condition(traffic: str):
    """Its loads are told apart within its blocks, so that none is counted twice."""
    assert WORKLOAD.conditions(traffic) == [Condition(traffic, 16)]


@pytest.mark.parametrize(
    ("traffic", "concurrency", "cycle"),
    [("mixed", 1, 4), ("mixed", 2, 2), ("mixed", 4, 1), ("mixed", 6, 2), ("phases", 4, 4)],
)
def test_after_a_cycle_every_class_was_met_equally_often(traffic, concurrency, cycle):
    at = Condition(traffic, concurrency)
    assert WORKLOAD.cycle(at) == cycle
    kinds = Counter(p.kind for i in range(cycle) for p in WORKLOAD.block(i, at).prompts)
    assert len(kinds) == 4 and len(set(kinds.values())) == 1


def test_where_classes_are_too_many_to_meet_each_there_is_no_cycle():
    """Records without a class of their own, such as ShareGPT's, are each one."""
    many = Workload([Prompt(f"id{i}", f"id{i}", "x") for i in range(500)], (1,))
    assert many.cycle(Condition("mixed", 1)) == many.cycle(Condition("phases", 1)) == 1


def test_more_requests_than_run_at_a_time():
    block = Workload(PROMPTS, (4,), requests_per_slot=3).block(0, Condition("mixed", 4))
    assert [segment.concurrency for segment in block.segments] == [4]
    assert len(block.prompts) == 12


def test_an_open_loop_has_the_same_arrivals_for_every_arm():
    closed, open_loop = Workload(PROMPTS, (1,), open_loop_requests=200).conditions("mixed", (2.0,))
    assert (closed.rate, open_loop.rate, open_loop.concurrency) == (None, 2.0, None)
    workload = Workload(PROMPTS, (1,), open_loop_requests=200)
    block = workload.block(0, open_loop)
    assert block == workload.block(0, open_loop)
    assert block.arrivals != workload.block(1, open_loop).arrivals
    assert len(block.arrivals) == len(block.prompts) == 200
    assert list(block.arrivals) == sorted(block.arrivals)
    assert block.arrivals[-1] == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize("traffic", ["mixed", "phases", "sweep", "bursty"])
def test_blocks_go_on_without_end_and_before_the_start(traffic: str):
    for condition in WORKLOAD.conditions(traffic, (1.0,)):
        for index in (-1, 0, 1000):
            block = WORKLOAD.block(index, condition)
            assert block == WORKLOAD.block(index, condition) and block.prompts
