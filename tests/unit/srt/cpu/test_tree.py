"""Trees and greedy verification against recursive definitions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sglang_speckv.srt.cpu.kernels import tree


def random_drafts(topk: int, steps: int, tokens: int, requests: int) -> tuple[Tensor, Tensor]:
    """``parent_list`` and ``selected_index`` as SGLang's draft loop makes them: every step expands
    ``topk`` of the candidates so far into ``topk`` children each; the best ``tokens - 1``
    candidates by the product of probabilities are kept, which includes their ancestors."""
    parents, chosen = [], []
    for _ in range(requests):
        score, nodes = [], [-1]  # candidate scores; the expanded nodes in order, -1 the root
        frontier = [(-1, 1.0)]
        for step in range(steps):
            fresh = []
            for _, path in frontier:
                for _ in range(topk):
                    score.append(path * (0.5 + 0.49 * float(torch.rand(()))))
                    fresh.append(len(score) - 1)
            frontier = sorted(((c, score[c]) for c in fresh), key=lambda x: -x[1])[:topk]
            if step < steps - 1:
                nodes += [candidate for candidate, _ in frontier]
        best = sorted(range(len(score)), key=lambda c: -score[c])[: tokens - 1]
        parents.append(nodes if steps > 1 else [])
        chosen.append(sorted(best))
    return torch.tensor(parents, dtype=torch.long), torch.tensor(chosen)


def parents_of(nodes: list[int], chosen: list[int], topk: int) -> list[int]:
    parent = [0]
    for candidate in chosen:
        expanded = candidate // topk
        parent.append(0 if expanded == 0 else chosen.index(nodes[expanded]) + 1)
    return parent


def build(parent_list: Tensor, selected: Tensor, lens: Tensor, topk: int, depth: int):
    requests, tokens = len(lens), selected.shape[1] + 1
    mask = torch.ones(requests * tokens * tokens, dtype=torch.bool)
    positions = torch.empty(requests * tokens, dtype=torch.long)
    index, child, sibling = torch.full((3, requests, tokens), -1)
    tree.build_tree_kernel_efficient_cpu(
        parent_list,
        selected,
        lens,
        mask,
        positions,
        index,
        child,
        sibling,
        topk,
        depth,
        tokens,
        tree.QLEN_ONLY,
    )
    return mask.view(requests, tokens, tokens), positions.view(requests, -1), index, child, sibling


shapes = st.sampled_from([(1, 1, 2), (1, 3, 4), (4, 1, 4), (4, 5, 8), (2, 3, 6), (8, 6, 32)])


@settings(max_examples=40)
@given(shape=shapes, requests=st.integers(1, 4), seed=st.integers(0, 999))
def test_tree_shape_mask_and_links(shape, requests, seed):
    torch.manual_seed(seed)
    topk, steps, tokens = shape
    parent_list, selected = random_drafts(topk, steps, tokens, requests)
    lens = torch.randint(1, 50, (requests,))
    mask, positions, index, child, sibling = build(parent_list, selected, lens, topk, steps)
    assert index.tolist() == torch.arange(requests * tokens).view(requests, -1).tolist()
    for r in range(requests):
        parent = parents_of(parent_list[r].tolist(), selected[r].tolist(), topk)
        for token in range(tokens):
            path = [token]
            while path[-1] != 0:
                path.append(parent[path[-1]])
            assert mask[r, token].nonzero().flatten().tolist() == sorted(path)
            assert positions[r, token] == lens[r] + len(path) - 1
            children = [t for t in range(1, tokens) if parent[t] == token]
            walk, node = [], int(child[r, token])
            while node != -1:
                walk.append(node)
                node = int(sibling[r, node])
            assert walk == children


@settings(max_examples=60)
@given(shape=shapes, requests=st.integers(1, 4), seed=st.integers(0, 999))
def test_greedy_verify_takes_the_longest_path_the_target_agrees_with(shape, requests, seed):
    torch.manual_seed(seed)
    topk, steps, tokens = shape
    parent_list, selected = random_drafts(topk, steps, tokens, requests)
    lens = torch.ones(requests, dtype=torch.long)
    _, _, index, child, sibling = build(parent_list, selected, lens, topk, steps)
    candidates = torch.randint(0, 4, (requests, tokens))
    target = torch.randint(0, 4, (requests, tokens))
    predicts = torch.zeros(requests * tokens, dtype=torch.int32)
    accepted = torch.full((requests, steps + 1), -1, dtype=torch.int32)
    counts = torch.empty(requests, dtype=torch.int32)
    tree.verify_tree_greedy_cpu(
        predicts, accepted, counts, candidates, index, child, sibling, target
    )
    for r in range(requests):
        parent = parents_of(parent_list[r].tolist(), selected[r].tolist(), topk)
        path = [0]
        while len(path) <= steps:
            agreed = [
                t
                for t in range(1, tokens)
                if parent[t] == path[-1] and candidates[r, t] == target[r, path[-1]]
            ]
            if not agreed:
                break
            path.append(agreed[0])
        assert counts[r] == len(path) - 1
        padding = [-1] * (steps + 1 - len(path))
        assert accepted[r].tolist() == [*(r * tokens + t for t in path), *padding]
        assert [int(predicts[r * tokens + t]) for t in path] == target[r, path].tolist()
