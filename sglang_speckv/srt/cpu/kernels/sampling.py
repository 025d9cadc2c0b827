"""Sampled verification, top-k and top-p, and the hash behind seeded sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_speckv.srt.cpu.kernels.tree import NONE, write_accepted

NUCLEUS_GUESS = 1024
"""Top-p looks at this many candidates before it sorts the whole vocabulary."""


def tree_speculative_sampling_target_only(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """Accept drafts so that the text follows ``target_probs`` [requests, tokens, vocab].

    At each node its children are tried in turn against one coin: a child is taken when the
    probability summed over the children tried so far exceeds the coin.  When none is taken, the
    last token is drawn from what remains of the target's distribution.
    """
    requests, tokens = candidates.shape
    of_child = target_probs.gather(2, candidates[:, None, :].expand(-1, tokens, -1).long())
    walks = [
        _walk(*row, accept_index.shape[1], threshold_single, max(threshold_acc, 1e-9))
        for row in zip(
            candidates.tolist(),
            retrive_next_token.tolist(),
            retrive_next_sibling.tolist(),
            uniform_samples.tolist(),
            of_child.tolist(),
            strict=True,
        )
    ]
    paths = [path for path, _ in walks]
    ends = target_probs[torch.arange(requests), torch.tensor([path[-1] for path in paths])]
    remaining = _without(ends, [refused for _, refused in walks])
    final = _draw(remaining, uniform_samples_for_final_sampling).tolist()
    drafted = candidates.tolist()
    chosen = [
        [*(row[node] for node in path[1:]), last]
        for row, path, last in zip(drafted, paths, final, strict=True)
    ]
    write_accepted(predicts, accept_index, accept_token_num, retrive_index, paths, chosen)


def chain_speculative_sampling(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """Rejection sampling of a chain (Leviathan et al. 2023, algorithm 1).

    A draft is kept with probability min(1, p/q), for the target's p [requests, drafts + 1, vocab]
    and the q [requests, drafts, vocab] it was drawn from.  The last token is drawn from (p - q)+
    behind a refused draft, and from p behind a chain that was kept whole. A chain ends where its
    links do.
    """
    drafts = candidates[:, 1:, None].long()
    p = target_probs[:, :-1].gather(2, drafts).squeeze(2)
    q = draft_probs.gather(2, drafts).squeeze(2)
    linked = (retrive_next_token[:, :-1] != NONE).int().cumprod(1)
    kept = (q > 0) & (uniform_samples[:, :-1] * q < p)
    counts = (linked * kept).cumprod(1).sum(1)
    rest = target_probs[torch.arange(len(counts)), counts]
    short = (counts < linked.sum(1)).nonzero().flatten()
    residual = (rest[short] - draft_probs[short, counts[short]]).clamp(min=0)
    # p = q leaves nothing to draw from; only rounding refuses a draft there
    rest[short] = torch.where(residual.any(-1, keepdim=True), residual, rest[short])
    final = _draw(rest, uniform_samples_for_final_sampling).tolist()
    lengths = counts.tolist()
    paths = [list(range(length + 1)) for length in lengths]
    chosen = [
        [*row[1 : length + 1], last]
        for row, length, last in zip(candidates.tolist(), lengths, final, strict=True)
    ]
    write_accepted(predicts, accept_index, accept_token_num, retrive_index, paths, chosen)


def _walk(
    tokens: list[int],
    child: list[int],
    sibling: list[int],
    coins: list[float],
    of_child: list[list[float]],
    limit: int,
    threshold_single: float,
    threshold_acc: float,
) -> tuple[list[int], list[int]]:
    """The accepted nodes, root first, and the tokens that were refused at the last of them."""
    path, refused = [0], list[int]()
    while len(path) < limit:
        here, total, refused = path[-1], 0.0, []
        node = child[here]
        while node != NONE:
            single = of_child[here][node]
            total += single
            if single > 0 and (coins[here] < total / threshold_acc or single >= threshold_single):
                break
            refused.append(tokens[node])
            node = sibling[node]
        if node == NONE:
            return path, refused
        path.append(node)
    return path, []


def _without(probs: Tensor, refused: list[list[int]]) -> Tensor:
    """``probs`` with each row's refused tokens at zero.  A row of which rounding leaves nothing
    stays as it is."""
    cells = [(row, token) for row, tokens in enumerate(refused) for token in tokens]
    if not cells:
        return probs
    remaining = probs.index_put(tuple(torch.tensor(cells).T), torch.zeros(()))
    return torch.where(remaining.any(-1, keepdim=True), remaining, probs)


def _draw(weights: Tensor, coins: Tensor) -> Tensor:
    """One index per row, with probability proportional to its weight; coins in [0, 1)."""
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, coins[:, None].double() * total, right=True)
    last_positive = (cumulative < total).sum(-1, keepdim=True)
    return torch.minimum(index, last_positive).squeeze(1)


def top_k_renorm_prob(probs: Tensor, top_k: Tensor | int) -> Tensor:
    """Keep each row's ``top_k`` largest probabilities (ties of the last one too) and rescale."""
    vocabulary = probs.shape[-1]
    counts = torch.as_tensor(top_k).expand(len(probs)).clamp(1, vocabulary).long()
    limited = counts[counts < vocabulary]
    if limited.numel() == 0:
        return probs
    largest = probs.topk(int(limited.max()), dim=-1).values
    smallest = largest.gather(1, (counts - 1).clamp(max=largest.shape[1] - 1)[:, None])
    smallest[counts == vocabulary] = 0.0
    return _rescaled(probs, smallest)


def top_p_renorm_prob(probs: Tensor, top_p: Tensor | float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches ``top_p``, and rescale."""
    mass = torch.as_tensor(top_p).expand(len(probs))[:, None].to(probs.dtype)
    largest = probs.topk(min(NUCLEUS_GUESS, probs.shape[-1]), dim=-1).values
    if bool((largest.sum(-1, keepdim=True) < mass).any()):
        largest = probs.sort(dim=-1, descending=True).values
    before = largest.cumsum(-1) - largest
    kept = (before < mass).sum(-1, keepdim=True).clamp(min=1)
    return _rescaled(probs, largest.gather(1, kept - 1))


def _rescaled(probs: Tensor, smallest: Tensor) -> Tensor:
    kept = torch.where(probs >= smallest, probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def murmur_hash32_cpu(seed: Tensor, positions: Tensor, col_indices: Tensor) -> Tensor:
    """MurmurHash3 (32 bit) of the blocks seed low, seed high, position, column: uint32
    [seeds, columns].  Products wrap in int64, which keeps their low 32 bits."""
    seed, rows = seed.view(torch.int64)[:, None], positions.to(torch.int64)[:, None]
    state = torch.zeros(1, dtype=torch.int64)
    for block in (seed, seed >> 32, rows, col_indices.to(torch.int64)[None, :]):
        state = _murmur_mix(state, block & 0xFFFFFFFF)
    state = state ^ 16
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ (state >> shift)) * factor & 0xFFFFFFFF
    return (state ^ (state >> 16)).to(torch.uint32)


def _murmur_mix(state: Tensor, block: Tensor) -> Tensor:
    block = _rotate_left(block * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF
    return _rotate_left(state ^ block, 13) * 5 + 0xE6546B64 & 0xFFFFFFFF


def _rotate_left(value: Tensor, bits: int) -> Tensor:
    return (value << bits | value >> (32 - bits)) & 0xFFFFFFFF
