"""The weights of the paper's predictor, and what its inputs are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_speckv.policy.prior import check

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
        check(
            self.hidden.shape == (len(MLP_FEATURES), units)
            and units > 0
            and self.hidden_bias.shape == self.output.shape == (units,)
            and self.output_bias.shape == (),
            f"the MLP's weights have shapes {self.hidden.shape}, {self.hidden_bias.shape}, "
            f"{self.output.shape}, {self.output_bias.shape}, "
            f"not ({len(MLP_FEATURES)}, n), (n,), (n,), ()",
        )
        arrays = (self.hidden, self.hidden_bias, self.output, self.output_bias)
        check(
            all(bool(np.all(np.abs(array) < 1e6)) for array in arrays),
            "the MLP has a weight of 1e6 or more",
        )


def compression_code(quantization: str | None) -> int:
    """The paper's code for how the target's weights are stored: 0 none, 1 8-bit, 2 4-bit."""
    name = (quantization or "").lower()
    if any(mark in name for mark in ("int4", "w4", "nf4", "fp4", "awq", "gptq", "gguf", "q4")):
        return 2
    return int(any(mark in name for mark in ("int8", "w8", "fp8", "q8")))
