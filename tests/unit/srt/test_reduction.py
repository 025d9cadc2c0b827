"""The reduction against scipy, and the CUDA kernels (by Triton's interpreter) against it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import special, stats

from sglang_speckv.srt.reduction import reduce_logits, reduce_torch


def reduced(logits: torch.Tensor) -> torch.Tensor:
    out = torch.full((logits.shape[0], 2), float("nan"))
    reduce_logits(logits, out)
    return out


@pytest.mark.parametrize("shape", [(1, 2), (3, 8192), (16, 49152), (5, 1000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_against_scipy(shape: tuple[int, int], dtype: torch.dtype, scale: float) -> None:
    logits = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale).to(dtype)
    p = special.softmax(logits.double().numpy(), axis=-1)
    expected = np.stack([p.max(-1), stats.entropy(p, axis=-1)], -1)
    np.testing.assert_allclose(reduced(logits).numpy(), expected, rtol=2e-4, atol=2e-5)


def test_masked_tokens_are_impossible() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf], [-torch.inf, 7.0, -torch.inf, 6.0]])
    odds = np.exp(-1.0)
    expected = [[0.5, np.log(2)], [1 / (1 + odds), stats.entropy([1, odds])]]
    np.testing.assert_allclose(reduced(logits).numpy(), expected, rtol=1e-5)


def test_certainty_and_ignorance() -> None:
    sure, lost = torch.zeros(1, 100), torch.zeros(1, 100)
    sure[0, 3] = 1e4
    assert reduced(sure).tolist() == [[1.0, 0.0]]
    np.testing.assert_allclose(reduced(lost).numpy(), [[0.01, np.log(100)]], rtol=1e-5)


INTERPRETED = """
import torch
from sglang_speckv.srt import reduction
generator = torch.Generator().manual_seed(3)
for rows, vocab, scale in ((1, 33, 1.0), (3, 5000, 4.0), (2, 35000, 20.0), (1, 16, 1.0)):
    logits = torch.randn(rows, vocab, generator=generator) * scale
    logits[:, ::7] = -torch.inf
    got, expected = torch.empty(rows, 4)[:, 1:3], torch.empty(rows, 2)
    reduction._reduce_triton(logits, got)
    reduction.reduce_torch(logits, expected)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_the_cuda_kernels_equal_the_reference() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_strided_output() -> None:
    buffer = torch.zeros(4, 3, 2)
    logits = torch.randn(4, 50)
    reduce_torch(logits, buffer[:, 1])
    np.testing.assert_allclose(buffer[:, 1].numpy(), reduced(logits).numpy())
    assert not buffer[:, 0].any() and not buffer[:, 2].any()


def test_no_rows() -> None:
    assert reduced(torch.zeros(0, 50)).shape == (0, 2)
