"""SGLang's Triton attention in plain torch: interpreted, one of its kernels takes a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.rehearsal.kernels import CAUSAL, NON_CAUSAL, allowed_by, attend
from tests.rehearsal.tape import launch


def memory_from(tensor: Tensor) -> Tensor:
    """All that lies behind a pointer to it: a kernel does not know where the tensor ends, and in a
    graph it ends where the captured batch did."""
    end = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((end - tensor.storage_offset(),), (1,))


def extend_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    custom_mask: Tensor | None,
    is_causal: bool,
    mask_indptr: Tensor | None,
    max_len_extend: int,
    k_scale: float,
    v_scale: float,
    sm_scale: float,
    logit_cap: float = 0.0,
    **_: Any,
) -> None:
    """q, k, v and o [rows, heads, dim] of all requests; ``kv_indices`` are the slots of what they
    had before. A mask is [rows, columns] of each request, one after the other; a kernel looks at
    the columns of the new rows only."""

    def kernel() -> None:
        rows, before, indices = qo_indptr.tolist(), kv_indptr.tolist(), memory_from(kv_indices)
        for i in range(len(rows) - 1):
            own, slots = slice(rows[i], rows[i + 1]), indices[before[i] : before[i + 1]].long()
            keys, values = (
                torch.cat([k_buffer[slots], k[own]]),
                torch.cat([v_buffer[slots], v[own]]),
            )
            count, columns = rows[i + 1] - rows[i], len(keys)
            allowed = allowed_by(CAUSAL if is_causal else NON_CAUSAL, count, columns, -1, None)
            if custom_mask is not None and mask_indptr is not None:
                start = int(mask_indptr[i])
                mask = memory_from(custom_mask)[start : start + count * columns]
                mask = mask.view(count, columns).bool()
                allowed[:, columns - count :] &= mask[:, columns - count :]
            out, _ = attend(q[own], keys, values, allowed, sm_scale, logit_cap)
            o[own] = out.to(o.dtype)

    launch(kernel)


def decode_attention_fwd(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    o: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    attn_logits: Tensor,
    attn_lse: Tensor,
    num_kv_splits: Tensor,
    max_kv_splits: int,
    sm_scale: float,
    k_scale: float,
    v_scale: float,
    logit_cap: float = 0.0,
    **_: Any,
) -> None:
    """q and o [requests, heads, dim]."""

    def kernel() -> None:
        starts, indices = kv_indptr.tolist(), memory_from(kv_indices)
        for i in range(len(q)):
            slots = indices[starts[i] : starts[i + 1]].long()
            seen = torch.ones(1, len(slots), dtype=torch.bool)
            row = q[i : i + 1]
            out, _ = attend(row, k_buffer[slots], v_buffer[slots], seen, sm_scale, logit_cap)
            o[i : i + 1] = out.to(o.dtype)

    launch(kernel)


def install() -> None:
    """Once in every process, before SGLang builds a backend."""
    from sglang.kernels.ops.attention import decode_attention, extend_attention

    extend_attention.extend_attention_fwd = extend_attention_fwd
    decode_attention.decode_attention_fwd = decode_attention_fwd
