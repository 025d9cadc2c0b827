"""Decides: numpy and the standard library only, deterministic, testable in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.policy.base import Batch, Decision, Round, StepPolicy
from sglang_speckv.policy.ema import EmaPolicy
from sglang_speckv.policy.static import StaticPolicy
from sglang_speckv.policy.throughput import ThroughputPolicy

__all__ = ["Batch", "Decision", "Round", "StepPolicy", "create_policy"]

_Factory = Callable[[SpecKVConfig, int, Mapping[str, Any] | None], StepPolicy]

_FACTORIES: dict[str, _Factory] = {
    "throughput": lambda config, initial, _: ThroughputPolicy(config.candidate_steps, initial),
    "ema": lambda config, initial, slots: EmaPolicy(config.candidate_steps, initial, slots),
    "static": lambda config, *_: StaticPolicy(config.policy, config.candidate_steps),
}


def create_policy(
    spec: str,
    candidate_steps: Sequence[int],
    initial_steps: int,
    *,
    adaptive_config: Mapping[str, Any] | None = None,
) -> StepPolicy:
    """Build the policy named ``spec``: ``throughput``, ``ema`` or ``static:K``.

    ``adaptive_config`` is the parsed ``--speculative-adaptive-config`` JSON; only ``ema`` reads
    it. Raises :class:`~sglang_speckv.config.ConfigError`.
    """
    config = SpecKVConfig(policy=spec, candidate_steps=tuple(candidate_steps))
    return _FACTORIES[spec.partition(":")[0]](config, initial_steps, adaptive_config)
