"""FlashInfer's wrappers over the kernels that stand in for its own, against plain attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.rehearsal.kernels import StalePlan

pytestmark = pytest.mark.usefixtures("flashinfer_on_cpu")

SHAPES = [(4, 4, 64), (8, 2, 32), (6, 1, 64)]
"""Query heads, key heads, their width."""


@dataclass
class Requests:
    """``rows`` new tokens of every request, of ``lens`` in all, in slots taken at random."""

    heads: int
    kv_heads: int
    width: int
    rows: list[int]
    lens: list[int]

    def __post_init__(self) -> None:
        torch.manual_seed(sum(self.lens))
        total = sum(self.lens)
        self.q = torch.randn(sum(self.rows), self.heads, self.width)
        self.k, self.v = torch.randn(2, total + 7, 1, self.kv_heads, self.width)
        self.slots = torch.randperm(total + 7)[:total].int()
        self.qo_indptr, self.kv_indptr = (_indptr(each) for each in (self.rows, self.lens))
        self.last = torch.ones(len(self.lens), dtype=torch.int32)

    def attention(self, masks: list[Tensor]) -> Tensor:
        """Plain, request by request; ``masks`` [rows, lens] each."""
        outs = []
        for i, mask in enumerate(masks):
            q = self.q[self.qo_indptr[i] : self.qo_indptr[i + 1]]
            at = self.slots[self.kv_indptr[i] : self.kv_indptr[i + 1]].long()
            k, v = (each[at, 0].transpose(0, 1) for each in (self.k, self.v))
            out = scaled_dot_product_attention(q.transpose(0, 1), k, v, mask, enable_gqa=True)
            outs.append(out.transpose(0, 1))
        return torch.cat(outs)

    def causal(self) -> list[Tensor]:
        return [
            torch.ones(n, m).tril(m - n).bool() for n, m in zip(self.rows, self.lens, strict=True)
        ]


def _indptr(lens: list[int]) -> Tensor:
    return torch.tensor([0, *lens]).cumsum(0).int()


def prefill(**buffers: Any) -> Any:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    workspace = torch.empty(1 << 20, dtype=torch.uint8)
    return BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2", **buffers)


def plan(wrapper: Any, asked: Requests, *rows: Tensor, **more: Any) -> None:
    """``rows``: where each request's begin; a decode, of one row each, takes none."""
    wrapper.plan(
        *rows,
        asked.kv_indptr,
        asked.slots,
        asked.last,
        asked.heads,
        asked.kv_heads,
        asked.width,
        1,
        q_data_type=torch.float32,
        kv_data_type=torch.float32,
        **more,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_paged_prefill(shape: tuple[int, int, int]) -> None:
    asked = Requests(*shape, rows=[3, 1, 5], lens=[9, 1, 20])
    wrapper = prefill()
    plan(wrapper, asked, asked.qo_indptr, causal=True)
    found = wrapper.run(asked.q, (asked.k, asked.v))
    assert torch.allclose(found, asked.attention(asked.causal()), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_of_a_tree(shape: tuple[int, int, int]) -> None:
    """As verification plans: each request's mask row after row, packed into bits."""
    asked = Requests(*shape, rows=[4, 4, 4], lens=[9, 5, 13])
    torch.manual_seed(1)
    masks = [torch.rand_like(mask.float()) < 0.6 for mask in asked.causal()]
    for mask in masks:
        mask[:, 0] = True
    wrapper = prefill()
    plan(wrapper, asked, asked.qo_indptr, custom_mask=torch.cat([mask.flatten() for mask in masks]))
    found = wrapper.run(asked.q, (asked.k, asked.v))
    assert torch.allclose(found, asked.attention(masks), atol=1e-5)


@pytest.mark.parametrize("tensor_cores", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_decode(shape: tuple[int, int, int], tensor_cores: bool) -> None:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    asked = Requests(*shape, rows=[1, 1, 1], lens=[9, 1, 20])
    workspace = torch.empty(1 << 20, dtype=torch.uint8)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=tensor_cores)
    plan(wrapper, asked)
    found = wrapper.run(asked.q, (asked.k, asked.v))
    assert torch.allclose(found, asked.attention(asked.causal()), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_new_tokens_merged_with_the_prefix(shape: tuple[int, int, int]) -> None:
    """As a prefill after a hit in the prefix cache: ragged over the new, paged over the old."""
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper
    from flashinfer.cascade import merge_state

    asked = Requests(*shape, rows=[3, 5], lens=[9, 20])
    old = Requests(*shape, rows=[3, 5], lens=[6, 15])
    starts = zip(asked.kv_indptr.tolist(), asked.lens, asked.rows, strict=False)
    split = [(at, at + m - n, at + m) for at, m, n in starts]
    old.q, old.k, old.v = asked.q, asked.k, asked.v
    old.slots = torch.cat([asked.slots[at:to] for at, to, _ in split])
    new = torch.cat([asked.slots[to:end] for _, to, end in split]).long()

    workspace = torch.empty(1 << 20, dtype=torch.uint8)
    ragged = BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend="fa2")
    ragged.plan(
        asked.qo_indptr,
        asked.qo_indptr,
        asked.heads,
        asked.kv_heads,
        asked.width,
        causal=True,
        q_data_type=torch.float32,
        kv_data_type=torch.float32,
    )
    paged = prefill()
    plan(paged, old, old.qo_indptr, causal=False)
    first = ragged.run_return_lse(asked.q, asked.k[new, 0], asked.v[new, 0])
    second = paged.run_return_lse(asked.q, (asked.k, asked.v))
    found, _ = merge_state(*first, *second)
    assert torch.allclose(found, asked.attention(asked.causal()), atol=1e-5)


def test_a_request_without_keys_says_nothing() -> None:
    """Its row pads a graph; merged with another, it changes nothing."""
    from flashinfer.cascade import merge_state

    asked = Requests(4, 4, 64, rows=[1, 1], lens=[5, 0])
    wrapper = prefill()
    plan(wrapper, asked, asked.qo_indptr, causal=False)
    out, total = wrapper.run_return_lse(asked.q, (asked.k, asked.v))
    assert not out[1].any() and total[1].tolist() == [-math.inf] * 4
    merged, _ = merge_state(out, total, out.flip(0), total.flip(0))
    assert torch.allclose(merged[0], out[0]) and torch.allclose(merged[1], out[0])


def test_a_plan_for_other_lengths_is_found() -> None:
    """A captured kernel reads lengths that are on the device, and its plan was made on the host."""
    first = Requests(4, 4, 64, rows=[2, 2], lens=[9, 5])
    size = len(first.lens)
    buffers = {
        "qo_indptr_buf": torch.zeros(size + 1, dtype=torch.int32),
        "paged_kv_indptr_buf": torch.zeros(size + 1, dtype=torch.int32),
        "paged_kv_indices_buf": torch.zeros(100, dtype=torch.int32),
        "paged_kv_last_page_len_buf": torch.ones(size, dtype=torch.int32),
    }
    wrapper = prefill(use_cuda_graph=True, **buffers)
    plan(wrapper, first, first.qo_indptr, causal=True)
    wrapper.run(first.q, (first.k, first.v))
    buffers["paged_kv_indptr_buf"] += torch.tensor([0, 1, 2], dtype=torch.int32)
    with pytest.raises(StalePlan, match=r"planned for \[9, 5\] keys .* has \[10, 6\]"):
        wrapper.run(first.q, (first.k, first.v))
