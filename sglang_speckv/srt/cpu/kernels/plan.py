"""Which cache slots a batch attends to, worked out once per forward and shared by its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

FEW_QUERIES = 16
"""Extends of up to this length (decode, verify, draft extend) are laid out for speed together."""


class Group:
    """Requests that are attended to in a single call, with as many queries each.

    ``rows`` picks their queries out of the flat batch; ``slots`` [requests, keys] is their cache,
    padded on the right to the longest of them; ``visible`` is bool [requests, queries, keys],
    or None where all is visible, or, if ``causal``, where new tokens see their elders only
    (which takes an empty prefix and no padding).
    """

    def __init__(
        self, rows: slice | Tensor, slots: Tensor, visible: Tensor | None, causal: bool = False
    ) -> None:
        self.rows = rows
        self.slots = slots
        self.visible = visible
        self.causal = causal
        self._biases: dict[tuple[torch.dtype, int], Tensor] = {}

    def bias(self, dtype: torch.dtype, share: int = 1) -> Tensor | None:
        """What to add to the logits, [requests, 1, share * queries, keys]: the mask of the
        queries, ``share`` times over.  Made once."""
        visible = self._triangle() if self.causal else self.visible
        if visible is None:
            return None
        if (dtype, share) not in self._biases:
            bias = torch.zeros(visible.shape, dtype=dtype)
            bias.masked_fill_(~visible, float("-inf"))
            self._biases[dtype, share] = bias.repeat(1, share, 1)[:, None]
        return self._biases[dtype, share]

    def _triangle(self) -> Tensor:
        keys = self.slots.shape[1]
        return torch.ones(1, keys, keys, dtype=torch.bool).tril()


def decode_groups(
    req_to_token: Tensor, req_pool_indices: Tensor, seq_lens: Tensor, window: int
) -> list[Group]:
    """One query per request, at its last position; ``window`` 0 is unlimited."""
    slots, inside = _padded_slots(req_to_token, req_pool_indices, seq_lens)
    if window > 0:
        inside &= torch.arange(slots.shape[1]) >= seq_lens[:, None] - window
    visible = None if bool(inside.all()) else inside[:, None, :]
    return [Group(slice(None), slots, visible)]


def extend_groups(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    extend_seq_lens: Tensor,
    extend_start_loc: Tensor,
    window: int,
    tree_mask: Tensor | None,
    is_causal: bool,
) -> list[Group]:
    """Prefill, verify and draft-extend queries: the last ``extend_seq_lens`` of each request.

    ``tree_mask`` is the flat QLEN_ONLY mask: one [e, e] block per request, in batch order.
    """
    few = int(extend_seq_lens.max()) <= FEW_QUERIES and int(extend_seq_lens.min()) > 0
    if few and is_causal and tree_mask is None and len(set(extend_seq_lens.tolist())) > 1:
        group = req_to_token, req_pool_indices, seq_lens, extend_seq_lens, extend_start_loc, window
        return [_ragged_group(*group)]
    groups = []
    for length, members in _members_by_length(extend_seq_lens).items():
        rows = _query_rows(extend_start_loc, members, length, whole=len(extend_seq_lens))
        lens = seq_lens[members]
        slots, inside = _padded_slots(req_to_token, req_pool_indices[members], lens)
        plain = is_causal and tree_mask is None and window == 0
        if plain and length > FEW_QUERIES and bool((lens == length).all()):
            groups.append(Group(rows, slots, None, causal=True))
            continue
        visible = inside[:, None, :].expand(-1, length, -1)
        if is_causal:
            own = None if tree_mask is None else _tree_blocks(tree_mask, extend_seq_lens, members)
            visible = visible & _among_new(lens, length, slots.shape[1], window, own)
        groups.append(Group(rows, slots, None if bool(visible.all()) else visible))
    return groups


def _ragged_group(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    extend_seq_lens: Tensor,
    extend_start_loc: Tensor,
    window: int,
) -> Group:
    """A few queries of each request, in one call: who has fewer asks the last one again."""
    column = torch.arange(int(extend_seq_lens.max())).minimum(extend_seq_lens[:, None] - 1)
    rows = (extend_start_loc[:, None] + column).flatten().long()
    slots, _ = _padded_slots(req_to_token, req_pool_indices, seq_lens)
    key, query = torch.arange(slots.shape[1]), ((seq_lens - extend_seq_lens)[:, None] + column)
    visible = key <= query[:, :, None]
    if window > 0:
        visible &= key > query[:, :, None] - window
    return Group(rows, slots, visible)


def _members_by_length(extend_seq_lens: Tensor) -> dict[int, Tensor]:
    members: dict[int, list[int]] = {}
    for index, length in enumerate(extend_seq_lens.tolist()):
        if length > 0:
            members.setdefault(length, []).append(index)
    return {length: torch.tensor(indices) for length, indices in members.items()}


def _query_rows(start: Tensor, members: Tensor, length: int, whole: int) -> slice | Tensor:
    if len(members) == whole:
        return slice(None)
    if len(members) == 1:
        first = int(start[members[0]])
        return slice(first, first + length)
    return (start[members].long()[:, None] + torch.arange(length)).flatten()


def _padded_slots(req_to_token: Tensor, rows: Tensor, seq_lens: Tensor) -> tuple[Tensor, Tensor]:
    """Slots [requests, longest] and which of them exist; padding repeats a request's last slot,
    so that it reads numbers and never another request's garbage."""
    longest = int(seq_lens.max())
    positions = torch.arange(longest)
    inside = positions < seq_lens[:, None]
    columns = torch.minimum(positions, seq_lens[:, None] - 1).clamp_(min=0)
    return req_to_token[rows[:, None], columns].long(), inside


def _among_new(
    seq_lens: Tensor, length: int, longest: int, window: int, own: Tensor | None
) -> Tensor:
    """Prefix visible; new tokens causal, or by ``own`` [requests, length, length]."""
    key = torch.arange(longest)
    query = seq_lens[:, None, None] - length + torch.arange(length)[None, :, None]
    visible = key <= query
    if own is not None:
        first = seq_lens[:, None, None] - length
        column = (key - first).clamp(0, length - 1).expand(-1, length, -1)
        visible = torch.where(key < first, True, own.gather(2, column))
    if window > 0:
        visible = visible & (key > query - window)
    return visible


def _tree_blocks(tree_mask: Tensor, extend_seq_lens: Tensor, members: Tensor) -> Tensor:
    """The [length, length] blocks of ``members``, which share one length."""
    sizes = extend_seq_lens.long() ** 2
    length = int(extend_seq_lens[members[0]])
    first = (sizes.cumsum(0) - sizes)[members]
    cells = first[:, None] + torch.arange(length * length)
    return tree_mask.view(-1)[cells].bool().view(-1, length, length)


class PlanCache:
    """Plans of the forward that is running, found again by the identity of their inputs.

    The inputs are changed in place between forwards, so plans are shared only between calls inside
    :meth:`shared`, for callers that say by :meth:`start` when a forward begins. Every other call
    gets a plan of its own.
    """

    def __init__(self) -> None:
        self._plans: dict[tuple, tuple[tuple, list[Group]]] = {}
        self._sharing = False

    def start(self) -> None:
        """A new forward begins: forget everything."""
        self._plans = {}

    @contextmanager
    def shared(self) -> Iterator[None]:
        """The calls inside belong to the forward that started last."""
        self._sharing = True
        try:
            yield
        finally:
            self._sharing = False

    def get(self, make: Callable[..., list[Group]], *inputs: object) -> list[Group]:
        if not self._sharing:
            return make(*inputs)
        key = (make, *_identities(inputs))
        if key not in self._plans:
            # The inputs are kept alive with the plan, so that no id is reused.
            self._plans[key] = (inputs, make(*inputs))
        return self._plans[key][1]


def _identities(inputs: tuple) -> Iterator[object]:
    return (id(value) if isinstance(value, Tensor) else value for value in inputs)
