"""The arms of a replay by name: policies that serve, peers restated, and those with hindsight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_speckv.bench.replay.play import Played, Table, always, oracle, play
from sglang_speckv.bench.replay.rounds import Rounds
from sglang_speckv.bench.replay.score import Cells
from sglang_speckv.config import ConfigError, static_steps
from sglang_speckv.offline.round_cost import RoundCost, table_of
from sglang_speckv.policy import StepPolicy, create_policy
from sglang_speckv.policy.batch_table import BatchTablePolicy
from sglang_speckv.policy.confidence import THRESHOLD, ConfidencePolicy
from sglang_speckv.policy.throughput_aware import ThroughputAwarePolicy

INITIAL_STEPS = 3
NONE = "none"
"""A server without speculation: not a policy, scored by its own row of the cost table."""


@dataclass(frozen=True)
class Setting:
    """What the arms of one replay are built from."""

    rounds: Rounds
    table: Table
    cells: Cells
    cost: RoundCost
    lag: int = 0

    @property
    def tiers(self) -> tuple[int, ...]:
        return self.table.tiers


Make = Callable[[Setting], StepPolicy]


def _live(spec: str) -> Make:
    return lambda at: create_policy(spec, at.tiers, INITIAL_STEPS)


def _throughput_aware(at: Setting) -> StepPolicy:
    sizes = np.unique(at.rounds.size).tolist()
    return ThroughputAwarePolicy(at.tiers, INITIAL_STEPS, table_of(at.cost, sizes, at.tiers))


def _batch_table(at: Setting) -> StepPolicy:
    return BatchTablePolicy(at.tiers, best_by_size(at))


def _confidence(threshold: float, in_round: bool) -> Make:
    def make(at: Setting) -> StepPolicy:
        policy = ConfidencePolicy(at.tiers, INITIAL_STEPS, threshold)
        if not in_round:
            policy.foresee = None  # type: ignore[method-assign, assignment]
        return policy

    return make


POLICIES: dict[str, tuple[Make, str]] = {
    "throughput": (_live("throughput"), "the default policy"),
    "ema": (_live("ema"), "SGLang's own rule"),
    "throughput_aware": (_throughput_aware, "SGLang's proposed rule, given the true cost table"),
    "batch_table": (_batch_table, "best depth per batch size, found on these very rounds"),
    "confidence": (_confidence(THRESHOLD, in_round=False), "last windows and the coming token"),
    "confidence:in-round": (_confidence(THRESHOLD, in_round=True), "sees the coming window"),
}
HINDSIGHT = frozenset({"batch_table", "confidence:in-round", "oracle"})
"""Arms that know what nobody knows when a round begins."""


def arm_names(tiers: Sequence[int], wanted: Sequence[str], knows_off: bool) -> list[str]:
    """The arms to replay: those wanted (all of them), every static one, and the oracle.

    Raises:
        ConfigError: an unknown arm, or ``static:K`` of a depth that is not a candidate.
    """
    for name in wanted:
        steps = static_steps(name)
        if steps is None and name not in (*POLICIES, NONE, "oracle"):
            choices = ", ".join((*POLICIES, "static:K", NONE, "oracle"))
            raise ConfigError(f"unknown policy {name!r}; a replay knows {choices}")
        if steps is not None and steps not in tiers:
            raise ConfigError(f"{name!r} is not among the candidate steps {tuple(tiers)}")
    if NONE in wanted and not knows_off:
        raise ConfigError("this cost table has no row without speculation, so `none` has no cost")
    policies = [name for name in (wanted or POLICIES) if name in POLICIES]
    off = [NONE] if knows_off else []
    return [*policies, *(f"static:{k}" for k in tiers), *off, "oracle"]


def run_arm(name: str, at: Setting) -> Played:
    """Replay one arm (all but ``none``)."""
    if name == "oracle":
        return oracle(at.table, at.cells.of)
    steps = static_steps(name)
    if steps is not None:
        return always(at.tiers.index(steps), at.rounds)
    return play(POLICIES[name][0](at), at.rounds, at.table, at.lag)


def best_by_size(at: Setting) -> dict[int, int]:
    """Batch size -> the step count with the most tokens per second over the rounds on record."""
    sizes, which = np.unique(at.rounds.size, return_inverse=True)
    which = which.ravel()
    tokens, seconds = (
        np.stack(
            [
                np.bincount(which, np.where(at.table.known, of, 0.0)[:, k])
                for k in range(len(at.tiers))
            ]
        )
        for of in (at.table.tokens, at.table.seconds)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.nan_to_num(tokens / seconds)
    return {size: at.tiers[k] for size, k in zip(sizes.tolist(), rates.argmax(axis=0), strict=True)}
