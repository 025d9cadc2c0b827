"""Bookkeeping of KV slots: the request-to-slot table, draft slots, moves within the pool."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Put consecutive slots of ``out_cache_loc`` at columns start..end of each request's row."""
    rows, columns = _ragged(req_pool_indices, start_offset, end_offset)
    req_to_token[rows, columns] = out_cache_loc[: rows.numel()].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """The reverse: read columns start..end of each row, one after another."""
    rows, columns = _ragged(req_pool_indices, start_offset, end_offset)
    out_cache_loc[: rows.numel()] = req_to_token[rows, columns].to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
    topk: int,
    num_steps: int,
) -> None:
    """Each request's ``topk * num_steps`` slots behind its committed tokens."""
    columns = seq_lens[:, None] + torch.arange(topk * num_steps)
    slots = req_to_token[req_pool_indices[:, None], columns]
    out_cache_loc[: slots.numel()] = slots.flatten().to(out_cache_loc.dtype)


def build_draft_decode_metadata_cpu(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    topk: int,
    num_steps: int,
    pool_len: int,
) -> Tensor:
    """One row per draft branch [requests * topk, longest]: the committed slots of the request,
    then the branch's own ``num_steps`` draft slots."""
    longest = min(int(seq_lens.max()) + num_steps, pool_len) if len(seq_lens) else 0
    position = torch.arange(longest)
    committed = seq_lens[:, None, None]
    branch = torch.arange(topk)[None, :, None] * num_steps
    columns = torch.where(position < committed, position, position + branch)
    rows = req_to_token[req_pool_indices[:, None, None], columns.clamp_(max=pool_len - 1)]
    return rows.view(-1, longest)


def fill_bonus_tokens_cpu(
    accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int
) -> None:
    """Each request's last accepted token; ``accept_lens`` counts the bonus."""
    last = torch.arange(accept_lens.numel()) * accept_stride + accept_lens.view(-1) - 1
    tokens = accept_tokens.view(-1)[last]
    bonus_tokens.view(-1)[: tokens.numel()] = tokens.to(bonus_tokens.dtype)


def fill_accept_out_cache_loc_cpu(
    accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor
) -> None:
    """Pack the slots of the accepted tokens (index > -1) to the front."""
    accepted = out_cache_loc[accept_index[accept_index > -1].long()]
    accept_out_cache_loc.view(-1)[: accepted.numel()] = accepted.to(accept_out_cache_loc.dtype)


def rotate_input_ids_cpu(
    input_ids: Tensor,
    extend_start_loc: Tensor,
    extend_seq_lens: Tensor,
    topk_index: Tensor,
    select_index: Tensor | None,
) -> None:
    """Shift each request's tokens one to the left and put its new token at the end, or at
    ``select_index``."""
    busy = extend_seq_lens > 0
    end = extend_start_loc + extend_seq_lens
    _, moved = _ragged(extend_start_loc, extend_start_loc, torch.where(busy, end - 1, end))
    input_ids[moved] = input_ids[moved + 1]
    last = end - 1 if select_index is None else select_index
    input_ids[last[busy].long()] = topk_index.view(-1)[busy].to(input_ids.dtype)


def copy_all_layer_kv_cache_cpu(
    data_ptrs: Tensor, strides: Tensor, tgt_loc: Tensor, src_loc: Tensor
) -> None:
    """In each buffer (address, bytes per slot), move slots ``src_loc`` to ``tgt_loc``."""
    if tgt_loc.numel() == 0:
        return
    target, source = tgt_loc.long(), src_loc.long()
    slots = int(torch.maximum(target, source).max()) + 1
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        buffer = (ctypes.c_uint8 * (slots * stride)).from_address(address)
        rows = torch.frombuffer(buffer, dtype=torch.uint8).view(slots, stride)
        rows[target] = rows[source]


def _ragged(rows: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every cell in start..end of each row, request after request."""
    lengths = (end - start).long()
    offset = torch.cumsum(lengths, 0) - lengths
    shift = torch.repeat_interleave(start.long() - offset, lengths)
    return torch.repeat_interleave(rows.long(), lengths), torch.arange(len(shift)) + shift
