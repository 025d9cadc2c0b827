"""Attention kernels against one query, one head, one key at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sglang_speckv.srt.cpu.kernels import attention

POOL = 256


@dataclass
class Batch:
    """Requests over one random pool; the ``shared`` first slots belong to all, a cached prefix."""

    k_buffer: Tensor
    v_buffer: Tensor
    req_to_token: Tensor
    req_pool_indices: Tensor
    seq_lens: Tensor


def make_batch(
    lens: list[int], kv_heads: int, dim: int, *, shared: int = 0, dtype=torch.float32
) -> Batch:
    slots = torch.randperm(POOL - 1) + 1
    table = torch.zeros(len(lens) + 2, max(lens) + 4, dtype=torch.int32)
    rows = torch.randperm(len(lens) + 2)[: len(lens)]
    used = shared
    for row, length in zip(rows, lens, strict=True):
        head = min(shared, length)
        table[row, :head] = slots[:head]
        table[row, head:length] = slots[used : used + length - head]
        used += length - head
    buffers = torch.randn(2, POOL, kv_heads, dim).to(dtype)
    buffers[:, 0] = math.nan  # the pool's padding slot must never be read
    return Batch(buffers[0], buffers[1], table, rows, torch.tensor(lens))


def attention_of_one(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, cap: float, sink: float | None
) -> Tensor:
    """query [d], keys and values [n, d]: softmax by its definition."""
    logits = [float(query.double() @ key.double()) * scaling for key in keys]
    if cap > 0:
        logits = [cap * math.tanh(x / cap) for x in logits]
    top = max([*logits, *([] if sink is None else [sink])])
    weights = [math.exp(x - top) for x in logits]
    total = sum(weights) + (0.0 if sink is None else math.exp(sink - top))
    return sum(w / total * value.double() for w, value in zip(weights, values, strict=True))


def expected(batch: Batch, q: Tensor, queries, sees, scaling, cap=0.0, sinks=None) -> Tensor:
    """``queries``: (request, position) per row of q; ``sees(request, position, key)``."""
    share = q.shape[1] // batch.k_buffer.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for row, (request, position) in enumerate(queries):
        length = int(batch.seq_lens[request])
        keys = [key for key in range(length) if sees(request, position, key)]
        slots = batch.req_to_token[batch.req_pool_indices[request], keys].long()
        for head in range(q.shape[1]):
            out[row, head] = attention_of_one(
                q[row, head],
                batch.k_buffer[slots, head // share],
                batch.v_buffer[slots, head // share],
                scaling,
                cap,
                None if sinks is None else float(sinks[head]),
            )
    return out


def extend(batch: Batch, q: Tensor, lens: list[int], **options) -> Tensor:
    o = torch.full_like(q, math.nan)
    counts = torch.tensor(lens)
    attention.extend_attention_cpu(
        q,
        None,
        None,
        o,
        batch.k_buffer,
        batch.v_buffer,
        1.0,
        1.0,
        batch.req_to_token,
        batch.req_pool_indices,
        batch.seq_lens,
        counts,
        counts.cumsum(0) - counts,
        max(lens),
        options.get("scaling", 0.2),
        options.get("cap", 0.0),
        options.get("is_cross", False),
        options.get("window", 0),
        None,
        options.get("sinks"),
        options.get("tree_mask"),
        options.get("is_causal", True),
    )
    return o


def decode(batch: Batch, q: Tensor, k: Tensor, v: Tensor, loc: Tensor, **options) -> Tensor:
    o = torch.full_like(q, math.nan)
    attention.decode_attention_cpu(
        q,
        batch.k_buffer,
        batch.v_buffer,
        options.get("k_scale", 1.0),
        1.0,
        o,
        k,
        v,
        loc,
        torch.empty(0),
        batch.req_to_token,
        batch.req_pool_indices,
        batch.seq_lens,
        0.2,
        options.get("cap", 0.0),
        False,
        options.get("window", 0),
        None,
        options.get("sinks"),
    )
    return o


def new_queries(batch: Batch, lens: list[int]) -> list[tuple[int, int]]:
    """(request, position) of the last ``lens`` tokens of each request."""
    return [
        (request, int(total) - length + offset)
        for request, (total, length) in enumerate(zip(batch.seq_lens, lens, strict=True))
        for offset in range(length)
    ]


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    tolerance = 2e-2 if actual.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual.double(), wanted, atol=tolerance, rtol=tolerance)


requests = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), min_size=1, max_size=5)


@settings(max_examples=40)
@given(
    requests=requests,
    kv_heads=st.sampled_from([1, 2, 3]),
    share=st.sampled_from([1, 3]),
    shared=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_extend_is_causal_over_prefix_and_new_tokens(requests, kv_heads, share, shared, seed):
    torch.manual_seed(seed)
    lens = [new for _, new in requests]
    batch = make_batch([prefix + new for prefix, new in requests], kv_heads, 8, shared=shared)
    q = torch.randn(sum(lens), kv_heads * share, 8)
    wanted = expected(
        batch, q, new_queries(batch, lens), lambda _, position, key: key <= position, 0.2
    )
    assert_close(extend(batch, q, lens), wanted)


@settings(max_examples=30)
@given(
    lens=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    share=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([0, 1, 4]),
    seed=st.integers(0, 99),
)
def test_decode_writes_the_new_token_and_attends_to_it(lens, share, window, seed):
    torch.manual_seed(seed)
    batch = make_batch(lens, 2, 8)
    last = batch.req_to_token[batch.req_pool_indices, batch.seq_lens - 1].long()
    k, v = torch.randn(2, len(lens), 2, 8)
    q = torch.randn(len(lens), 2 * share, 8)
    out = decode(batch, q, k, v, last, window=window)
    assert torch.equal(batch.k_buffer[last], k) and torch.equal(batch.v_buffer[last], v)
    queries = [(request, length - 1) for request, length in enumerate(lens)]
    wanted = expected(
        batch, q, queries, lambda _, position, key: not window or key > position - window, 0.2
    )
    assert_close(out, wanted)


def test_verify_of_trees_sees_prefix_and_ancestors_only():
    torch.manual_seed(1)
    tokens, prefixes = 7, [5, 1, 12]
    batch = make_batch([prefix + tokens for prefix in prefixes], 2, 8, shared=1)
    masks = torch.rand(3, tokens, tokens) < 0.4
    masks |= torch.eye(tokens, dtype=torch.bool)
    q = torch.randn(3 * tokens, 6, 8)

    def sees(request: int, position: int, key: int) -> bool:
        first = prefixes[request]
        return key < first or bool(masks[request, position - first, key - first])

    wanted = expected(batch, q, new_queries(batch, [tokens] * 3), sees, 0.2)
    assert_close(extend(batch, q, [tokens] * 3, tree_mask=masks.flatten()), wanted)


@pytest.mark.parametrize("lens", [[4, 4], [20, 3], [20, 20]])
@pytest.mark.parametrize("window", [0, 3])
def test_cap_sinks_and_window(lens, window):
    torch.manual_seed(2)
    batch = make_batch([5 + lens[0], lens[1]], 2, 8)
    q, sinks = torch.randn(sum(lens), 4, 8), torch.randn(4)

    def sees(_: int, position: int, key: int) -> bool:
        return key <= position and (not window or key > position - window)

    wanted = expected(batch, q, new_queries(batch, lens), sees, 0.9, cap=2.0, sinks=sinks)
    actual = extend(batch, q, lens, scaling=0.9, cap=2.0, sinks=sinks, window=window)
    assert_close(actual, wanted)


@pytest.mark.parametrize("lens", [[4, 4], [20, 20]])
def test_encoder_attention_sees_everything(lens):
    batch = make_batch(lens, 1, 8)
    q = torch.randn(sum(lens), 2, 8)
    wanted = expected(batch, q, new_queries(batch, lens), lambda *_: True, 0.2)
    assert_close(extend(batch, q, lens, is_causal=False), wanted)


def test_bfloat16():
    torch.manual_seed(3)
    batch = make_batch([30, 11], 3, 64, dtype=torch.bfloat16)
    q = torch.randn(8, 9, 64).bfloat16()
    wanted = expected(batch, q, new_queries(batch, [4, 4]), lambda _, p, key: key <= p, 0.125)
    assert_close(extend(batch, q, [4, 4], scaling=0.125), wanted)


def test_a_request_without_new_tokens_is_left_out():
    batch = make_batch([6, 9], 1, 8)
    q = torch.randn(5, 2, 8)
    wanted = expected(batch, q, [(1, 4 + i) for i in range(5)], lambda _, p, key: key <= p, 0.2)
    assert_close(extend(batch, q, [0, 5]), wanted)


def test_plans_are_shared_within_a_forward_and_forgotten_by_the_next(monkeypatch):
    plans = attention.PlanCache()
    monkeypatch.setattr(attention, "PLANS", plans)
    batch = make_batch([6], 1, 8)
    q, k, v = torch.randn(1, 2, 8), torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    loc = batch.req_to_token[batch.req_pool_indices, batch.seq_lens - 1].long()
    plans.start()
    with plans.shared():
        first = decode(batch, q, k, v, loc)
        batch.seq_lens -= 2  # changed in place, as the scheduler does between forwards
        assert torch.equal(decode(batch, q, k, v, loc), first)
    stranger = decode(batch, q, k, v, loc)  # announced no forward, so it gets no old plan
    plans.start()
    with plans.shared():
        assert torch.equal(decode(batch, q, k, v, loc), stranger)
    assert not torch.equal(stranger, first)


def test_what_is_not_supplied_is_refused_by_name():
    batch = make_batch([6], 1, 8)
    q = torch.randn(1, 2, 8)
    with pytest.raises(NotImplementedError, match="extend_attention_cpu: cross attention"):
        extend(batch, q, [1], is_cross=True)
    with pytest.raises(NotImplementedError, match="decode_attention_cpu: a quantised KV cache"):
        decode(batch, q, None, None, torch.tensor([1]), k_scale=0.5)
