"""What a draft tree says of its nodes: joint probabilities, levels, and which were accepted.

SGLang verifies the nodes with the greatest joint probability; the tap keeps these numbers where
SGLang picks the nodes, inside of a captured draft graph too. Levels and accepted nodes are there
once the target has verified. All of it stays on the device until the round's result is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.rounds import TREE_SIGNALS
from sglang_speckv.srt.signals import TAP

TREE = "speckv_tree"
"""Attribute of a verification's input: the tap."""


def sample(
    original: Callable[..., Any], verify_input: Any, batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """AROUND ``eagle_sample``."""
    sampled = original(verify_input, batch, *args, **kwargs)
    tap: TreeTap | None = getattr(verify_input, TREE, None)
    if tap is not None:
        tap.verified(verify_input, sampled[2])
    return sampled


class TreeTap:
    """Install it before graphs are captured. ``max_batch`` bounds the rows of a captured graph,
    ``max_drafts`` the nodes of a tree."""

    def __init__(self, max_batch: int, max_drafts: int, device: Any, fuse: Fuse) -> None:
        self._probs = torch.zeros((max_batch, max_drafts), dtype=torch.float32, device=device)
        self._fuse = fuse
        self._levels: Tensor | None = None
        self._accepted: Tensor | None = None
        from sglang.srt.speculative import eagle_worker_v2

        self._organize = eagle_worker_v2.organize_draft_results
        eagle_worker_v2.organize_draft_results = self.organize_draft_results

    def organize_draft_results(
        self, score_list: list[Tensor], token_list: Any, parents_list: Any, num_draft_token: int
    ) -> Any:
        """In the place of SGLang's."""
        result = self._organize(score_list, token_list, parents_list, num_draft_token)
        with self._fuse.guard(TAP):
            picked = result[1]
            joint = torch.cat(score_list, dim=1).flatten(1).gather(1, picked)
            self._probs[: len(picked), : picked.shape[1]].copy_(joint)
        return result

    def mark(self, verify_input: Any) -> None:
        setattr(verify_input, TREE, self)

    def verified(self, verify_input: Any, accept_index: Tensor) -> None:
        """``accept_index`` [bs, levels + 1]: nodes of the whole batch, -1 for none."""
        with self._fuse.guard(TAP):
            self._note(verify_input, accept_index)

    def _note(self, verify_input: Any, accept_index: Tensor) -> None:
        tokens = verify_input.draft_token_num
        bs = len(accept_index)
        positions = verify_input.positions.view(bs, tokens)
        self._levels = positions[:, 1:] - positions[:, :1]
        node = torch.where(accept_index < 0, 0, accept_index.long() % tokens)
        accepted = torch.zeros((bs, tokens), dtype=torch.float32, device=accept_index.device)
        self._accepted = accepted.scatter_(1, node, 1.0)[:, 1:]

    def finish_round(self, size: int, drafts: int, first: Tensor) -> Tensor:
        """[size, drafts + 1, 3]: the nodes of this round, then the coming round's first draft as
        ``first`` [size, 2] says it."""
        told = torch.zeros(
            (size, drafts + 1, TREE_SIGNALS), dtype=torch.float32, device=first.device
        )
        told[:, -1, : first.shape[1]] = first
        levels, accepted = self._levels, self._accepted
        self._levels = self._accepted = None
        if drafts and levels is not None and accepted is not None and levels.shape[1] == drafts:
            told[:, :-1, 0] = self._probs[:size, :drafts]
            told[:, :-1, 1] = levels
            told[:, :-1, 2] = accepted
        elif drafts:
            told[:, :-1] = torch.nan
        return told
