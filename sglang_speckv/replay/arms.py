"""The arms of a replay by name: policies that serve, peers restated, and those with hindsight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang_speckv.config import ConfigError, static_steps
from sglang_speckv.offline.round_cost import RoundCost
from sglang_speckv.policy import StepPolicy, create_policy
from sglang_speckv.policy.batch_table import BatchTablePolicy
from sglang_speckv.policy.prior import Prior
from sglang_speckv.replay.play import Played, Table, always, oracle, play
from sglang_speckv.replay.rounds import Rounds
from sglang_speckv.replay.score import Cells

INITIAL_STEPS = 3
PROFILED_SIZES = (1, 4, 16, 64)
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
    prior: Prior = field(default_factory=Prior)
    profiled: bool = True
    """Whether policies are told round times before they start, as a server's start-up profile
    tells them."""
    in_sample: bool = False
    """Whether the prior was learned from these very traces."""

    @property
    def tiers(self) -> tuple[int, ...]:
        return self.table.tiers


Make = Callable[[Setting], StepPolicy]


def _live(spec: str, in_round: bool = False) -> Make:
    """A policy as it serves, told what a server would tell it before its first round; shown each
    coming window only for the view from inside of the round."""

    def make(at: Setting) -> StepPolicy:
        policy: Any = create_policy(spec, at.tiers, INITIAL_STEPS, prior=at.prior)
        if not in_round and hasattr(policy, "foresee"):
            policy.foresee = None
        if at.profiled and hasattr(policy, "profiled"):
            policy.profiled(start_up_profile(at))
        return policy

    return make


def start_up_profile(at: Setting) -> list[tuple[int, int, int, float]]:
    """(batch size, num_steps, context_len, seconds) at the sizes that a server would time."""
    rounds = at.rounds
    sizes = [size for size in PROFILED_SIZES if size < 4 * int(rounds.size.max())]
    context = float(rounds.context_len.sum() / rounds.live.sum())
    times = at.cost.times(np.array(sizes), at.tiers).tolist()
    return [
        (size, steps, round(size * context), seconds)
        for size, row in zip(sizes, times, strict=True)
        for steps, seconds in zip(at.tiers, row, strict=True)
    ]


def _batch_table(at: Setting) -> StepPolicy:
    return BatchTablePolicy(at.tiers, best_by_size(at))


POLICIES: dict[str, Make] = {
    "throughput": _live("throughput"),
    "ema": _live("ema"),
    "throughput_aware": _live("throughput_aware"),
    "batch_table": _batch_table,
    "confidence": _live("confidence"),
    "confidence:in-round": _live("confidence", in_round=True),
    "paper": _live("paper"),
    "paper:in-round": _live("paper", in_round=True),
    "paper:throughput": _live("paper:throughput"),
    "paper:throughput:in-round": _live("paper:throughput", in_round=True),
}
"""Arms that decide round by round. The batch table is the best one found on these very rounds."""
HINDSIGHT = frozenset(
    {"batch_table", "oracle", *(name for name in POLICIES if name.endswith(":in-round"))}
)
"""Arms that know what nobody knows when a round begins."""


def arm_names(
    tiers: Sequence[int], wanted: Sequence[str], knows_off: bool, weights: bool = False
) -> list[str]:
    """The arms to replay: those wanted (all of them), every static one, and the oracle. The
    paper's policy needs ``weights``.

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
    if not weights:
        policies = [name for name in policies if not name.startswith("paper")]
        if any(name.startswith("paper") for name in wanted):
            raise ConfigError("the paper's policy needs its weights: --artifact of speckv train")
    off = [NONE] if knows_off else []
    return [*policies, *(f"static:{k}" for k in tiers), *off, "oracle"]


def run_arm(name: str, at: Setting) -> Played:
    """Replay one arm (all but ``none``)."""
    if name == "oracle":
        return oracle(at.table, at.cells.of)
    steps = static_steps(name)
    if steps is not None:
        return always(at.tiers.index(steps), at.rounds)
    return play(POLICIES[name](at), at.rounds, at.table, at.lag)


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
