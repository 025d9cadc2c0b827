"""Draft trees: their shape, their mask, and greedy verification."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

QLEN_ONLY = 1
"""SGLang's tree mask mode on a CPU: [tokens, tokens] per request, the prefix left out."""
NONE = -1


def build_tree_kernel_efficient_cpu(
    parent_list: Tensor,
    selected_index: Tensor,
    seq_lens: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Fill mask, positions and child links of each request's tree of ``draft_token_num`` tokens.

    Token 0 is the root (the bonus token).  Token i is ``selected_index[i - 1]`` in the list of
    candidates, ``topk`` of them for each expanded node; ``parent_list`` names those nodes.
    """
    if tree_mask_mode != QLEN_ONLY:
        raise NotImplementedError(
            f"build_tree_kernel_efficient_cpu: tree mask mode {tree_mask_mode} is not supplied"
        )
    requests, tokens = seq_lens.numel(), draft_token_num
    parent = _parents(parent_list, selected_index, topk)
    mask, level = _ancestors(parent.clamp(min=0), depth)
    tree_mask.view(-1)[: mask.numel()] = mask.flatten().to(tree_mask.dtype)
    positions.view(-1)[: level.numel()] = (seq_lens[:, None] + level).flatten()
    first_child, next_sibling = _links(parent)
    retrive_index.copy_(torch.arange(requests * tokens).view(requests, tokens))
    retrive_next_token.copy_(first_child)
    retrive_next_sibling.copy_(next_sibling)


def _parents(parent_list: Tensor, selected_index: Tensor, topk: int) -> Tensor:
    """Parent of each token [requests, tokens]; the root is its own, -1 is a token whose parent
    was not selected."""
    root = torch.zeros(len(selected_index), 1, dtype=torch.long)
    node = selected_index // topk
    if parent_list.numel() == 0:
        return torch.cat([root, torch.zeros_like(selected_index)], dim=1)
    wanted = parent_list.gather(1, node.clamp(max=parent_list.shape[1] - 1))
    match = selected_index[:, None, :] == wanted[:, :, None]
    found = torch.where(match.any(-1), match.int().argmax(-1) + 1, NONE)
    return torch.cat([root, torch.where(node == 0, 0, found)], dim=1)


def _ancestors(parent: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Which tokens each token sees (itself, its ancestors, the root), and its level."""
    requests, tokens = parent.shape
    mask = torch.zeros(requests, tokens, tokens, dtype=torch.bool)
    level = torch.zeros_like(parent)
    current = torch.arange(tokens).expand(requests, tokens)
    for _ in range(depth):
        mask.scatter_(2, current[:, :, None], True)
        level += current > 0
        current = parent.gather(1, current)
    mask[:, :, 0] = True
    return mask, level


def _links(parent: Tensor) -> tuple[Tensor, Tensor]:
    """First child of each token and next sibling of each token, in token order; -1 is none."""
    token = torch.arange(parent.shape[1])
    child = (parent[:, None, :] == token[:, None]) & (token > 0)
    sibling = (parent[:, None, :] == parent[:, :, None]) & (token > token[:, None])
    sibling &= (parent >= 0)[:, :, None] & (token > 0)[:, None]
    return _first(child), _first(sibling)


def _first(flags: Tensor) -> Tensor:
    return torch.where(flags.any(-1), flags.int().argmax(-1), NONE)


def verify_tree_greedy_cpu(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Follow the target's argmax down each tree; one bonus token after the last match.

    A walk over a few integers per request, so plain Python lists.
    """
    rows = zip(
        candidates.tolist(),
        retrive_next_token.tolist(),
        retrive_next_sibling.tolist(),
        target_predict.view(candidates.shape).tolist(),
        strict=True,
    )
    limit = accept_index.shape[1]
    paths, chosen = [], []
    for tokens, child, sibling, target in rows:
        path = [0]
        while len(path) < limit:
            node = child[path[-1]]
            while node != NONE and tokens[node] != target[path[-1]]:
                node = sibling[node]
            if node == NONE:
                break
            path.append(node)
        paths.append(path)
        chosen.append([target[node] for node in path])
    write_accepted(predicts, accept_index, accept_token_num, retrive_index, paths, chosen)


def write_accepted(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    retrive_index: Tensor,
    paths: list[list[int]],
    chosen: list[list[int]],
) -> None:
    """Store each request's accepted nodes, root first, and the token chosen after each of them;
    ``accept_token_num`` leaves out the last one, the bonus."""
    width = accept_index.shape[1]
    index = retrive_index.tolist()
    slots = [[row[node] for node in path] for row, path in zip(index, paths, strict=True)]
    tokens = torch.tensor(list(chain(*chosen)), dtype=predicts.dtype)
    predicts.view(-1)[torch.tensor(list(chain(*slots)))] = tokens
    accept_index.copy_(torch.tensor([row + [NONE] * (width - len(row)) for row in slots]))
    accept_token_num.copy_(torch.tensor([len(path) - 1 for path in paths]))
