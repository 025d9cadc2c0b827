"""What further depths take, counted as SGLang allocates it."""

import pytest

from sglang_speckv.srt.memory import depth_mib

DEFAULT_STEPS = (0, 1, 2, 3, 5, 7)
SGLANG_SIZES = [*range(1, 9), *range(10, 33, 2), 40, 44, 48]
"""What SGLang captures for up to 48 requests."""


def gib(backend: str, sizes: list[int], context_len: int, steps: tuple[int, ...]) -> float:
    return sum(depth_mib(backend, k, sizes, context_len, 384) for k in steps) / 1024


def test_flashinfer() -> None:
    assert gib("flashinfer", SGLANG_SIZES, 8192, DEFAULT_STEPS) == pytest.approx(8.7, abs=0.1)
    assert gib("flashinfer", SGLANG_SIZES, 131072, DEFAULT_STEPS) == pytest.approx(10.4, abs=0.1)
    assert gib("flashinfer", SGLANG_SIZES, 131072, (3,)) == pytest.approx(1.7, abs=0.1)


def test_fewer_sizes_take_less() -> None:
    sparse = [1, 2, 4, 8, 16, 24, 32, 48]
    assert gib("flashinfer", sparse, 8192, DEFAULT_STEPS) < 5.1
    assert gib("flashinfer", [], 8192, (3,)) * 1024 == 384 + 10 * (2 * 4 + 2 * 2)


def test_other_backends() -> None:
    """Triton has no wrappers; FA3 keeps page tables."""
    assert 0 < gib("triton", SGLANG_SIZES, 8192, DEFAULT_STEPS) < 0.5
    assert gib("triton", [], 8192, (3,)) == gib("fa3", SGLANG_SIZES, 8192, (3,)) == 0
