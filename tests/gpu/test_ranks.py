"""Two ranks: rank 0's signals are shared on the device and copied to the host of each."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import PROMPTS, Serving
from tests.gpu.conftest import REHEARSAL, Kind, References, at_length, on_gpu, on_kinds

pytestmark = [
    *on_gpu,
    on_kinds(Kind("standalone-self", "flashinfer", lag="0", ranks=2)),
    pytest.mark.skipif(
        not REHEARSAL and torch.cuda.device_count() < 2, reason="needs two CUDA devices"
    ),
    at_length,
]


def test_ranks_agree_and_are_lossless(
    gpu_server: tuple[Kind, Serving], references: References
) -> None:
    kind, server = gpu_server
    reference = references[kind.backend]
    for policy in ("throughput", "confidence"):
        server.select(policy)
        assert reference.losses(server.tokens(PROMPTS)) == []
    with server.shuffled_depths([5, 0, 3, 1], every_s=0.005):
        assert reference.losses(server.tokens(PROMPTS)) == []
    shown = server.speckv()
    assert (shown["held"], shown["fallbacks"], shown["failures"]) == (False, 0, {})
    assert "tensor-parallel ranks" in shown["stops"] and not shown["stopped_rounds"]
    assert sum(count > 0 for count in shown["rounds"].values()) == 4
