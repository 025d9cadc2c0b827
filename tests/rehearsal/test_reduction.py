"""The Triton kernels of the tap, interpreted, against the reference in torch."""

from __future__ import annotations

import pytest
import torch

from sglang_speckv.srt import reduction, reduction_triton
from tests.rehearsal.device import Interpreted, interpret_triton

# What stands for a masked token is minus infinity in float16, which the kernel takes care of.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast")
SHAPES = [(1, 2), (2, 33), (3, 1000), (2, 33000)]


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> None:
    interpret_triton()
    assert isinstance(reduction_triton.combine, Interpreted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_triton_equals_torch(shape: tuple[int, int], dtype: torch.dtype, masked: bool) -> None:
    torch.manual_seed(shape[1])
    logits = (torch.randn(shape) * 8).to(dtype)
    if masked:
        logits[:, 1::3] = -torch.inf
    found, expected = torch.full((2, shape[0], 2), torch.nan)
    reduction._reduce_triton(logits, found)
    reduction.reduce_torch(logits, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_and_output_with_strides() -> None:
    logits = torch.randn(4, 3, 500)[:, 1]
    out, expected = torch.zeros(4, 3, 2), torch.zeros(4, 2)
    reduction._reduce_triton(logits, out[:, 1])
    reduction.reduce_torch(logits, expected)
    torch.testing.assert_close(out[:, 1], expected, rtol=1e-4, atol=1e-5)
    assert not out[:, 0].any() and not out[:, 2].any()
