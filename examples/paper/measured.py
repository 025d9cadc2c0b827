"""What the same runs took: tokens per second by gamma, and by the paper's choices.

Matched replay: of the recorded steps those count whose gamma is the one that the policy would have
chosen there. Their tokens are as recorded, their time is the mean step time of that gamma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .records import GAMMAS, Records


@dataclass(frozen=True)
class Measured:
    """One compression. Times in ms; ``fixed_ms + draft_ms * gamma`` is fitted to ``step_ms``."""

    tok_per_s: dict[int, float]
    step_ms: dict[int, float]
    fixed_ms: float
    draft_ms: float
    policy_tok_per_s: float

    @property
    def best(self) -> int:
        return max(self.tok_per_s, key=self.tok_per_s.__getitem__)

    @property
    def cost_ratio(self) -> float:
        """A draft step over all that a step costs besides."""
        return self.draft_ms / self.fixed_ms

    def versus(self, gamma: int) -> float:
        """The paper's policy against a fixed gamma, in per cent."""
        return 100.0 * (self.policy_tok_per_s / self.tok_per_s[gamma] - 1.0)


def measure(records: Records, compression: str, choice: np.ndarray) -> Measured:
    """``choice`` [steps]: the policy's gamma in every recorded step."""
    runs = {
        gamma: (records.run_compression == compression) & (records.run_gamma == gamma)
        for gamma in GAMMAS
    }
    here = records.compression == compression
    step_ms = {
        gamma: 1e3 * records.run_seconds[of].sum() / (here & (records.gamma == gamma)).sum()
        for gamma, of in runs.items()
    }
    draft, fixed = np.polyfit(list(step_ms), list(step_ms.values()), 1)
    matched = here & (choice == records.gamma)
    seconds = sum(step_ms[gamma] for gamma in records.gamma[matched].tolist()) / 1e3
    return Measured(
        tok_per_s={
            gamma: float(records.run_tokens[of].sum() / records.run_seconds[of].sum())
            for gamma, of in runs.items()
        },
        step_ms={gamma: float(ms) for gamma, ms in step_ms.items()},
        fixed_ms=float(fixed),
        draft_ms=float(draft),
        policy_tok_per_s=float(records.tokens[matched].sum() / seconds),
    )
