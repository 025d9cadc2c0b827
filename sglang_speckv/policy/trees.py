"""How much of a draft tree gets accepted, by its shape.

With topk above 1 the draft makes several children of a node, and the nodes with the greatest joint
probability are verified. A shape is how many steps are drafted and how many tokens are verified.
Of each shape every level is a position of the logistic model of :mod:`policy.acceptance`:

    P(a node of level i is accepted | one of level i - 1 is) = sigmoid(a_i + b_i x + o)

A round tells of its own shape, and of smaller ones as well: those have the nodes of the greatest
joint probability among its own, so it is known how far they would have got. Chains of different
depths, trees with one child per node, have the same positions instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_speckv.config import Shape
from sglang_speckv.policy import kernels
from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.checks import correct_drafts_of, is_share, numbers_of

WIDER = 0.3
"""Log-odds that every doubling of the verified tokens adds at each level before any evidence. In
1,086 rounds of the demo pair's two drafts it was 0 to 0.7, least where all children of a level are
verified anyway."""


class TreeAcceptance(Acceptance):
    """``shapes``: those of the tiers, the first one without drafts."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._shapes = tuple(shapes)
        steps = [shape.num_steps for shape in shapes]
        ends = np.cumsum(steps).tolist()
        self._spans = [slice(end - k, end) for end, k in zip(ends, steps, strict=True)]
        """The positions of each shape."""
        self._within = self._positions_within(steps)
        levels = np.concatenate([np.arange(k) for k in steps])
        sizes = np.repeat(np.log2([shape.num_draft_tokens for shape in shapes]), steps)
        lengths = np.repeat(np.log2(np.maximum(steps, 1)), steps)
        apart = sum(np.abs(values[:, None] - values) for values in (levels, sizes, lengths))
        super().__init__(len(levels), apart=np.asarray(apart))
        self._surprise = 0.0
        self._model.mean[: self.depth] += WIDER * (sizes - 1.0)
        self._believe()

    def _positions_within(self, steps: Sequence[int]) -> np.ndarray:
        """[positions, shapes]: the position of the same level in a shape that is covered, in any
        other the position itself."""
        own = np.arange(sum(steps))
        found = np.repeat(own[:, None], len(steps), axis=1)
        for shape, span in zip(self._shapes, self._spans, strict=True):
            for column, (other, at) in enumerate(zip(self._shapes, self._spans, strict=True)):
                if covers(shape, other):
                    shared = min(shape.num_steps, other.num_steps)
                    found[span, column][:shared] = own[at][:shared]
        return found

    def _survive(self, accepted: np.ndarray) -> np.ndarray:
        """A shape gets at least as far as one that it covers and that is better known than it."""
        alone = [accepted[:, span].cumprod(axis=1) for span in self._spans]
        uncertain = self._model.covariance.diagonal()[: self.depth]
        better = uncertain[self._within] < uncertain[:, None]
        at = np.where(better, self._within, np.arange(self.depth)[:, None])
        survival: np.ndarray = np.concatenate(alone, axis=1)[:, at].max(axis=2)
        return survival

    def _summed(self, drafts: np.ndarray) -> np.ndarray:
        return np.stack([drafts[..., span].sum(axis=-1) for span in self._spans[1:]], axis=-1)

    def learn_tree(
        self,
        tier: int,
        num_correct_drafts: Sequence[int],
        first_probs: np.ndarray | None,
        requests: Sequence[int] | None = None,
        nodes: np.ndarray | None = None,
    ) -> None:
        """One round of the shape ``tier``; ``nodes`` [size, drafts, 3] as in
        :class:`~sglang_speckv.policy.base.Round`. Entries that cannot be true are left out."""
        shape, size = self._shapes[tier], len(num_correct_drafts)
        correct, valid = correct_drafts_of(num_correct_drafts, shape.num_steps)
        if not len(correct) or not shape.num_steps:
            return
        x, own = self._known(valid, first_probs, requests)
        labels = np.zeros((2, len(correct), self.depth))
        span = self._spans[tier]
        labels[..., span] = labels_within(correct, shape)
        served = labels[..., span].copy()
        self.labels += labels[0].sum(axis=0)
        self._learn_own(requests, valid, x, labels)
        smaller = self._smaller(tier, nodes_of(nodes, size, shape.drafts)[valid])
        for other, right in smaller.items():
            labels[..., self._spans[other]] = labels_within(right, self._shapes[other])
        if smaller:  # all tell of the same drafts: together they weigh as much as one
            labels[0] /= 2 * len(smaller)
            labels[0, :, span] = served[0] / 2
        expected = self._model.probability(x, own)
        self._surprise += float((served[0] * (served[1] - expected[:, span])).sum())
        self._model.update(x, expected, labels)
        self._believe()

    @property
    def unexpected_drafts(self) -> float:
        """Of the shapes that were served."""
        return self._surprise

    def shown(self) -> dict[str, list[float]]:
        """Of a usual request, for every shape: how likely the first i levels are all accepted."""
        usual = self.survival(np.array([np.nan]))[0].round(4)
        names, spans = map(str, self._shapes), self._spans
        return {name: usual[span].tolist() for name, span in zip(names, spans, strict=True)}

    def _smaller(self, tier: int, nodes: np.ndarray) -> dict[int, np.ndarray]:
        """How many drafts of each request the smaller shapes would have had right, by tier; where
        the ``nodes`` of this one say it."""
        if np.isnan(nodes).any():
            return {}
        served = self._shapes[tier]
        return {
            other: right_within(nodes, shape)
            for other, shape in enumerate(self._shapes[:tier])
            if shape.num_steps and holds(served, shape)
        }


def holds(larger: Shape, smaller: Shape) -> bool:
    """Whether a tree of the ``larger`` shape has nearly all nodes of the ``smaller`` one. It has
    all of them where both have as many steps; else its deeper nodes may be in the place of some."""
    if smaller.num_steps > larger.num_steps:
        return False
    shallower = smaller.num_steps < larger.num_steps
    return smaller.drafts <= larger.drafts // (2 if shallower else 1)


def covers(one: Shape, other: Shape) -> bool:
    """Whether ``one`` verifies (nearly) every node that the ``other`` has on the levels of both.
    The other one has as many places or fewer, and spends some of them on deeper nodes."""
    shallower = one.num_steps <= other.num_steps and one.drafts >= other.drafts
    return shallower or holds(one, other)


def within(nodes: np.ndarray, shape: Shape) -> np.ndarray:
    """Those of the ``nodes`` [size, drafts, 3] that a tree of that shape verifies. They are of a
    larger one that :func:`holds` it; where it has too few, deeper ones fill up."""
    prob, level, _ = np.moveaxis(nodes, -1, 0)
    reached = np.where(level <= shape.num_steps, prob, -1.0)
    chosen = np.argsort(-reached, axis=1, kind="stable")[:, : shape.drafts]
    kept: np.ndarray = np.take_along_axis(nodes, chosen[..., None], axis=1)
    return kept


def right_within(nodes: np.ndarray, shape: Shape) -> np.ndarray:
    """How many drafts of each request such a tree would have had right, [size]."""
    _, level, accepted = np.moveaxis(within(nodes, shape), -1, 0)
    right: np.ndarray = (accepted * (level <= shape.num_steps)).sum(axis=1).astype(int)
    return right


def labels_within(correct: np.ndarray, shape: Shape) -> np.ndarray:
    """Which levels of that shape were judged and which accepted, [2, size, steps]."""
    made = np.full(len(correct), shape.num_steps)
    labels: np.ndarray = kernels.labels(correct, made, shape.num_steps)
    return labels


def nodes_of(nodes: object, size: int, drafts: int) -> np.ndarray:
    """``nodes`` [size, drafts, 3] as they are; NaN where they have another shape or cannot be."""
    found = numbers_of(nodes)
    fits = found.shape == (size, drafts, 3) and bool(is_share(found[..., ::2]).all())
    return found if fits else np.full((size, drafts, 3), np.nan)
