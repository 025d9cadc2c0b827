"""Order of the comparison."""

from collections import Counter
from itertools import islice, pairwise, permutations, product

import pytest

from sglang_speckv.bench.arms import Draft, arms_for
from sglang_speckv.bench.plan import balanced, order_of, tasks
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.traffic import Workload

KINDS = ("code", "qa")
PROMPTS = [Prompt(f"{kind}-{i}", kind, "x") for i in range(6) for kind in KINDS]
WORKLOAD = Workload(PROMPTS, (1, 4))
TRAFFIC = [WORKLOAD.conditions("phases"), WORKLOAD.conditions("mixed")]


@pytest.mark.parametrize("count", range(1, 18))
@pytest.mark.parametrize("start", [0, 1, 5])
def test_every_item_is_in_every_place_and_after_every_other_as_often(count: int, start: int):
    items = range(count)
    orders = [balanced(items, turn) for turn in range(start, start + 2 * count)]
    places = Counter(pair for order in orders for pair in enumerate(order))
    neighbours = Counter(pair for order in orders for pair in pairwise(order))
    assert places == dict.fromkeys(product(items, items), 2)
    assert neighbours == dict.fromkeys(permutations(items, 2), 2)


@pytest.mark.parametrize("names", [("none", "static:1", "speckv"), ("none", "ema")])
def test_a_drift_over_time_adds_up_to_the_same_for_every_arm(names: tuple[str, ...]):
    """The first two blocks of a condition of even number are each other's reverse."""
    arms = arms_for([Draft("e", "/e", "EAGLE3")], names)
    for number in (0, 2, 4):
        first, second = (order_of(arms, number, index) for index in (0, 1))
        assert first == second[::-1] and sorted(first, key=arms.index) == arms


def test_conditions_begin_with_different_arms():
    arms = arms_for([Draft("e", "/e", "EAGLE3")], ("none", "static:1", "speckv", "ema"))
    assert len({order_of(arms, number, 0)[0] for number in range(0, 8, 2)}) == len(arms)


def test_a_balanced_set_of_the_first_traffic_comes_before_the_next():
    order = [(b.condition.traffic, b.index) for _, b in islice(tasks(WORKLOAD, TRAFFIC, None), 12)]
    assert order == [
        *(("phases", 0), ("phases", 0), ("phases", 1), ("phases", 1)),
        *(("mixed", 0), ("mixed", 0), ("mixed", 1), ("mixed", 1)),
        *(("phases", 2), ("phases", 2), ("phases", 3), ("phases", 3)),
    ]


def test_rounds_end_it():
    counts = Counter(block.condition for _, block in tasks(WORKLOAD, TRAFFIC, 3))
    assert set(counts.values()) == {3} and len(counts) == 4
