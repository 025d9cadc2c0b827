"""Slot bookkeeping against the loops it stands for."""

from __future__ import annotations

import torch

from sglang_speckv.srt.cpu.kernels import slots


def make_table(rows: int = 6, columns: int = 40) -> torch.Tensor:
    return torch.randint(1, 10_000, (rows, columns), dtype=torch.int32)


def test_assign_to_table_and_read_back():
    table, rows = make_table(), torch.tensor([4, 0, 2])
    start, end = torch.tensor([3, 0, 7]), torch.tensor([5, 0, 11])
    before, new = table.clone(), torch.arange(100, 106)
    slots.assign_req_to_token_pool_cpu(rows, table, start, end, new, table.shape[1])
    before[4, 3:5] = torch.tensor([100, 101])
    before[2, 7:11] = torch.tensor([102, 103, 104, 105])
    assert torch.equal(table, before)
    out = torch.zeros(8, dtype=torch.int64)
    slots.assign_extend_cache_locs_cpu(rows, table, start, end, out, table.shape[1])
    assert out.tolist() == [100, 101, 102, 103, 104, 105, 0, 0]


def test_draft_slots_and_branch_rows():
    table, rows, lens = make_table(), torch.tensor([5, 1]), torch.tensor([9, 4])
    topk, steps = 3, 2
    out = torch.zeros(len(rows) * topk * steps, dtype=torch.int64)
    slots.assign_draft_cache_locs_contiguous_cpu(rows, table, lens, out, 40, topk, steps)
    assert out.tolist() == [*table[5, 9:15].tolist(), *table[1, 4:10].tolist()]
    branches = slots.build_draft_decode_metadata_cpu(table, rows, lens, topk, steps, 40)
    for request, (row, length) in enumerate(zip(rows.tolist(), lens.tolist(), strict=True)):
        for branch in range(topk):
            own = length + branch * steps
            wanted = [*table[row, :length].tolist(), *table[row, own : own + steps].tolist()]
            assert branches[request * topk + branch, : length + steps].tolist() == wanted


def test_branch_rows_at_the_end_of_the_table():
    table = make_table(columns=10)
    branches = slots.build_draft_decode_metadata_cpu(
        table, torch.tensor([1]), torch.tensor([9]), 1, 3, 10
    )
    assert branches.tolist() == [table[1].tolist()]


def test_bonus_tokens_and_accepted_slots():
    accepted = torch.tensor([[7, 8, 9, 0], [5, 0, 0, 0]])
    bonus = torch.zeros(2, dtype=torch.int64)
    slots.fill_bonus_tokens_cpu(accepted, torch.tensor([3, 1], dtype=torch.int32), bonus, 4)
    assert bonus.tolist() == [9, 5]
    packed = torch.zeros(8, dtype=torch.int64)
    index = torch.tensor([[0, 2, -1], [3, -1, -1]], dtype=torch.int32)
    slots.fill_accept_out_cache_loc_cpu(index, torch.tensor([10, 11, 12, 13]), packed)
    assert packed.tolist() == [10, 12, 13, 0, 0, 0, 0, 0]


def test_rotate_input_ids():
    start, lens, new = torch.tensor([0, 3, 3]), torch.tensor([3, 0, 2]), torch.tensor([7, 8, 9])
    tokens = torch.tensor([1, 2, 3, 4, 5])
    slots.rotate_input_ids_cpu(tokens, start, lens, new, None)
    assert tokens.tolist() == [2, 3, 7, 5, 9]
    tokens = torch.tensor([1, 2, 3, 4, 5])
    slots.rotate_input_ids_cpu(tokens, start, lens, new, torch.tensor([1, 0, 3]))
    assert tokens.tolist() == [2, 7, 3, 9, 5]


def test_move_slots_in_every_layer_even_where_they_overlap():
    buffers = [torch.randn(20, 2, 8), torch.randn(20, 4, 3).bfloat16()]
    before = [buffer.clone() for buffer in buffers]
    addresses = torch.tensor([b.data_ptr() for b in buffers], dtype=torch.uint64)
    strides = torch.tensor([b[0].nbytes for b in buffers])
    target, source = torch.tensor([3, 4, 5]), torch.tensor([4, 5, 19])
    slots.copy_all_layer_kv_cache_cpu(addresses, strides, target, source)
    for buffer, old in zip(buffers, before, strict=True):
        wanted = old.clone()
        wanted[target] = old[source]
        assert torch.equal(buffer, wanted)
    slots.copy_all_layer_kv_cache_cpu(addresses, strides, target[:0], source[:0])
