"""Top-1 probability and entropy of a draft distribution, in one reading of its logits.

``reduce_logits`` is the only entry: Triton on CUDA, torch elsewhere; the two are tested against
each other. With d = x - max x and z = sum exp d:

    p_max = 1 / z        H = log z - sum(d exp d) / z   (nats)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SPLITS = 16
"""Programs per row: a row of 128k logits is read by many multiprocessors, not by one."""
BLOCK = 2048


def reduce_logits(logits: Tensor, out: Tensor) -> None:
    """Write the top-1 probability and the entropy in nats of ``logits`` [n, V] to ``out`` [n, 2].

    Masked tokens (-inf) count as impossible. No synchronisation; safe inside a CUDA graph.
    """
    assert out.shape[0] == logits.shape[0]  # a kernel would write behind a smaller buffer
    if logits.shape[0] == 0:  # an idle rank's turn
        return
    if logits.is_cuda:
        _reduce_triton(logits, out)
    else:
        reduce_torch(logits, out)


def reduce_torch(logits: Tensor, out: Tensor) -> None:
    """The reference."""
    d = logits.float()
    d = (d - d.amax(-1, keepdim=True)).clamp_min_(-1e4)  # exp is 0 there, and 0 * inf is NaN
    e = d.exp()
    z = e.sum(-1)
    out[:, 0] = 1.0 / z
    out[:, 1] = z.log() - torch.linalg.vecdot(d, e) / z


def _reduce_triton(logits: Tensor, out: Tensor) -> None:
    partial_sums, combine = _kernels()
    rows, vocab = logits.shape
    partial = torch.empty((rows, SPLITS, 3), dtype=torch.float32, device=logits.device)
    per_split = -(-vocab // SPLITS)
    partial_sums[(rows, SPLITS)](
        logits, partial, vocab, logits.stride(0), per_split, SPLITS=SPLITS, BLOCK=BLOCK
    )
    combine[(rows,)](partial, out, out.stride(0), SPLITS=SPLITS)


_compiled: tuple[Any, Any] | None = None


def _kernels() -> tuple[Any, Any]:
    global _compiled
    if _compiled is None:
        from sglang_speckv.srt import reduction_triton

        _compiled = reduction_triton.partial_sums, reduction_triton.combine
    return _compiled
