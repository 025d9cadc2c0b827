"""Differences of the engine's counters."""

import pytest

from sglang_speckv.ab.counters import Counters, read_counters

BEFORE = Counters({"1": 4, "3": 2}, 10, 5, 1, ((0.1, 1, 1), (0.2, 3, 1)))
AFTER = Counters(
    {"0": 1, "1": 4, "3": 5}, 58, 35, 3, ((0.2, 3, 1), (1.0, 0, 4), (1.1, 3, 4), (1.2, 3, 4))
)


def test_a_block_is_the_difference():
    block = AFTER.since(BEFORE)
    assert block.rounds == {"0": 1, "1": 0, "3": 3}
    assert block.accept_rate == 30 / 48
    assert block.fallbacks == 2
    assert block.shares() == {"0": 0.25, "3": 0.75}


def test_recent_rounds_are_only_the_blocks_own():
    one_more = Counters({"0": 1, "1": 4, "3": 6}, 70, 40, 3, (*AFTER.recent, (2.0, 3, 4)))
    assert one_more.since(AFTER).recent == ((2.0, 3, 4),)
    assert AFTER.since(AFTER).recent == ()


def test_blocks_add_up():
    block = AFTER.since(BEFORE)
    total = block + block
    assert total.rounds == {"0": 2, "1": 0, "3": 6}
    assert total.accept_rate == block.accept_rate


def test_nothing_proposed_has_no_rate():
    assert Counters({"0": 3}, 0, 0).accept_rate is None


def test_the_shares_of_some_batch_sizes():
    block = AFTER.since(BEFORE)
    assert block.shares((0, 1)) == {"3": 1.0} and block.shares((1, 4)) == {"0": 1 / 3, "3": 2 / 3}


def test_reading_tells_inactive_from_broken():
    good = {
        "active": True,
        "rounds": {"3": 1},
        "request_rounds": 1,
        "proposed_drafts": 3,
        "correct_drafts": 1,
        "recent": [[0.5, 3, 1]],
        "policy": "throughput",
        "policy_state": {},
    }
    assert read_counters({"speckv": good}).recent == ((0.5, 3, 1),)
    assert read_counters({}) is None
    assert read_counters({"speckv": {**good, "active": False}}) is None
    with pytest.raises(ValueError, match="its SpecKV counters are unreadable"):
        read_counters({"speckv": {**good, "rounds": "many"}})


def test_shapes_come_in_the_order_of_what_they_verify() -> None:
    recent = ((0.1, 0, 1), (0.2, 2, 4), (0.3, 3, 4), (0.4, 3, 16))
    counters = Counters({"0": 1, "1x2": 0, "3x8": 1, "3x16": 2, "2x6": 0}, 9, 9, 0, recent)
    assert counters.shares() == {"0": 0.25, "3x8": 0.25, "3x16": 0.5}
    named = Counters({"0": 1, "1x2": 0, "3x8": 1, "3x16": 2}, 9, 9, 0, recent)
    assert named.shares((0, 4)) == {"0": 1 / 3, "3x8": 1 / 3, "3x16": 1 / 3}
