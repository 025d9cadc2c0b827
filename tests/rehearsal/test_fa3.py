"""The stand-in for FlashAttention 3 against plain attention."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.rehearsal.fa3 import flash_attn_with_kvcache


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize(("rows", "lens"), [([1, 1, 1], [9, 1, 40]), ([4, 4], [4, 23])])
def test_paged_attention(page: int, rows: list[int], lens: list[int]) -> None:
    torch.manual_seed(sum(lens))
    pages = [-(-n // page) for n in lens]
    table = torch.zeros(len(lens), max(pages), dtype=torch.int32)
    order = torch.randperm(sum(pages) + 3).int()
    for i, count in enumerate(pages):
        table[i, :count] = order[sum(pages[:i]) :][:count]
    k, v = torch.randn(2, len(order), page, 2, 32)
    q = torch.randn(sum(rows), 6, 32)
    starts = torch.tensor([0, *rows]).cumsum(0).int()
    found = flash_attn_with_kvcache(
        q,
        k,
        v,
        cache_seqlens=torch.tensor(lens).int(),
        page_table=table,
        cu_seqlens_q=starts,
        causal=True,
    )
    for i, (n, m) in enumerate(zip(rows, lens, strict=True)):
        own = table[i, : pages[i]].long()
        keys, values = (x[own].flatten(0, 1)[:m].transpose(0, 1) for x in (k, v))
        mask = torch.ones(n, m).tril(m - n).bool()
        at = slice(int(starts[i]), int(starts[i + 1]))
        plain = scaled_dot_product_attention(
            q[at].transpose(0, 1), keys, values, mask, enable_gqa=True
        )
        assert torch.allclose(found[at], plain.transpose(0, 1), atol=1e-5)
