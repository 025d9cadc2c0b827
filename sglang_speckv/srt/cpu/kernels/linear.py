"""float32 products with weights laid out once for oneDNN.

torch's default here is MKL, which takes its slowest path on CPUs that are not Intel's: four rows
cost nearly twice one row, so that verifying drafts looks twice as dear as it is. Packed weights
cost the same for 1 to 8 rows. They are a copy: float32 linear layers take twice their memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PACKED_FOR_ROWS = 16  # oneDNN's blocking; measured best for 2 to 64 rows and no worse for one

_loads = 0  # how often weights were loaded anew


def applies(layer: Any, x: Tensor) -> bool:
    """Plain float32 weights and inputs on the CPU."""
    weight = getattr(layer, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 2
        and weight.dtype == x.dtype == torch.float32
        and weight.device.type == x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


def packed_linear(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(x, layer.weight, bias)`` for [..., in] inputs, over the layer's packed weights."""
    return torch.ops.mkldnn._linear_pointwise(x, _packed(layer), bias, "none", [], "")


def forget_packed() -> None:
    """Weights are about to change: pack them anew at their next use.

    They cannot be asked whether they changed: loaders copy into ``weight.data``, which leaves the
    tensor's version as it was.
    """
    global _loads
    _loads += 1


def _packed(layer: Any) -> Tensor:
    """Packed at first use, and again after :func:`forget_packed`."""
    weight = layer.weight
    state = (weight.data_ptr(), _loads)
    if getattr(layer, "_speckv_packed_state", None) != state:
        layer._speckv_packed = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach(), PACKED_FOR_ROWS
        )
        layer._speckv_packed_state = state
    return layer._speckv_packed
