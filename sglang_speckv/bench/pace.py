"""How long blocks take, told from short ones, and the output length that fits the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglang_speckv.bench.arms import Arm
from sglang_speckv.bench.results import BlockResult

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Pace:
    """How long blocks take: up to the first tokens, and for each token of output length."""

    fixed_s: float = 0.0
    per_token_s: float = 0.0

    @classmethod
    def of(cls, result: BlockResult) -> Pace:
        first_s = max((c.first_s or 0.0 for c in result.completions), default=0.0)
        fixed_s = min(first_s, result.seconds)
        return cls(fixed_s, (result.seconds - fixed_s) / WARM_UP_TOKENS)

    @property
    def seconds(self) -> float:
        return self.fixed_s + WARM_UP_TOKENS * self.per_token_s

    def times(self, factor: float) -> Pace:
        return Pace(self.fixed_s * factor, self.per_token_s * factor)

    def __add__(self, other: Pace) -> Pace:
        return Pace(self.fixed_s + other.fixed_s, self.per_token_s + other.per_token_s)


def tokens_per_request(pace: Pace, budget_s: float, rounds: int, bounds: tuple[int, int]) -> int:
    """The output length with which ``rounds`` rounds fit the budget, a multiple of 8."""
    fitting = (budget_s / rounds - pace.fixed_s) / max(pace.per_token_s, 1e-6)
    return max(bounds[0], int(min(bounds[1], fitting)) // 8 * 8)


def projected(
    took: Mapping[tuple[Arm, int], Pace], arms: Sequence[Arm], loads: Sequence[int], largest: int
) -> Pace:
    """The sum over arms and loads. Where an arm was not run at a load: as it did at the largest,
    scaled as the others are."""
    total = Pace()
    for load in loads:
        both = [arm for arm in arms if (arm, load) in took and (arm, largest) in took]
        here = sum((took[arm, load] for arm in both), Pace())
        there = sum((took[arm, largest] for arm in both), Pace())
        scale = here.seconds / there.seconds if there.seconds else 1.0
        for arm in arms:
            known = took.get((arm, load))
            total += known or took.get((arm, largest), Pace()).times(scale)
    return total
