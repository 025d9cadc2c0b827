"""SpecKV as published (arXiv 2605.02888): a small network predicts what share of the drafts will be
accepted, and the depth with the most predicted tokens per step is taken.

    k* = argmax_k  clip(f(window, compression, k), 0, 1) * k + 1

f has 16 hidden ReLU units over the window's mean and maximum entropy, mean and minimum confidence,
the target's compression code and the depth asked about. Nothing in it knows what a step costs;
``paper:throughput`` divides by the round time, for what the same predictor is worth without that
fault.

The published features are those of the very window whose depth is chosen, which exist only after
it was drafted. Serving, the policy sees the last round's window in their place; a replay can show
it the coming one (:meth:`PaperPolicy.foresee`). Entropies here are divided by the log of the draft
vocabulary, so the weights are trained on our own records (`speckv train`); the author's take bits
(entropy * log2(vocabulary)).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sglang_speckv.config import ConfigError
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.checks import is_count, is_round, is_share, windows_of
from sglang_speckv.policy.cost import CostModel, TimedRound
from sglang_speckv.policy.mlp import MlpWeights
from sglang_speckv.policy.prior import CostPrior

OBJECTIVES = ("tokens", "throughput")


class PaperPolicy:
    """Reasons: ``launch`` (no window seen yet) and ``predicted``.

    A batch shares one depth, so predictions are summed over the requests of the last window. A
    round of depth 0 shows no window; the one before it stays. ``compression``: 0 none, 1 8-bit,
    2 4-bit. Raises ConfigError without ``weights``.
    """

    def __init__(
        self,
        candidate_steps: Sequence[int],
        initial_steps: int,
        weights: MlpWeights | None,
        objective: str = "tokens",
        compression: int = 0,
        cost: CostPrior | None = None,
    ):
        if weights is None:
            raise ConfigError(
                "the paper policy needs trained weights; give an artifact that `speckv train` "
                "made from traces with draft signals"
            )
        if objective not in OBJECTIVES:
            raise ConfigError(
                f"unknown objective {objective!r} of the paper policy; choose from "
                f"{', '.join(OBJECTIVES)}"
            )
        self.name = "paper" if objective == "tokens" else f"paper:{objective}"
        self.candidate_steps = tuple(candidate_steps)
        self._tiers = np.array(self.candidate_steps, dtype=float)
        self._launch = min(self.candidate_steps, key=lambda steps: abs(steps - initial_steps))
        self._weights = weights
        self._of_tiers = self._tiers[:, None, None] * weights.hidden[-1]
        self._compression = float(compression)
        self._cost = CostModel(self.candidate_steps[-1], cost) if objective != "tokens" else None
        self._lengths: np.ndarray | None = None
        self._foresees = False
        self._windows = 0

    def profiled(self, rows: Iterable[TimedRound]) -> None:
        """Round times from a start-up profile; only the throughput objective reads them."""
        if self._cost is not None:
            self._cost.profiled(rows)

    def foresee(self, signals: np.ndarray) -> None:
        """The coming round's window, [live, depth, 2]: what the published features are of."""
        self._foresees = True
        self._look_at(signals)

    def decide(self, batch: Batch) -> Decision:
        if self._lengths is None:
            return Decision(self._launch, "launch")
        tier = int(self._worth(batch.size).argmax())
        return Decision(self.candidate_steps[tier], "predicted", float(self._lengths[tier]))

    def _worth(self, size: int) -> np.ndarray:
        assert self._lengths is not None
        if self._cost is None or not self._cost.rounds or not is_count(size):
            return self._lengths
        times = self._cost.times(size)
        return self._lengths / [times[steps] for steps in self.candidate_steps]

    def observe(self, outcome: Round) -> None:
        if outcome.signals is not None and not self._foresees:
            self._look_at(outcome.signals)
        if self._cost is not None and is_round(outcome, self.candidate_steps):
            self._cost.update(
                outcome.batch_size, outcome.num_steps, outcome.seconds, outcome.asleep
            )

    def _look_at(self, signals: np.ndarray) -> None:
        """``signals`` [live, depth, 2]; requests with anything unknown, or outside of 0..1, are
        left out."""
        windows = windows_of(signals)
        windows = windows[is_share(windows).all(axis=(1, 2))]
        if len(windows):
            self._windows += 1
            self._lengths = self._expected_lengths(windows)

    def _expected_lengths(self, windows: np.ndarray) -> np.ndarray:
        """[tiers]: mean predicted tokens per request, bonus included."""
        requests, depth, _ = windows.shape
        seen = np.empty((requests, 5))
        seen[:, 1::-1] = np.add.reduce(windows, axis=1) / depth  # mean entropy, mean confidence
        np.maximum.reduce(windows[:, :, 1], axis=1, out=seen[:, 2])
        np.minimum.reduce(windows[:, :, 0], axis=1, out=seen[:, 3])
        seen[:, 4] = self._compression
        weights = self._weights
        fixed = seen @ weights.hidden[:-1] + weights.hidden_bias  # [requests, units]
        hidden = np.maximum(fixed + self._of_tiers, 0.0)  # [tiers, requests, units]
        rate = hidden @ weights.output + weights.output_bias
        share = np.add.reduce(np.minimum(np.maximum(rate, 0.0), 1.0), axis=1) / requests
        return 1.0 + self._tiers * share

    def snapshot(self) -> dict[str, object]:
        lengths = None if self._lengths is None else self._lengths.round(3).tolist()
        return {"expected_accept_lengths": lengths, "windows": self._windows}
