"""FlashInfer's kernels in plain torch, under FlashInfer's own Python.

FlashInfer compiles its kernels when they are first asked for. :func:`installed` replaces what the
compiler would return. Wrappers, plans, buffers and copies to the host stay FlashInfer's own, and so
does everything in SGLang that reads them.

A real plan leaves its schedule in the wrapper's device workspace, where a captured kernel finds it
at every replay. So does this one: the lengths that the host planned for are in that workspace, and
a kernel that finds others in its device buffers raises :class:`StalePlan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

NON_CAUSAL, CAUSAL, CUSTOM = range(3)
"""FlashInfer's ``MaskMode``."""


AMPERE = 8, 0
"""The compute capability that stands for all: FlashInfer takes its second generation of kernels."""


class StalePlan(RuntimeError):
    """The host planned a kernel for other lengths than those on the device."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """One request's attention: q [n, heads, dim], k and v [m, kv_heads, dim], ``allowed`` [n, m].
    Returns the output [n, heads, dim] in float32 and the log2 of the summed exponentials
    [n, heads], minus infinity where nothing is allowed."""
    group = q.shape[1] // k.shape[1]
    k, v = (each.float().repeat_interleave(group, dim=1) for each in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q.float(), k) * scale
    if cap > 0.0:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~allowed, -math.inf)
    total = torch.logsumexp(scores, dim=-1, keepdim=True)
    weights = torch.exp(scores - total).nan_to_num(0.0)
    out = torch.einsum("hnm,mhd->nhd", weights, v)
    return out, total.squeeze(-1).T / math.log(2.0)


def allowed_by(
    mask_mode: int, rows: int, columns: int, window_left: int, bits: Tensor | None
) -> Tensor:
    """[rows, columns]: which keys a query sees. The last query is the last key's. ``bits``: those
    of a custom mask, packed little-endian, row after row."""
    row = torch.arange(rows)[:, None] + columns - rows
    column = torch.arange(columns)[None]
    seen = torch.ones(rows, columns, dtype=torch.bool)
    if mask_mode == CAUSAL:
        seen = column <= row
    elif mask_mode == CUSTOM:
        assert bits is not None
        flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        seen = flat.flatten()[: rows * columns].view(rows, columns).bool()
    if window_left >= 0:
        seen = seen & (column >= row - window_left)
    return seen


def _note(int_workspace: Tensor, qo_indptr: Tensor, kv_lens: Tensor) -> list[int]:
    """Leave what was planned for where a kernel finds it."""
    batch = len(kv_lens)
    place = int_workspace.view(torch.int32)
    place[0] = batch
    place[1 : batch + 2] = qo_indptr
    place[batch + 2 : 2 * batch + 2] = kv_lens
    return [batch]


def _check(int_workspace: Tensor, qo_indptr: Tensor, kv_lens: Tensor) -> None:
    """Rows that pad a graph have no keys on the device, whatever the host planned."""
    batch = len(kv_lens)
    place = int_workspace.view(torch.int32)
    planned_qo, planned_kv = place[1 : batch + 2], place[batch + 2 : 2 * batch + 2]
    stale = (kv_lens != planned_kv) & (kv_lens > 0)
    if int(place[0]) != batch or bool(stale.any()) or bool((qo_indptr != planned_qo).any()):
        raise StalePlan(
            f"planned for {planned_kv.tolist()} keys and rows {planned_qo.tolist()}, the device "
            f"has {kv_lens.tolist()} and {qo_indptr.tolist()}"
        )


def plan_prefill(
    float_workspace: Tensor,
    int_workspace: Tensor,
    pinned: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_lens: Tensor,
    *_: Any,
) -> list[int]:
    return _note(int_workspace, qo_indptr, kv_lens)


def plan_decode(
    float_workspace: Tensor, int_workspace: Tensor, pinned: Tensor, indptr: Tensor, *_: Any
) -> list[int]:
    return _note(int_workspace, torch.arange(len(indptr), dtype=torch.int32), indptr.diff())


def paged_run(
    float_workspace: Tensor,
    int_workspace: Tensor,
    plan_info: list[int],
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    last_page_len: Tensor,
    o: Tensor,
    lse: Tensor | None,
    mask_mode: int,
    layout: int,
    window_left: int,
    enable_pdl: bool,
    custom_mask: Tensor | None,
    mask_indptr: Tensor | None,
    *rest: Any,
) -> None:
    """``rest``: six that are not used here, then the logits' cap and the scale of scores."""
    cap, scale = rest[6], rest[7]
    torch.ops.rehearsal.paged_attention(
        int_workspace,
        q,
        k_cache,
        v_cache,
        qo_indptr,
        kv_indptr,
        kv_indices,
        o,
        lse,
        mask_mode,
        window_left,
        float(cap),
        float(scale),
        custom_mask,
        mask_indptr,
    )


def decode_run(
    float_workspace: Tensor,
    int_workspace: Tensor,
    plan_info: list[int],
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    indptr: Tensor,
    indices: Tensor,
    last_page_len: Tensor,
    o: Tensor,
    lse: Tensor | None,
    layout: int,
    window_left: int,
    enable_pdl: bool,
    alibi_slopes: Tensor | None,
    cap: float,
    scale: float,
    *_: Any,
) -> None:
    one_each = torch.arange(len(indptr), dtype=torch.int32)
    torch.ops.rehearsal.paged_attention(
        int_workspace,
        q,
        k_cache,
        v_cache,
        one_each,
        indptr,
        indices,
        o,
        lse,
        NON_CAUSAL,
        window_left,
        float(cap),
        float(scale),
    )


@torch.library.custom_op("rehearsal::paged_attention", mutates_args=("o", "lse"))
def paged_attention(
    int_workspace: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    o: Tensor,
    lse: Tensor | None,
    mask_mode: int,
    window_left: int,
    cap: float,
    scale: float,
    custom_mask: Tensor | None = None,
    mask_indptr: Tensor | None = None,
) -> None:
    """Over the newest lengths in the device's buffers, as a captured kernel. Pages of one token."""
    assert k_cache.shape[1] == 1, "SGLang plans with pages of one token"
    _check(int_workspace, qo_indptr, kv_indptr.diff())
    rows, columns = qo_indptr.tolist(), kv_indptr.tolist()
    for i in range(len(rows) - 1):
        at, keys = slice(rows[i], rows[i + 1]), kv_indices[columns[i] : columns[i + 1]].long()
        bits = None
        if mask_mode == CUSTOM:
            assert custom_mask is not None and mask_indptr is not None
            bits = custom_mask[int(mask_indptr[i]) : int(mask_indptr[i + 1])]
        seen = allowed_by(mask_mode, at.stop - at.start, len(keys), window_left, bits)
        out, total = attend(q[at], k_cache[keys, 0], v_cache[keys, 0], seen, scale, cap)
        o[at] = out.to(o.dtype)
        if lse is not None:
            lse[at] = total


def ragged_run(
    float_workspace: Tensor,
    int_workspace: Tensor,
    plan_info: list[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    o: Tensor,
    lse: Tensor | None,
    mask_mode: int,
    layout: int,
    window_left: int,
    enable_pdl: bool,
    *rest: Any,
) -> None:
    """``rest``: eight that are not used here, then the logits' cap and the scale of scores."""
    slots = torch.arange(len(k), dtype=torch.int32)
    torch.ops.rehearsal.paged_attention(
        int_workspace,
        q,
        k[:, None],
        v[:, None],
        qo_indptr,
        kv_indptr,
        slots,
        o,
        lse,
        mask_mode,
        window_left,
        float(rest[8]),
        float(rest[9]),
    )


def merge_state(v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v: Tensor, s: Tensor) -> None:
    """Attention over two sets of keys from that over either; logs to base 2."""
    most = torch.maximum(s_a, s_b)
    a, b = torch.exp2(s_a - most).nan_to_num(0.0), torch.exp2(s_b - most).nan_to_num(0.0)
    share = (a / (a + b)).nan_to_num(0.0)[..., None]
    v.copy_(share * v_a.float() + (1.0 - share) * v_b.float())
    s.copy_(most + torch.log2(a + b))


def segment_packbits(
    x: Tensor, indptr: Tensor, packed_indptr: Tensor, bitorder: str, y: Tensor
) -> None:
    """Each segment's bits, packed into bytes of its own."""
    assert bitorder == "little"
    weights = 2 ** torch.arange(8)
    bounds, packed = indptr.tolist(), packed_indptr.tolist()
    for i in range(len(bounds) - 1):
        bits = x[bounds[i] : bounds[i + 1]].to(torch.int64)
        bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
        y[packed[i] : packed[i + 1]] = (bits * weights).sum(dim=1).to(torch.uint8)


@contextmanager
def installed() -> Iterator[None]:
    """FlashInfer finds these where it would compile its own."""
    from flashinfer import cascade, decode, prefill
    from flashinfer.jit import utils as dtypes

    capabilities = import_module("flashinfer.utils")
    packbits = import_module("flashinfer.quantization.packbits")
    prefills = SimpleNamespace(plan=plan_prefill, paged_run=paged_run, ragged_run=ragged_run)
    decodes = SimpleNamespace(plan=plan_decode, run=decode_run)
    built = (
        (prefill, "_gen_batch_prefill_primary_module", prefills),
        (prefill, "_gen_batch_prefill_independent_paged_module", prefills),
        (decode, "gen_batch_decode_module", decodes),
        (cascade, "gen_cascade_module", SimpleNamespace(merge_state=merge_state)),
        (packbits, "gen_quantization_module", SimpleNamespace(segment_packbits=segment_packbits)),
    )
    # The device's kernels know no float32, in which texts are compared here.
    float32 = {torch.float32: "float"}
    with ExitStack() as stack:
        for names in (dtypes.filename_safe_dtype_map, dtypes.dtype_map_kv):
            stack.enter_context(patch.dict(names, float32))
        for module in (prefill, decode, capabilities):
            ampere = patch.object(module, "get_compute_capability", lambda device: AMPERE)
            stack.enter_context(ampere)
        stack.enter_context(patch.object(torch.cuda, "device", nullcontext))
        for module, name, kernels in built:
            spec = SimpleNamespace(build_and_load=lambda kernels=kernels: kernels)
            stack.enter_context(patch.object(module, name, lambda *_, spec=spec, **__: spec))
        yield
