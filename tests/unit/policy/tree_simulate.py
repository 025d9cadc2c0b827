"""A draft that makes trees as EAGLE-2 does, for one request, and a target that agrees with it as
often as the draft itself says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_speckv.config import Shape
from sglang_speckv.policy.base import Batch, Round, StepPolicy

TOPK = 4


class Node(NamedTuple):
    joint: float
    level: int
    right: bool


def tree(rng: np.random.Generator, sure: float, steps: int, topk: int = TOPK) -> list[Node]:
    """Every node that ``steps`` steps make; of each level the best ``topk`` have children. ``sure``
    is the log-odds of a usual top-1 probability."""
    nodes: list[Node] = []
    front = [Node(1.0, 0, True)]
    for level in range(1, steps + 1):
        made = []
        for parent in front:
            first = 1.0 / (1.0 + np.exp(-rng.normal(sure, 1.0)))
            probs = first * (1.0 - first) ** np.arange(topk)
            chosen = int(np.searchsorted(probs.cumsum(), rng.random()))
            made += [
                Node(parent.joint * float(prob), level, parent.right and child == chosen)
                for child, prob in enumerate(probs)
            ]
        nodes += made
        front = sorted(made, key=lambda node: -node.joint)[:topk]
    return nodes


def verified(nodes: list[Node], shape: Shape) -> np.ndarray:
    """[drafts, 3]: what of these nodes a tree of that shape verifies."""
    within = [node for node in nodes if node.level <= shape.num_steps]
    best = sorted(within, key=lambda node: -node.joint)[: shape.drafts]
    return np.array(best, dtype=float).reshape(-1, 3)


class Machine(NamedTuple):
    """Seconds of a round: ``base``, each further step of the draft, and each verified token."""

    base: float = 0.05
    step: float = 0.002
    token: float = 0.001

    def seconds(self, shape: Shape, size: int = 1) -> float:
        steps = max(shape.num_steps - 1, 0)
        return self.base + self.step * steps + self.token * size * shape.num_draft_tokens


def run(
    policy: StepPolicy,
    shapes: tuple[Shape, ...],
    machine: Machine,
    sure: float = 0.5,
    rounds: int = 400,
    size: int = 1,
    seed: int = 0,
) -> float:
    """Tokens per second of what ``policy`` chooses."""
    rng = np.random.default_rng(seed)
    deepest = max(shape.num_steps for shape in shapes)
    tokens = seconds = 0.0
    for _ in range(rounds):
        made = [tree(rng, sure, deepest) for _ in range(size)]
        firsts = np.array([max(node.joint for node in nodes[:TOPK]) for nodes in made])
        tier = policy.decide(Batch(size, firsts, range(size))).num_steps
        shape = shapes[tier]
        nodes = np.stack([verified(each, shape) for each in made])
        correct = nodes[..., 2].sum(axis=1).astype(int).tolist()
        took = machine.seconds(shape, size)
        tokens, seconds = tokens + size + sum(correct), seconds + took
        noisy = took * float(np.exp(rng.normal(0.0, 0.05)))
        outcome = Round(tier, size, correct, noisy, firsts, requests=range(size), nodes=nodes)
        policy.observe(outcome)
    return tokens / seconds
