"""The arms of a replay by name: policies that serve, fixed depths, and those with hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang_speckv.config import POLICY_NAMES, SWITCHES, ConfigError, static_steps, without_switches
from sglang_speckv.policy import Batch, Decision, Prior, Round, StepPolicy, create_policy
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.static import StaticPolicy
from sglang_speckv.replay.walk import Price, Walk

INITIAL_STEPS = 3
NONE = "none"
"""A server without a draft."""
ORACLE = "oracle"
"""Knows the coming round's outcome at every depth, and takes the depth that is worth most."""
_DEFAULT, *_OTHERS, _ = POLICY_NAMES
POLICIES = (_DEFAULT, *(f"{_DEFAULT}{switches}" for switches in SWITCHES), *_OTHERS)
"""Those that serve, without the fixed depths."""
IN_ROUND = ":in-round"
"""Behind a policy that reads the window's signals: it is shown the coming window."""
FORESEEING = ("confidence", "paper", "paper:throughput")


class Oracle:
    """Of the coming round it knows what every depth would bring, and what a second is worth."""

    name = ORACLE

    def __init__(self, walk: Walk, tiers: Sequence[int], price: Price, rate: float) -> None:
        self.candidate_steps = tuple(tiers)
        self._walk, self._rate = walk, rate
        self._tiers = np.array(tiers)
        self._seconds = np.array([price.seconds[k] for k in tiers])

    def decide(self, batch: Batch) -> Decision:
        tokens = np.minimum(self._walk.correct()[:, None], self._tiers).sum(axis=0)
        worth = tokens - self._rate * self._seconds
        return Decision(int(self._tiers[worth.argmax()]), "oracle")

    def observe(self, outcome: Round) -> None:
        pass

    def snapshot(self) -> dict[str, object]:
        return {}


def names_of(wanted: Sequence[str], tiers: Sequence[int], knows_off: bool, mlp: bool) -> list[str]:
    """The arms to replay: those wanted (all that can be), every fixed depth, and the oracle. The
    paper's policy needs the weights of its MLP.

    Raises:
        ConfigError: an unknown arm, or one that cannot be replayed here.
    """
    every = [*POLICIES, *(f"{name}{IN_ROUND}" for name in FORESEEING)]
    for name in wanted:
        steps = static_steps(name)
        if steps is None and name not in (*every, NONE, ORACLE):
            choices = ", ".join((*every, "static:K", NONE, ORACLE))
            raise ConfigError(f"unknown policy {name!r}; a replay knows {choices}")
        if steps is not None and steps not in tiers:
            raise ConfigError(f"{name!r} is not among the candidate steps {tuple(tiers)}")
        if name.startswith("paper") and not mlp:
            raise ConfigError("the paper's policy needs its weights: --artifact of speckv train")
    if NONE in wanted and not knows_off:
        raise ConfigError("this cost table has no row without speculation, so `none` has no cost")
    policies = [name for name in every if name in (wanted or every)]
    policies = [name for name in policies if mlp or not name.startswith("paper")]
    off = [NONE] if knows_off else []
    return [*policies, *(f"static:{k}" for k in tiers), *off, ORACLE]


def policy_of(
    name: str,
    tiers: Sequence[int],
    prior: Prior,
    profile: Sequence[TimedRound],
    captured: bool = False,
) -> StepPolicy:
    """A policy as it serves, told what a server would tell it before its first round; ``captured``:
    one that drafts in graphs, which cut nothing. Only an ``in-round`` arm is shown the coming
    window."""
    if name == NONE:
        return StaticPolicy("static:0", (0,), 0)
    if (steps := static_steps(name)) is not None:
        return StaticPolicy(name, (steps,), steps)
    base, stops, widths = without_switches(name.removesuffix(IN_ROUND))
    policy: Any = create_policy(base, tiers, INITIAL_STEPS, prior=prior)
    if not name.endswith(IN_ROUND) and hasattr(policy, "foresee"):
        policy.foresee = None
    if base == "throughput":
        policy.watch(stops, widths and not captured, on_device=captured)
    if profile and hasattr(policy, "profiled"):
        policy.profiled(profile)
    found: StepPolicy = policy
    return found
