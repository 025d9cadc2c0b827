"""What is kept of a draft tree while it is drafted and verified."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.signals import TAP
from sglang_speckv.srt.tree_tap import TreeTap, sample

SIZE, TOKENS = 2, 4
FIRST = torch.tensor([[0.7, 1.0], [0.6, 2.0]])
SCORES = [
    torch.tensor([[[0.5, 0.3]], [[0.6, 0.1]]]),
    torch.tensor([[[0.4, 0.05], [0.2, 0.01]], [[0.5, 0.2], [0.05, 0.04]]]),
]
"""[size, nodes, children] of two steps at topk 2."""


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Iterator[TreeTap]:
    from sglang.srt.speculative import eagle_worker_v2

    monkeypatch.setattr(
        eagle_worker_v2, "organize_draft_results", eagle_worker_v2.organize_draft_results
    )
    fuse = Fuse(lambda: None)
    fuse.armed = True
    yield TreeTap(4, 8, "cpu", fuse)


def draft(tap: TreeTap) -> Any:
    from sglang.srt.speculative import eagle_worker_v2

    tokens = [torch.arange(2).expand(SIZE, 2), torch.arange(4).expand(SIZE, 4)]
    parents = [torch.zeros(SIZE, 1), torch.zeros(SIZE, 2)]
    return eagle_worker_v2.organize_draft_results(SCORES, tokens, parents, TOKENS)


def verify(tap: TreeTap, accept_index: list[list[int]]) -> None:
    """Levels of both trees: 1, 1 and 2."""
    positions = torch.tensor([[9, 10, 10, 11], [5, 6, 7, 7]]).flatten()
    verify_input = SimpleNamespace(draft_token_num=TOKENS, positions=positions)
    tap.mark(verify_input)
    result = None, None, torch.tensor(accept_index, dtype=torch.int32)
    assert sample(lambda *_: result, verify_input, None) is result


def test_of_every_verified_node_probability_level_and_whether_it_was_accepted(tap: TreeTap) -> None:
    _, picked, _ = draft(tap)
    verify(tap, [[0, 2, -1], [4, 5, 6]])
    told = tap.finish_round(SIZE, TOKENS - 1, FIRST)
    assert told.shape == (SIZE, TOKENS, 3)
    flat = torch.cat([scores.flatten(1) for scores in SCORES], 1)
    torch.testing.assert_close(told[:, :-1, 0], flat.gather(1, picked))
    assert told[:, :-1, 1].tolist() == [[1, 1, 2], [1, 2, 2]]
    assert told[:, :-1, 2].tolist() == [[0, 1, 0], [1, 1, 0]]
    assert told[:, -1, 0].tolist() == FIRST[:, 0].tolist()


def test_a_round_that_was_not_verified_says_nothing_of_its_nodes(tap: TreeTap) -> None:
    draft(tap)
    verify(tap, [[0, 2, -1], [4, 5, 6]])
    tap.finish_round(SIZE, TOKENS - 1, FIRST)
    told = tap.finish_round(SIZE, TOKENS - 1, FIRST)
    assert told[:, :-1].isnan().all() and not told[:, -1].isnan().any()


def test_a_round_without_drafts_has_the_coming_one_alone(tap: TreeTap) -> None:
    told = tap.finish_round(SIZE, 0, FIRST)
    assert told.shape == (SIZE, 1, 3) and told[:, 0, 0].tolist() == FIRST[:, 0].tolist()


def test_a_verification_that_is_not_marked_is_left_alone() -> None:
    result = object()
    assert sample(lambda *_: result, SimpleNamespace(), None) is result


def test_a_fault_of_the_tap_leaves_drafts_and_results_as_they_are(tap: TreeTap) -> None:
    tap._probs = torch.zeros(1, 1)
    _, picked, tokens = draft(tap)
    assert picked.shape == tokens.shape == (SIZE, TOKENS - 1)
    assert tap._fuse.failures == {TAP: 1}
    tap._note = None  # type: ignore[assignment,method-assign]
    verify(tap, [[0, 2, -1], [4, 5, 6]])
    assert tap._fuse.failures == {TAP: 2}
