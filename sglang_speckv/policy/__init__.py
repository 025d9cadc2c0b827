"""Decides: numpy, numba and the standard library only, deterministic, testable in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sglang_speckv.config import Shape, SpecKVConfig
from sglang_speckv.policy.base import Batch, Decision, Round, StepPolicy
from sglang_speckv.policy.confidence import ConfidencePolicy
from sglang_speckv.policy.ema import EmaPolicy
from sglang_speckv.policy.mlp import MlpWeights
from sglang_speckv.policy.paper import PaperPolicy
from sglang_speckv.policy.prior import AcceptancePrior, CostPrior
from sglang_speckv.policy.static import StaticPolicy
from sglang_speckv.policy.throughput import ThroughputPolicy
from sglang_speckv.policy.throughput_aware import ThroughputAwarePolicy

__all__ = ["Batch", "Decision", "Prior", "Round", "StepPolicy", "create_policy"]


@dataclass(frozen=True, eq=False)
class Prior:
    """What an artifact brings to ``create_policy``; None where it was not trained.

    ``compression``: the target's, in the MLP's code.
    """

    acceptance: AcceptancePrior | None = None
    cost: CostPrior | None = None
    mlp: MlpWeights | None = None
    compression: int = 0


_Factory = Callable[[SpecKVConfig, int, Mapping[str, Any] | None, Prior], StepPolicy]

_FACTORIES: dict[str, _Factory] = {
    "throughput": lambda config, initial, _, prior: ThroughputPolicy(
        config.tiers, initial, prior.acceptance, prior.cost, config.candidate_shapes
    ),
    "ema": lambda config, initial, slots, _: EmaPolicy(config.candidate_steps, initial, slots),
    "throughput_aware": lambda config, initial, *_: ThroughputAwarePolicy(
        config.candidate_steps, initial
    ),
    "paper": lambda config, initial, _, prior: PaperPolicy(
        config.candidate_steps,
        initial,
        prior.mlp,
        config.policy.partition(":")[2] or "tokens",
        prior.compression,
        prior.cost,
    ),
    "confidence": lambda config, initial, *_: ConfidencePolicy(config.candidate_steps, initial),
    "static": lambda config, *_: StaticPolicy(
        config.policy, config.tiers, cast(int, config.pinned_tier)
    ),
}


def create_policy(
    spec: str,
    candidate_steps: Sequence[int],
    initial_steps: int,
    *,
    adaptive_config: Mapping[str, Any] | None = None,
    prior: Prior | None = None,
    candidate_shapes: Sequence[Shape] | None = None,
) -> StepPolicy:
    """Build the policy named ``spec``: one of ``config.POLICY_NAMES``. With ``candidate_shapes`` it
    chooses among these, and a tier is the place of one.

    ``adaptive_config`` is the parsed ``--speculative-adaptive-config`` JSON; only ``ema`` reads
    it. ``prior`` is what an artifact knows of the pair.

    Raises :class:`~sglang_speckv.config.ConfigError`.
    """
    shapes = None if candidate_shapes is None else tuple(candidate_shapes)
    steps = tuple(candidate_steps)
    config = SpecKVConfig(policy=spec, candidate_steps=steps, candidate_shapes=shapes)
    return _FACTORIES[spec.partition(":")[0]](
        config, initial_steps, adaptive_config, prior or Prior()
    )
