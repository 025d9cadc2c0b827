"""What a policy may know before its first round: plain arrays that an artifact carries.

Counts rather than probabilities, so that whatever estimator starts from them can weigh them.
``offline/`` fits and stores these; nothing here reads a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_speckv.config import MAX_NUM_STEPS, ConfigError

MLP_FEATURES = (
    "mean_entropy",
    "mean_confidence",
    "max_entropy",
    "min_confidence",
    "compression",
    "num_steps",
)
"""Inputs of the paper's MLP, in order. Entropies as in ``Round.signals``: divided by the log of
the draft vocabulary. ``compression`` is the target's: 0 none, 1 8-bit, 2 4-bit."""


@dataclass(frozen=True, eq=False)
class AcceptancePrior:
    """Censored acceptance counts by the first draft token's top-1 probability and by position.

    ``edges`` [bins - 1], ascending, in (0, 1): a request with ``first_prob`` p is in row
    ``np.searchsorted(edges, p, side="right")``. ``tried`` and ``accepted`` [bins + 1, depth]:
    requests of that row whose draft ``i + 1`` was judged (all before it were accepted), and those
    of them where it was accepted. The last row holds requests whose ``first_prob`` is unknown.
    """

    edges: np.ndarray
    tried: np.ndarray
    accepted: np.ndarray

    def __post_init__(self) -> None:
        _check(self.edges.ndim == 1, "acceptance edges are not one row of numbers")
        _check(bool(np.all(np.diff(self.edges) > 0)), "acceptance edges do not ascend")
        _check(
            bool(np.all((self.edges > 0) & (self.edges < 1))), "acceptance edges are not in (0, 1)"
        )
        rows = len(self.edges) + 2
        _check(
            self.tried.shape == self.accepted.shape
            and self.tried.ndim == 2
            and self.tried.shape[0] == rows
            and 1 <= self.tried.shape[1] <= MAX_NUM_STEPS,
            f"acceptance counts have shapes {self.tried.shape} and {self.accepted.shape}, "
            f"not both ({rows}, 1..{MAX_NUM_STEPS})",
        )
        _check(
            bool(np.all((self.accepted >= 0) & (self.accepted <= self.tried))),
            "acceptance counts are negative or more than were tried",
        )

    @property
    def depth(self) -> int:
        return int(self.tried.shape[1])

    def row_of(self, first_prob: np.ndarray) -> np.ndarray:
        """Row of each ``first_prob``; NaN goes to the last."""
        rows = np.searchsorted(self.edges, first_prob, side="right")
        return np.where(np.isnan(first_prob), len(self.edges) + 1, rows)


OFF = -1
"""The step count that stands for no draft in rows of times: a server without speculation, or a
round at depth 0 that the draft sleeps through."""


@dataclass(frozen=True, eq=False)
class CostPrior:
    """Measured round times, one row per (batch size, depth): all arrays [rows].

    ``num_steps`` 0 is a round that drafts nothing but keeps the draft's cache warm;
    :data:`OFF` is allowed. ``seconds`` is a robust mean over ``rounds`` rounds at a total
    context of ``context_len`` tokens on average.
    """

    batch_size: np.ndarray
    num_steps: np.ndarray
    seconds: np.ndarray
    rounds: np.ndarray
    context_len: np.ndarray

    def __post_init__(self) -> None:
        arrays = (self.num_steps, self.seconds, self.rounds, self.context_len)
        _check(
            self.batch_size.ndim == 1
            and len(self.batch_size) > 0
            and all(array.shape == self.batch_size.shape for array in arrays),
            "the cost table's columns are empty or differ in length",
        )
        _check(bool(np.all(self.batch_size >= 1)), "the cost table has a batch size below 1")
        _check(
            bool(np.all((self.num_steps >= -1) & (self.num_steps <= MAX_NUM_STEPS))),
            f"the cost table has a step count outside of -1..{MAX_NUM_STEPS}",
        )
        _check(
            bool(np.all(self.seconds >= 1e-9)),
            "the cost table has a time that is not positive, or shorter than a nanosecond",
        )
        _check(
            bool(np.all((self.rounds >= 0) & (self.context_len >= 0))),
            "the cost table has a negative count or context length",
        )
        _check(
            all(bool(np.all(array < 1e12)) for array in (self.batch_size, *arrays)),
            "the cost table has a value of 1e12 or more",
        )

    def at(self, batch_size: int) -> dict[int, float]:
        """Seconds by step count at the nearest batch size of the table, by ratio."""
        distance = np.abs(np.log(self.batch_size / batch_size))
        rows = self.batch_size == self.batch_size[np.argmin(distance)]
        return dict(zip(self.num_steps[rows].tolist(), self.seconds[rows].tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class MlpWeights:
    """The paper's predictor of accepted / proposed: one hidden layer of ReLU units.

    ``clip(relu(x @ hidden + hidden_bias) @ output + output_bias, 0, 1)`` with x [6] as in
    :data:`MLP_FEATURES`, unscaled; ``hidden`` [6, units], ``hidden_bias`` and ``output`` [units],
    ``output_bias`` [].
    """

    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    def __post_init__(self) -> None:
        units = self.hidden.shape[-1] if self.hidden.ndim == 2 else 0
        _check(
            self.hidden.shape == (len(MLP_FEATURES), units)
            and units > 0
            and self.hidden_bias.shape == self.output.shape == (units,)
            and self.output_bias.shape == (),
            f"the MLP's weights have shapes {self.hidden.shape}, {self.hidden_bias.shape}, "
            f"{self.output.shape}, {self.output_bias.shape}, "
            f"not ({len(MLP_FEATURES)}, n), (n,), (n,), ()",
        )
        arrays = (self.hidden, self.hidden_bias, self.output, self.output_bias)
        _check(
            all(bool(np.all(np.abs(array) < 1e6)) for array in arrays),
            "the MLP has a weight of 1e6 or more",
        )


@dataclass(frozen=True, eq=False)
class Prior:
    """What an artifact brings to ``create_policy``; None where it was not trained.

    ``compression``: the target's, in the MLP's code.
    """

    acceptance: AcceptancePrior | None = None
    cost: CostPrior | None = None
    mlp: MlpWeights | None = None
    compression: int = 0


def compression_code(quantization: str | None) -> int:
    """The paper's code for how the target's weights are stored: 0 none, 1 8-bit, 2 4-bit."""
    name = (quantization or "").lower()
    if any(mark in name for mark in ("int4", "w4", "nf4", "fp4", "awq", "gptq", "gguf", "q4")):
        return 2
    return int(any(mark in name for mark in ("int8", "w8", "fp8", "q8")))


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ConfigError(problem)
