"""The stand-ins for SGLang's Triton attention, and in ``make rehearse`` its kernels, interpreted,
against plain attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.conftest import WHOLE
from tests.rehearsal import triton_attention
from tests.rehearsal.device import interpret_triton
from tests.rehearsal.kernels import CAUSAL, allowed_by, attend

HEADS, KV_HEADS, WIDTH = 4, 2, 64
LENS = [5, 41, 70]
"""Keys of each request, the newest ones of this pass included."""


@pytest.fixture(scope="module", params=["torch", "interpreted"])
def attention(request: pytest.FixtureRequest) -> Any:
    if request.param == "torch":
        return triton_attention
    if not WHOLE:
        pytest.skip("make rehearse runs it")
    from sglang.kernels.ops.attention import decode_attention, extend_attention

    interpret_triton()
    return SimpleNamespace(
        decode_attention_fwd=decode_attention.decode_attention_fwd,
        extend_attention_fwd=extend_attention.extend_attention_fwd,
    )


def pool(lens: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A cache, and each request's slots in it, in no order."""
    torch.manual_seed(sum(lens))
    k, v = torch.randn(2, sum(lens) + 9, KV_HEADS, WIDTH)
    return k, v, list(torch.randperm(len(k))[: sum(lens)].split(lens))


def indptr(lens: list[int]) -> Tensor:
    return torch.tensor([0, *lens]).cumsum(0).int()


def plain(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    return attend(q, k, v, allowed, WIDTH**-0.5)[0]


def test_decode(attention: Any) -> None:
    k, v, slots = pool(LENS)
    q = torch.randn(len(LENS), HEADS, WIDTH)
    out = torch.empty_like(q)
    most = 4
    partial = torch.empty(len(LENS), HEADS, most, WIDTH)
    splits = torch.tensor([1, 3, most]).int()
    told = indptr(LENS), torch.cat(slots), partial, partial[..., 0].clone(), splits, most
    attention.decode_attention_fwd(q, k, v, out, *told, WIDTH**-0.5, 1.0, 1.0)
    for i, at in enumerate(slots):
        every = torch.ones(1, len(at), dtype=torch.bool)
        torch.testing.assert_close(out[i : i + 1], plain(q[i : i + 1], k[at], v[at], every))


def test_a_kernel_reads_past_the_end_of_a_tensor() -> None:
    """In a replay the tensors of slots are as long as those of the captured batch."""
    k, v, slots = pool(LENS)
    q = torch.randn(len(LENS), HEADS, WIDTH)
    outs = torch.empty(2, *q.shape)
    every = torch.cat(slots)
    for out, indices in zip(outs, (every, every[:1]), strict=True):
        told = indptr(LENS), indices, q, q, indptr(LENS), 1
        triton_attention.decode_attention_fwd(q, k, v, out, *told, WIDTH**-0.5, 1.0, 1.0)
    torch.testing.assert_close(outs[0], outs[1])


@pytest.mark.parametrize("rows", [[5, 1, 40], [4, 4, 4]], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "tree"])
def test_extend(attention: Any, rows: list[int], masked: bool) -> None:
    """A prefill behind a prefix, and verification with the mask of a tree, row after row."""
    k, v, slots = pool(LENS)
    starts = indptr(rows)
    prefixes = [at[: len(at) - n] for at, n in zip(slots, rows, strict=True)]
    new = torch.cat([at[len(at) - n :] for at, n in zip(slots, rows, strict=True)])
    masks = [allowed_by(CAUSAL, n, m, -1, None) for n, m in zip(rows, LENS, strict=True)]
    if masked:
        for mask, n in zip(masks, rows, strict=True):
            mask[:, -n:] &= (torch.rand(n, n) < 0.6) | torch.eye(n, dtype=torch.bool)
    mask = torch.cat([each.flatten() for each in masks]) if masked else None
    mask_starts = indptr([each.numel() for each in masks]) if masked else None
    q = torch.randn(sum(rows), HEADS, WIDTH)
    out = torch.empty_like(q)
    told = starts, indptr([len(each) for each in prefixes]), torch.cat(prefixes)
    attention.extend_attention_fwd(
        *(q, k[new], v[new], out, k, v, *told, mask, True, mask_starts),
        *(max(rows), 1.0, 1.0, WIDTH**-0.5),
    )
    for i, (at, allowed) in enumerate(zip(slots, masks, strict=True)):
        own = slice(int(starts[i]), int(starts[i + 1]))
        torch.testing.assert_close(out[own], plain(q[own], k[at], v[at], allowed))
