"""Packed products equal plain ones, for every number of rows and after new weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sglang_speckv.srt.cpu.kernels.linear import applies, forget_packed, packed_linear


@pytest.mark.parametrize("rows", [(1,), (2,), (7,), (65,), (3, 5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_plain_product(rows: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(48, 80, bias=bias).requires_grad_(False)
    x = torch.randn(*rows, 48)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    torch.testing.assert_close(packed_linear(layer, x, layer.bias), expected.float())


@pytest.mark.parametrize("inference", [False, True])
def test_new_weights_are_packed_anew(inference: bool) -> None:
    with torch.inference_mode(inference):  # whose tensors have no version
        layer = nn.Linear(16, 16, bias=False).requires_grad_(False)
        x = torch.randn(2, 16)
        packed_linear(layer, x, None)
        layer.weight.data.copy_(torch.eye(16))  # as loaders do; it moves no version
        forget_packed()
        torch.testing.assert_close(packed_linear(layer, x, None), x)


def test_other_layers_are_left_alone() -> None:
    x = torch.randn(2, 16)
    assert applies(nn.Linear(16, 4), x)
    assert not applies(nn.Linear(16, 4, dtype=torch.bfloat16), x)
    assert not applies(nn.Linear(16, 4), x.bfloat16())
    assert not applies(nn.Identity(), x)
