"""FlashAttention 3 in plain torch, where SGLang looks for its kernels."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.rehearsal.kernels import CAUSAL, NON_CAUSAL, allowed_by, attend

HOPPER = 9, 0


@torch.library.custom_op("rehearsal::flash_attention", mutates_args=())
def flash_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    cache_seqlens: Tensor,
    cu_seqlens_q: Tensor,
    scale: float,
    causal: bool,
    window_left: int,
    cap: float,
) -> Tensor:
    """q [rows, heads, dim] of all requests; caches [pages, tokens, kv_heads, dim]. Lengths and
    pages are read on the device, as by a captured kernel."""
    out = torch.empty(*q.shape[:2], v_cache.shape[-1], dtype=q.dtype)
    size = k_cache.shape[1]
    keys, values = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    starts = cu_seqlens_q.tolist()
    for i, length in enumerate(cache_seqlens.tolist()):
        rows = slice(starts[i], starts[i + 1])
        at = torch.arange(length)
        slots = page_table[i, at // size].long() * size + at % size
        mode = CAUSAL if causal else NON_CAUSAL
        allowed = allowed_by(mode, starts[i + 1] - starts[i], length, window_left, None)
        out[rows] = attend(q[rows], keys[slots], values[slots], allowed, scale, cap)[0].to(q.dtype)
    return out


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: None = None,
    v: None = None,
    qv: None = None,
    rotary_cos: None = None,
    rotary_sin: None = None,
    cache_seqlens: Tensor | None = None,
    cache_batch_idx: None = None,
    cache_leftpad: None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: None = None,
    q_descale: None = None,
    k_descale: None = None,
    v_descale: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int | None = None,
    softcap: float = 0.0,
    *_: Any,
    out: Tensor | None = None,
    return_softmax_lse: bool = False,
    **__: Any,
) -> Tensor:
    """What SGLang asks of it for chains of drafts over a paged cache."""
    assert k is v is qv is rotary_cos is k_descale is out is None and not return_softmax_lse
    assert page_table is not None and cache_seqlens is not None and cu_seqlens_q is not None
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return torch.ops.rehearsal.flash_attention(
        q,
        k_cache,
        v_cache,
        page_table,
        cache_seqlens,
        cu_seqlens_q,
        float(scale),
        causal,
        window_size[0],
        float(softcap),
    )


def get_scheduler_metadata(**_: Any) -> Tensor:
    """Of a schedule that nothing here follows."""
    return torch.zeros(1, dtype=torch.int32)


def flash_attn_varlen_func(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError("SGLang takes the cache for everything but embeddings and MLA")


def install() -> None:
    """Once in every process."""
    module = ModuleType("sgl_kernel.flash_attn")
    for function in (flash_attn_with_kvcache, flash_attn_varlen_func, get_scheduler_metadata):
        setattr(module, function.__name__, function)
    sys.modules[module.__name__] = module

    from sglang.kernels.ops.attention import flash_attention_v3
    from sglang.srt.layers.attention import attention_registry, flashattention_backend

    for asking in (flash_attention_v3, attention_registry, flashattention_backend):
        asking.get_device_capability = lambda *_: HOPPER
