"""Settings: round trip, and one sentence for everything that cannot be served."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.ab.options import options_from
from sglang_speckv.config import (
    DEFAULT_CANDIDATE_STEPS,
    MAX_NUM_STEPS,
    MAX_TREE_TOKENS,
    ConfigError,
    Shape,
    SpecKVConfig,
    default_shapes,
    parse_shapes,
    parse_steps,
    static_steps,
)

steps = st.lists(st.integers(0, MAX_NUM_STEPS), min_size=1, max_size=8)
slots = st.one_of(st.none(), st.just({"1": {"candidate_steps": [0, 1]}}))
junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.text())
)


@st.composite
def configs(draw: st.DrawFn) -> SpecKVConfig:
    tiers = draw(steps)
    policy = draw(st.sampled_from(["throughput", "ema", f"static:{tiers[0]}"]))
    return SpecKVConfig(policy, tuple(tiers), draw(slots))


@st.composite
def trees(draw: st.DrawFn) -> SpecKVConfig:
    shape = st.builds(Shape, st.integers(1, MAX_NUM_STEPS), st.integers(2, MAX_TREE_TOKENS))
    shapes = tuple(draw(st.lists(shape, min_size=1, max_size=4)))
    policy = draw(st.sampled_from(["throughput", f"static:{shapes[0]}", "static:0"]))
    return SpecKVConfig(policy, candidate_shapes=shapes)


@given(st.one_of(configs(), trees()))
def test_survives_json(config: SpecKVConfig) -> None:
    assert SpecKVConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(steps)
def test_candidates_are_sorted_and_unique(given_steps: list[int]) -> None:
    assert SpecKVConfig(candidate_steps=given_steps).candidate_steps == tuple(  # type: ignore[arg-type]
        sorted(set(given_steps))
    )


@given(trees())
def test_tiers_are_numbered_by_what_they_verify(config: SpecKVConfig) -> None:
    shapes = [config.shape_of(tier) for tier in config.tiers]
    assert shapes[0] == (0, 1) and len(set(shapes)) == len(shapes)
    tokens = [shape.num_draft_tokens for shape in shapes]
    assert tokens == sorted(tokens)
    assert [config.tier_of(shape) for shape in shapes] == list(config.tiers)
    assert parse_shapes(",".join(map(config.name_of, config.tiers))) == config.candidate_shapes
    if config.policy != "throughput":
        assert config.name_of(config.pinned_tier or 0) == config.policy.removeprefix("static:")


def test_a_chain_is_a_tier_by_its_depth() -> None:
    config = SpecKVConfig("static:3", (0, 1, 3))
    assert config.tiers == (0, 1, 3) and config.pinned_tier == 3
    assert config.shape_of(3) == (3, 4) and config.tier_of(Shape(3, 4)) == 3
    assert config.name_of(3) == "3" and SpecKVConfig("ema").pinned_tier is None


def test_shapes_have_a_limit_together() -> None:
    with pytest.raises(ConfigError, match="have 80 steps together, more than 64; leave some out"):
        parse_shapes(",".join(f"16x{tokens}" for tokens in (20, 30, 40, 50, 60)))


BAD_SHAPES = {
    "": "neither STEPSxTOKENS",
    "3": "neither STEPSxTOKENS",
    "0x1": "neither STEPSxTOKENS",
    "3x8x4": "neither STEPSxTOKENS",
    "3x8,": "neither STEPSxTOKENS",
    "-1x8": "neither STEPSxTOKENS",
    "17x40": "more than 16 steps",
    "3x257": "more than 256 tokens",
}


@pytest.mark.parametrize(("text", "problem"), BAD_SHAPES.items())
def test_bad_shapes_are_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_shapes(text)


@pytest.mark.parametrize(
    "policy", ["ema", "confidence", "static:3", "static:4x8", "static:x", "paper"]
)
def test_policies_that_cannot_choose_among_trees(policy: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot choose among trees.*static:3x8"):
        SpecKVConfig(policy, candidate_shapes=parse_shapes("3x8"))


FITS = {(3, 4, 8): True, (3, 1, 4): True, (3, 1, 5): False, (1, 4, 6): False, (2, 4, 21): True}


@pytest.mark.parametrize(("tree", "fits"), FITS.items())
def test_how_many_tokens_a_tree_has(tree: tuple[int, int, int], fits: bool) -> None:
    steps, topk, tokens = tree
    assert Shape(steps, tokens).fits(topk) is fits
    assert not Shape(steps, steps).fits(topk), "some step would have no token"


@pytest.mark.parametrize("launch", [(3, 4, 16), (5, 4, 8), (5, 8, 64), (1, 2, 3), (10, 10, 60)])
def test_default_shapes_are_trees_smaller_than_the_launch(launch: tuple[int, int, int]) -> None:
    steps, topk, tokens = launch
    shapes = default_shapes(Shape(steps, tokens), topk)
    assert Shape(1, 2) in shapes
    assert all(shape.fits(topk) and shape.num_draft_tokens < tokens for shape in shapes)


@given(steps)
def test_steps_survive_text(given_steps: list[int]) -> None:
    assert parse_steps(",".join(map(str, given_steps))) == tuple(given_steps)


@given(st.dictionaries(st.text(max_size=12), junk, max_size=4))
def test_any_json_gives_a_config_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        config = SpecKVConfig.from_dict(values)
    except ConfigError as error:
        assert "\n" not in str(error).replace("\\n", "")
    else:
        assert set(values) <= set(config.to_dict())


@given(key=st.sampled_from(["policy", "candidate_steps", "ema_config"]), value=junk)
def test_any_value_is_taken_or_refused(key: str, value: Any) -> None:
    try:
        config = SpecKVConfig.from_dict({key: value})
    except ConfigError:
        return
    assert config.policy == (value if key == "policy" else "throughput")
    assert all(type(step) is int for step in config.candidate_steps)


def test_a_static_step_joins_the_default_candidates() -> None:
    """Alike for flags, keywords and JSON, which all come through here."""
    assert 4 not in DEFAULT_CANDIDATE_STEPS
    config = SpecKVConfig.from_dict({"policy": "static:4"})
    assert config.candidate_steps == tuple(sorted({*DEFAULT_CANDIDATE_STEPS, 4}))
    with pytest.raises(ConfigError, match="add 4"):
        SpecKVConfig.from_dict({"policy": "static:4", "candidate_steps": [1, 3]})
    with pytest.raises(ConfigError, match="99"):
        SpecKVConfig.from_dict({"policy": "static:99"})


def test_defaults() -> None:
    config = SpecKVConfig.from_dict({})
    assert config.policy == "throughput"
    assert config.candidate_steps == DEFAULT_CANDIDATE_STEPS


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"polcy": "ema"}, "unknown speckv setting 'polcy'; the settings are policy"),
        ({"policy": "fast"}, "unknown policy 'fast'; choose from throughput, ema, .*static:K"),
        ({"policy": None}, "unknown policy None"),
        ({"exact": "yes"}, "exact 'yes' is not one of on, off"),
        ({"exact": ["on"]}, r"exact \['on'\] is not one of on, off"),
        ({"stop": "on"}, "stop 'on' is not one of auto, off"),
        ({"width": 3}, "width 3 is not one of auto, off"),
        (
            {"policy": "static:4", "candidate_steps": [0, 1]},
            "add 4 to the candidate steps 0,1",
        ),
        ({"policy": "static:1 "}, "unknown policy"),
        ({"policy": "static:1\n"}, "unknown policy"),
        ({"policy": "static:\u0663"}, "unknown policy"),
        ({"policy": "static:" + 5000 * "9"}, "unknown policy"),
        ({"candidate_steps": []}, "not a non-empty list of integers"),
        ({"candidate_steps": "0,1"}, "not a non-empty list of integers"),
        ({"candidate_steps": [-1]}, "candidate step -1 is not an integer in 0..16"),
        ({"candidate_steps": [17]}, "candidate step 17"),
        ({"candidate_steps": [1.0]}, "candidate step 1.0"),
        ({"candidate_steps": [True]}, "candidate step True"),
        ({"candidate_steps": ["3"]}, "candidate step '3'"),
        ({"ema_config": 3}, "ema_config 3 is not a JSON object"),
        ([], "not a JSON object"),
        (True, "not a JSON object"),
    ],
)
def test_refusals_name_the_value_and_the_remedy(values: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        SpecKVConfig.from_dict(values)


def test_steps_may_stand_apart() -> None:
    assert parse_steps("0, 1 , 3") == (0, 1, 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "1,,2",
        "1;2",
        "1.5",
        "0x1",
        "-1",
        "+1",
        "1_0",
        "1\n",
        "\u0661,3",
        "\u00b2",
        5000 * "9",
    ],
)
def test_steps_that_are_no_list(text: str) -> None:
    with pytest.raises(ConfigError, match="comma-separated integers"):
        parse_steps(text)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("static:0", 0), ("static:12", 12), ("static:", None), ("static:\u0663", None), ("ema", None)],
)
def test_static_steps(policy: str, expected: int | None) -> None:
    assert static_steps(policy) == expected


def test_a_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)


def test_a_config_error_is_one_line_that_any_terminal_can_print() -> None:
    error = ConfigError("the key 'a\n\x1b[2J\ud800é' is unknown")
    assert str(error) == r"the key 'a\n\x1b[2J\ud800é' is unknown"
    with pytest.raises(ConfigError, match=r"unknown field `\\n`"):
        options_from({"\n": None}, "ab.yaml")


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "4096"])
def test_a_longest_context_is_a_number_of_tokens(most: Any) -> None:
    assert SpecKVConfig.from_dict({"max_context": 4096}).max_context == 4096
    with pytest.raises(ConfigError, match=r"max context .* is not a number of tokens from 1 on"):
        SpecKVConfig.from_dict({"max_context": most})
