"""Every policy, for tests that run each of them through the same things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from sglang_speckv.config import Shape, parse_shapes
from sglang_speckv.policy import Prior, create_policy
from sglang_speckv.policy.mlp import MlpWeights


@dataclass(frozen=True)
class Case:
    spec: str
    candidate_steps: tuple[int, ...] = (0, 1, 2, 3, 5, 7)
    initial_steps: int = 3
    watched: bool = False
    shapes: tuple[Shape, ...] | None = None

    def depth_of(self, tier: int) -> int:
        return tier if self.shapes is None else self.shapes[tier].num_steps

    def create(self) -> Any:
        policy: Any = create_policy(
            self.spec,
            self.candidate_steps,
            self.initial_steps,
            prior=Prior(mlp=MLP),
            candidate_shapes=self.shapes,
        )
        if self.watched:
            policy.watch(stops=True, widths=True)
        return policy


_RNG = np.random.default_rng(0)
MLP = MlpWeights(
    _RNG.normal(0, 0.5, (6, 16)), _RNG.normal(0, 0.1, 16), _RNG.normal(0, 0.3, 16), np.array(0.4)
)
"""Some weights for the paper's policy, which does not start without."""


CASES = [
    Case("throughput"),
    Case("throughput", (3,)),
    Case("throughput", (0,), 0),
    Case("throughput", (2, 4, 16), 4),
    Case("throughput", (0, 1, 2, 3, 4, 5, 6, 7), 0),
    Case("throughput", watched=True),
    Case("throughput", (0, 2, 3, 7), watched=True),
    Case("throughput", (0, 1, 2, 3, 4), shapes=parse_shapes("0,1x2,3x8,3x16,5x16")),
    Case("throughput", (0, 1), 1, shapes=parse_shapes("5x8")),
    Case("ema"),
    Case("ema", initial_steps=5),
    Case("throughput_aware"),
    Case("confidence"),
    Case("paper"),
    Case("paper:throughput"),
    Case("static:0"),
    Case("static:5"),
    Case("static:3x8", (0, 1, 2), 2, shapes=parse_shapes("3x8,3x16")),
]

every_policy = pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: (
        f"{case.spec}{'-watched' * case.watched}-of-{','.join(map(str, case.candidate_steps))}"
    ),
)
