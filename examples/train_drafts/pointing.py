"""Where the coming token already stands: an auxiliary loss that teaches one KV group to look there.

A summary repeats its passage and code its names, yet a million tokens alone do not teach a shallow
draft to find the place. Shown it, the group does so within some hundred steps, and the draft's own
loss then makes use of what it finds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def right_copies(tokens: Tensor) -> Tensor:
    """Of tokens [B, T + 1]: [B, T, T], whether row t would be right to copy the token at p <= t.

    That is, p holds the token that follows t, and follows a token equal to the one at t.
    """
    pairs = tokens[:, :-1] * (tokens.max() + 1) + tokens[:, 1:]
    same = (pairs[:, :, None] == pairs[:, None, :]).tril(-1)
    return F.pad(same, (1, -1))


def causal_shares(q: Tensor, k: Tensor) -> Tensor:
    """Attention [B, heads, T, T] of rotated q [B, heads, T, D] to k [B, 1, T, D]."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)


def pointing_loss(shares: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """Of attention [N, heads, T] and where it belongs [N, T]: loss summed, and the mean share.

    -log of the heads' mean share on `right`, over rows that have such a place: one head may do it.
    """
    rows = right.any(-1)
    pointed = (shares[rows].mean(1) * right[rows]).sum(-1)
    return -(pointed + 1e-4).log().sum(), pointed.detach().mean().item()
