"""Order of the comparison."""

from collections import Counter
from itertools import islice

from sglang_speckv.bench.arms import Draft, arms_for
from sglang_speckv.bench.plan import order_of, rotated, tasks
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.traffic import Workload

KINDS = ("code", "qa")
PROMPTS = [Prompt(f"{kind}-{i}", kind, "x") for i in range(6) for kind in KINDS]
WORKLOAD = Workload(PROMPTS, (1, 4))
TRAFFIC = [WORKLOAD.conditions("phases"), WORKLOAD.conditions("mixed")]


def test_rotation_gives_every_item_every_place():
    items = "abcde"
    places = {item: set() for item in items}
    for turn in range(10):
        for place, item in enumerate(rotated(items, turn)):
            places[item].add(place)
    assert all(len(seen) == 5 for seen in places.values())


def test_every_condition_sees_the_arms_forwards_and_backwards():
    arms = arms_for([Draft("e", "/e", "EAGLE3")], ("none", "static:1", "speckv"))
    for number in range(4):
        orders = [order_of(arms, number, index) for index in range(4)]
        assert all(sorted(order, key=arms.index) == arms for order in orders)
        assert len({order[0] for order in orders}) > 1
        # a drift over time adds up to nothing over two neighbouring blocks, but for one place
        for arm in arms:
            places = [order.index(arm) for order in orders]
            assert abs(places[0] + places[1] - 2) <= 2


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
