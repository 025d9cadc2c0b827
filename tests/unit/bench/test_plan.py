"""Balance and order of the comparison."""

from collections import Counter
from pathlib import Path

from sglang_speckv.bench.plan import Draft, arms_for, block, rotated, schedule, servers_for
from sglang_speckv.bench.prompts import Prompt

EAGLE3 = Draft("eagle3", Path("/e"), "EAGLE3")
STANDALONE = Draft("standalone", Path("/s"), "STANDALONE")
KINDS = ("code", "qa", "reasoning", "sum")
PROMPTS = [Prompt(f"{kind}-{i}", kind, "x") for i in range(6) for kind in KINDS]


def test_arms_and_the_servers_they_run_on():
    arms = arms_for([EAGLE3, STANDALONE])
    names = [(arm.draft, arm.name) for arm in arms]
    assert names == [
        ("shared", "none"),
        *(("eagle3", name) for name in ("static:1", "static:3", "static:5", "ema", "speckv")),
        *(("standalone", name) for name in ("static:1", "static:3", "static:5", "speckv")),
    ]
    servers = {spec.name: spec.flags for spec in servers_for([EAGLE3, STANDALONE])}
    assert {arm.server for arm in arms} == set(servers)
    assert servers["none"] == ()
    assert "--speckv" in servers["standalone-speckv"]
    assert "--speckv" not in servers["eagle3-ema"]
    assert "--speculative-adaptive" in servers["eagle3-ema"]


def test_speckv_and_static_share_a_server_and_differ_by_policy():
    arms = [arm for arm in arms_for([EAGLE3]) if arm.server == "eagle3-speckv"]
    assert [arm.policy for arm in arms] == ["static:1", "static:3", "static:5", "throughput"]


def test_every_four_blocks_are_balanced_over_classes():
    for concurrency in (1, 2, 4, 6):
        for start in (0, 4, 8):
            kinds = Counter(
                prompt.kind
                for index in range(start, start + 4)
                for prompt in block(index, concurrency, PROMPTS).prompts
            )
            assert kinds == dict.fromkeys(KINDS, concurrency)


def test_blocks_are_the_same_for_all_arms_and_go_on_without_end():
    arms = arms_for([EAGLE3])
    scheduled = list(schedule(1000, arms, (1, 4), PROMPTS))
    for concurrency in (1, 4):
        blocks = [(b, arm) for b, arm in scheduled if b.concurrency == concurrency]
        assert len({b for b, _ in blocks}) == 1
        assert {arm for _, arm in blocks} == set(arms)
        assert len(blocks[0][0].prompts) == concurrency


def test_rotation_gives_every_item_every_place():
    items = "abcde"
    places = {item: set() for item in items}
    for turn in range(10):
        for place, item in enumerate(rotated(items, turn)):
            places[item].add(place)
    assert all(len(seen) == 5 for seen in places.values())
