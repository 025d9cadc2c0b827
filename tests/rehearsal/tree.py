"""The mask of a draft tree as the device has it: over the prefix too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def with_prefix(
    build: Callable[..., None],
    qlen_only: Any,
    parents: Tensor,
    selected: Tensor,
    lens: Tensor,
    mask: Tensor,
    *rest: Any,
) -> None:
    """``build`` makes the mask [requests, tokens, tokens] of the drafted tokens alone."""
    *links, topk, depth, tokens, mode = rest
    if mode == qlen_only:  # where the backend says so, as FA3 does
        build(parents, selected, lens, mask, *rest)
        return
    drafted = torch.empty(len(lens), tokens, tokens, dtype=torch.bool)
    build(parents, selected, lens, drafted.view(-1), *links, topk, depth, tokens, qlen_only)
    start = 0
    for own, n in zip(drafted, lens.tolist(), strict=True):
        end = start + tokens * (n + tokens)
        mask[start:end].view(tokens, n + tokens)[:, :n] = True
        mask[start:end].view(tokens, n + tokens)[:, n:] = own
        start = end
