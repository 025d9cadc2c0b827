"""Arms by name, and the servers that they need."""

import pytest

from sglang_speckv.ab.arms import (
    Draft,
    arms_for,
    check_arm,
    check_arms,
    needs_draft,
    servers_for,
)
from sglang_speckv.config import ConfigError

EAGLE3 = Draft("eagle3", "/e", "EAGLE3")
STANDALONE = Draft("standalone", "/s", "STANDALONE")
NAMES = ("none", "default", "static:1", "static:3#2", "ema", "speckv", "speckv:ema")


def test_each_draft_has_all_arms_that_can_be_with_it():
    names = ("none", "static:1", "ema", "speckv")
    assert [(arm.name, arm.server) for arm in arms_for(EAGLE3, names)] == [
        ("none", "eagle3-none"),
        ("static:1", "eagle3-speckv"),
        ("ema", "eagle3-ema"),
        ("speckv", "eagle3-speckv"),
    ]
    # SGLang's rule: EAGLE only
    assert [arm.name for arm in arms_for(STANDALONE, names)] == ["none", "static:1", "speckv"]
    assert [(arm.draft, arm.server) for arm in arms_for(None, names)] == [("no draft", "none")]


def test_the_second_time_of_a_policy_learns_for_itself():
    arms = arms_for(EAGLE3, ("speckv", "speckv#2", "speckv:ema#2", "static:1#2"))
    assert [arm.policy for arm in arms] == ["throughput", "throughput#2", "ema#2", "static:1"]


def test_a_part_of_a_policy_can_be_left_out():
    names = ("speckv:throughput,stop=off", "speckv:throughput,stop=off,width=off#2")
    for name in names:
        check_arm(name)
    arms = arms_for(EAGLE3, names)
    assert [arm.policy for arm in arms] == [name.removeprefix("speckv:") for name in names]
    for name in ("speckv,stop=off", "speckv:throughput,stop=on", "static:3,width=off"):
        with pytest.raises(ConfigError, match="unknown arm"):
            check_arm(name)


def test_static_and_speckv_share_a_server_and_differ_by_policy():
    arms = arms_for(EAGLE3, NAMES)
    shared = [arm.policy for arm in arms if arm.server == "eagle3-speckv"]
    assert shared == ["static:1", "static:3", "throughput", "ema"]


def test_servers_and_what_makes_them_different():
    names = (*NAMES, "fresh:3", "url:other=http://h:1/v1")
    arms = arms_for(EAGLE3, names)
    servers = {spec.name: spec for spec in servers_for(EAGLE3, arms)}
    assert {arm.server for arm in arms} == set(servers)
    assert servers["eagle3-none"].flags == ()
    assert "--speckv" in servers["eagle3-speckv"].flags
    assert "--speckv" not in servers["eagle3-ema"].flags
    assert "--speculative-adaptive" in servers["eagle3-ema"].flags
    assert not any("steps" in flag for flag in servers["eagle3-default"].flags)
    fresh = " ".join(servers["eagle3-fresh3"].flags)
    assert "num-steps 3" in fresh and "topk 1" in fresh and "draft-tokens 4" in fresh
    assert servers["url:other"].url == "http://h:1/v1"


def test_a_depth_that_no_tier_has_becomes_one():
    arms = arms_for(EAGLE3, ("static:4", "static:6"))
    (server,) = servers_for(EAGLE3, arms)
    assert server.flags[-1] == "0,1,2,3,4,5,6,7"
    (usual,) = servers_for(EAGLE3, arms_for(EAGLE3, ("static:3", "speckv")))
    assert "--speckv-candidate-steps" not in usual.flags


def test_what_a_user_could_have_launched_instead():
    arms = arms_for(EAGLE3, (*NAMES, "fresh:2", "none:overlap"))
    fixed = {arm.name for arm in arms if arm.is_fixed}
    # the second time of an arm is not another setting
    assert fixed == {"none", "none:overlap", "default", "static:1", "fresh:2"}


def test_none_alone_needs_no_draft():
    assert not needs_draft(["none", "none#2", "url:x=http://h"])
    assert needs_draft(["none", "static:1"])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fast",
        "static",
        "static:x",
        "static:99",
        "fresh:0",
        "url:x",
        "none#x",
        "speckv#3",
        "none#02",
        "ema:3",
        "none:x",
    ],
)
def test_what_is_no_arm_is_refused_by_name(name: str):
    with pytest.raises(ConfigError, match="arm"):
        check_arm(name)


def test_trees_of_one_topk_share_a_server() -> None:
    names = ("tree:5x4x8", "tree:3x4x16#2", "speckv:topk4", "speckv:topk4#2", "tree:3x2x6")
    check_arms(names)
    arms = arms_for(STANDALONE, names)
    assert [(arm.server, arm.policy) for arm in arms] == [
        ("standalone-speckv-topk4", "static:5x8"),
        ("standalone-speckv-topk4", "static:3x16"),
        ("standalone-speckv-topk4", "throughput"),
        ("standalone-speckv-topk4", "throughput#2"),
        ("standalone-speckv-topk2", "static:3x6"),
    ]
    assert [arm.is_fixed for arm in arms] == [True, False, False, False, True]
    assert [arm.learns for arm in arms] == [False, False, True, True, False]
    four, two = servers_for(STANDALONE, arms)
    told = " ".join(four.flags)
    assert "--speculative-num-steps 3 --speculative-eagle-topk 4" in told
    assert "--speculative-num-draft-tokens 16 --speckv-candidate-shapes" in told
    assert {"5x8", "3x16", "1x2"} <= set(four.flags[-1].split(","))
    assert "--speculative-eagle-topk 2" in " ".join(two.flags)


@pytest.mark.parametrize("name", ["tree:3x1x4", "tree:3x4x3", "tree:1x4x6", "tree:17x4x60"])
def test_what_is_no_tree(name: str) -> None:
    with pytest.raises(ConfigError, match="is no tree of STEPSxTOPKxTOKENS"):
        check_arm(name)


def test_speckv_over_shapes_needs_a_tree_of_its_topk() -> None:
    with pytest.raises(ConfigError, match="needs a tree of its topk, such as tree:5x8x8"):
        check_arms(["tree:5x4x8", "speckv:topk8"])
