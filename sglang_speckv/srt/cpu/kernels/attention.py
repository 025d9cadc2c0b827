"""Prefill, verify and decode attention over SGLang's slot-indexed KV pool."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_speckv.srt.cpu.kernels.plan import (
    FEW_QUERIES,
    Group,
    PlanCache,
    decode_groups,
    extend_groups,
)

PLANS = PlanCache()


def decode_attention_cpu(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    k_scale: float,
    v_scale: float,
    o: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    loc: Tensor,
    attn_logits: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    scaling: float,
    logit_cap: float,
    is_cross: bool,
    window: int,
    encoder_lens: Tensor | None,
    sinks: Tensor | None,
) -> None:
    """Write ``k``, ``v`` at ``loc``, then attend with one query per request into ``o``."""
    _refuse("decode_attention_cpu", is_cross, k_scale, v_scale, k_buffer)
    if k is not None and v is not None:
        k_buffer.index_copy_(0, loc, k.view(-1, *k_buffer.shape[1:]).to(k_buffer.dtype))
        v_buffer.index_copy_(0, loc, v.view(-1, *v_buffer.shape[1:]).to(v_buffer.dtype))
    groups = PLANS.get(decode_groups, req_to_token, req_pool_indices, seq_lens, window)
    _attend_groups(groups, q, k_buffer, v_buffer, o, scaling, logit_cap, sinks)


def extend_attention_cpu(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    o: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    k_scale: float,
    v_scale: float,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    extend_seq_lens: Tensor,
    extend_start_loc: Tensor,
    max_extend_len: int,
    scaling: float,
    logit_cap: float,
    is_cross: bool,
    window: int,
    encoder_lens: Tensor | None,
    sinks: Tensor | None,
    tree_mask: Tensor | None,
    is_causal: bool,
) -> None:
    """Attend with the newest ``extend_seq_lens`` tokens of each request, whose keys and values
    are in the pool already; ``seq_lens`` counts them."""
    _refuse("extend_attention_cpu", is_cross, k_scale, v_scale, k_buffer)
    groups = PLANS.get(
        extend_groups,
        req_to_token,
        req_pool_indices,
        seq_lens,
        extend_seq_lens,
        extend_start_loc,
        window,
        tree_mask,
        is_causal,
    )
    _attend_groups(groups, q, k_buffer, v_buffer, o, scaling, logit_cap, sinks)


def _refuse(op: str, is_cross: bool, k_scale: float, v_scale: float, k_buffer: Tensor) -> None:
    if is_cross:
        raise NotImplementedError(f"{op}: cross attention is not supplied by the CPU engine")
    if k_scale != 1.0 or v_scale != 1.0 or not k_buffer.dtype.is_floating_point:
        raise NotImplementedError(f"{op}: a quantised KV cache is not supplied by the CPU engine")


def _attend_groups(
    groups: list[Group],
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    o: Tensor,
    scaling: float,
    logit_cap: float,
    sinks: Tensor | None,
) -> None:
    for group in groups:
        requests, keys = group.slots.shape
        slots = group.slots.view(-1)
        k = k_buffer.index_select(0, slots).view(requests, keys, *k_buffer.shape[1:])
        v = v_buffer.index_select(0, slots).view(requests, keys, *v_buffer.shape[1:])
        queries = q[group.rows].view(requests, -1, *q.shape[1:])
        out = attend(queries, k, v, group, scaling, logit_cap, sinks)
        o[group.rows] = out.reshape(-1, *out.shape[2:])


def attend(
    q: Tensor, k: Tensor, v: Tensor, group: Group, scaling: float, logit_cap: float, sinks: Any
) -> Tensor:
    """Grouped-query attention: q [b, e, heads, d], k and v [b, l, kv_heads, d] -> like q."""
    k, v = k.transpose(1, 2).to(q.dtype), v.transpose(1, 2).to(q.dtype)
    if logit_cap > 0 or sinks is not None:
        return _attend_plainly(q, k, v, group, scaling, logit_cap, sinks)
    if q.shape[1] <= FEW_QUERIES:
        return _attend_folded(q, k, v, group, scaling)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k,
        v,
        attn_mask=None if group.causal else group.bias(q.dtype),
        is_causal=group.causal,
        scale=scaling,
        enable_gqa=True,
    )
    return out.transpose(1, 2)


def _attend_folded(q: Tensor, k: Tensor, v: Tensor, group: Group, scaling: float) -> Tensor:
    """Few queries: the heads that share a KV head become its queries, so nothing is repeated."""
    requests, length, heads, dim = q.shape
    kv_heads = k.shape[1]
    share = heads // kv_heads
    folded = q.view(requests, length, kv_heads, share, dim).permute(0, 2, 3, 1, 4)
    out = F.scaled_dot_product_attention(
        folded.reshape(requests, kv_heads, share * length, dim),
        k,
        v,
        attn_mask=group.bias(q.dtype, share),
        scale=scaling,
    )
    unfolded = out.view(requests, kv_heads, share, length, -1).permute(0, 3, 1, 2, 4)
    return unfolded.reshape(requests, length, heads, -1)


def _attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, group: Group, scaling: float, logit_cap: float, sinks: Any
) -> Tensor:
    """Step by step in float32, for what the fused call lacks: capped logits and sinks [heads]."""
    requests, length, heads, _ = q.shape
    kv_heads = k.shape[1]
    queries = q.view(requests, length, kv_heads, heads // kv_heads, -1).permute(0, 2, 3, 1, 4)
    logits = queries.float() @ k.float().transpose(-1, -2)[:, :, None] * scaling
    if logit_cap > 0:
        logits = logit_cap * torch.tanh(logits / logit_cap)
    bias = group.bias(torch.float32)
    if bias is not None:
        logits = logits + bias[:, :, None]
    if sinks is not None:
        column = sinks.float().view(1, kv_heads, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, column], dim=-1)
    weights = logits.softmax(-1)[..., : k.shape[2]]
    out = (weights @ v.float()[:, :, None]).permute(0, 3, 1, 2, 4)
    return out.reshape(requests, length, heads, -1).to(q.dtype)
