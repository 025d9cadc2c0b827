"""What is learned of tree shapes, and what is chosen by it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from sglang_speckv.config import Shape, parse_shapes
from sglang_speckv.policy import create_policy, trees
from sglang_speckv.policy.base import Batch, Round
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.trees import TreeAcceptance, covers, nodes_of
from tests.unit.policy.tree_simulate import Machine, Node, run, tree, verified

SHAPES = parse_shapes("0,1x2,2x6,3x8,3x16,5x16,5x32")
SURE = 0.5


def served(model: TreeAcceptance, shape: Shape, rounds: int, seed: int = 0) -> np.ndarray:
    """Tokens expected of every tier, the mean over the second half of the rounds: what is believed
    follows the newest ones."""
    rng = np.random.default_rng(seed)
    tier, told = SHAPES.index(shape), []
    for _ in range(rounds):
        told.append(model.tokens(np.full(1, np.nan))[0])
        nodes = verified(tree(rng, SURE, 5), shape)[None]
        model.learn_tree(tier, [int(nodes[0, :, 2].sum())], None, None, nodes)
    return np.mean(told[rounds // 2 :], axis=0)


@cache
def many_trees() -> list[list[Node]]:
    rng = np.random.default_rng(1)
    return [tree(rng, SURE, 5) for _ in range(2000)]


@cache
def truth(shape: Shape) -> float:
    """Tokens per round."""
    return 1.0 + float(np.mean([verified(nodes, shape)[:, 2].sum() for nodes in many_trees()]))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.num_steps], ids=str)
def test_a_shape_that_is_served_is_known(shape: Shape) -> None:
    tokens = served(TreeAcceptance(SHAPES), shape, 500)
    assert tokens[0] == 1.0
    assert tokens[SHAPES.index(shape)] == pytest.approx(truth(shape), rel=0.06)


def test_smaller_shapes_are_known_from_a_larger_one() -> None:
    tokens = served(TreeAcceptance(SHAPES), Shape(5, 32), 500)
    for tier, shape in enumerate(SHAPES):
        assert tokens[tier] == pytest.approx(truth(shape), rel=0.08), shape


def test_shapes_of_as_many_tokens_are_told_apart() -> None:
    shapes = parse_shapes("2x8,5x8")
    model, rng = TreeAcceptance(shapes), np.random.default_rng(3)
    told = []
    for turn in range(600):
        tier = 1 + turn % 2
        nodes = verified(tree(rng, SURE, shapes[tier].num_steps), shapes[tier])[None]
        model.learn_tree(tier, [int(nodes[0, :, 2].sum())], None, None, nodes)
        told.append(model.tokens(np.full(1, np.nan))[0])
    for tier in (1, 2):
        believed = float(np.mean([tokens[tier] for tokens in told[300:]]))
        assert believed == pytest.approx(truth(shapes[tier]), rel=0.06)


def only(shapes: str, tier: int, sure: float, rounds: int) -> TreeAcceptance:
    """What is believed after rounds of one shape."""
    model, rng = TreeAcceptance(parse_shapes(shapes)), np.random.default_rng(4)
    shape = parse_shapes(shapes)[tier]
    for _ in range(rounds):
        nodes = verified(tree(rng, sure, shape.num_steps), shape)
        model.learn_tree(tier, [int(nodes[:, 2].sum())], None)
    return model


def levels(model: TreeAcceptance, tier: int) -> np.ndarray:
    """P(the first i levels of that shape are accepted) of a usual request."""
    return model.survival(np.array([np.nan]))[0][model._spans[tier]]


def test_a_shape_gets_as_far_as_one_that_it_covers() -> None:
    """It has as many tokens and fewer steps, so more nodes of each level."""
    model = only("3x8,5x8", 2, SURE, 300)
    assert (levels(model, 1) >= levels(model, 2)[:3]).all()
    assert levels(model, 2).sum() > 1.0


@pytest.mark.parametrize("sure", [-3.0, SURE])
def test_what_a_shape_shows_counts_for_more_than_what_it_covers(
    monkeypatch: pytest.MonkeyPatch, sure: float
) -> None:
    shown = levels(only("3x8,5x8,7x8", 1, sure, 400), 1).tolist()
    monkeypatch.setattr(trees, "covers", lambda one, other: False)
    assert levels(only("3x8,5x8,7x8", 1, sure, 400), 1).tolist() == shown


@pytest.mark.parametrize(
    ("one", "other", "covered"),
    [
        (Shape(3, 8), Shape(5, 8), True),
        (Shape(5, 8), Shape(3, 8), False),  # its deeper nodes may take their places
        (Shape(3, 16), Shape(3, 8), True),
        (Shape(3, 8), Shape(1, 2), True),
        (Shape(3, 8), Shape(3, 16), False),
    ],
)
def test_what_covers_what(one: Shape, other: Shape, covered: bool) -> None:
    assert covers(one, other) is covered


def test_how_far_a_smaller_tree_would_have_got() -> None:
    rng, apart = np.random.default_rng(2), []
    model = TreeAcceptance(SHAPES)
    for _ in range(50):
        nodes = tree(rng, SURE, 5)
        for tier, larger in enumerate(SHAPES):
            found = model._smaller(tier, verified(nodes, larger)[None])
            for other, right in found.items():
                smaller = SHAPES[other]
                apart.append(abs(int(right[0]) - int(verified(nodes, smaller)[:, 2].sum())))
                if smaller.num_steps == larger.num_steps:
                    assert apart[-1] == 0
    assert np.mean(np.array(apart) > 0) < 0.05
    assert set(model._smaller(6, verified(nodes, SHAPES[6])[None])) == {1, 2, 3, 4, 5}


BAD_NODES: dict[str, Any] = {
    "none": None,
    "of another shape": np.zeros((1, 3, 3)),
    "unknown": np.full((1, 7, 3), np.nan),
    "no numbers": "nodes",
    "infinite": np.full((1, 7, 3), np.inf),
    "no shares": np.full((1, 7, 3), 1e300),
    "negative": np.full((1, 7, 3), -1.0),
}


@pytest.mark.parametrize("nodes", BAD_NODES.values(), ids=BAD_NODES)
def test_a_round_whose_nodes_are_unknown_says_it_of_its_own_shape(nodes: Any) -> None:
    with_nodes, without = TreeAcceptance(SHAPES), TreeAcceptance(SHAPES)
    with_nodes.learn_tree(3, [2], None, None, nodes)
    without.learn_tree(3, [2], None)
    assert with_nodes.tokens(np.full(1, np.nan)) == without.tokens(np.full(1, np.nan))
    assert np.isnan(nodes_of(nodes, 1, 7)).all()


def test_counts_that_cannot_be_true_are_left_out() -> None:
    model = TreeAcceptance(SHAPES)
    before = model.tokens(np.full(2, np.nan))
    model.learn_tree(3, [4, -1], None)
    model.learn_tree(0, [0], None)
    assert model.tokens(np.full(2, np.nan)) == before


MACHINES = {
    "tokens are dear": Machine(token=0.01),
    "tokens are cheap": Machine(token=0.0002),
    "steps are dear": Machine(step=0.03),
    "drafting does not pay": Machine(base=0.01, step=0.01, token=0.02),
}


@pytest.mark.parametrize(
    ("machine", "size"),
    [*((machine, 1) for machine in MACHINES.values()), (MACHINES["tokens are cheap"], 8)],
    ids=[*MACHINES, "eight requests"],
)
def test_the_policy_is_near_the_best_fixed_shape(machine: Machine, size: int) -> None:
    """With a start-up profile, as a server has."""
    tiers = tuple(range(len(SHAPES)))

    def earned(name: str) -> float:
        policy: Any = create_policy(name, tiers, 5, candidate_shapes=SHAPES)
        if name == "throughput":
            times = [machine.seconds(shape, size) for shape in SHAPES]
            policy.profiled([TimedRound(size, tier, t) for tier, t in enumerate(times)])
        return run(policy, SHAPES, machine, size=size, rounds=200)

    fixed = {str(shape): earned(f"static:{shape}") for shape in SHAPES}
    assert earned("throughput") > 0.95 * max(fixed.values()), fixed  # learning included


def test_a_decision_names_its_shape() -> None:
    policy: Any = create_policy(
        "throughput", (0, 1, 2), 2, candidate_shapes=parse_shapes("1x2,3x8")
    )
    for _ in range(20):
        tier = policy.decide(Batch(1)).num_steps
        policy.observe(Round(tier, 1, [0], 0.01 * (1 + tier)))
    told = policy.explain()
    survival: Any = policy.snapshot()["survival"]
    assert {name: len(levels) for name, levels in survival.items()} == {"0": 0, "1x2": 1, "3x8": 3}
    assert told["shape"] in ("0", "1x2", "3x8") and set(told["depths"]) == {"0", "1x2", "3x8"}
    assert set(policy.snapshot()["round_ms"]) >= {"0", "1x2", "3x8"}
