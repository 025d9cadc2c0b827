"""How much the tap asks of torch in a round: operators on the host and reductions, by depth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_speckv.srt import signals
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.rounds import RoundTracker
from sglang_speckv.srt.signals import SignalTap
from tests.operators import Operators, count_reductions, most
from tests.unit.srt.test_signals import Draft

SIZE = 2
FEWER = 3
"""Than in the engine, out of which these parts are taken."""


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "reduce_logits", signals.reduce_logits)  # put back at the end
    count_reductions()


def a_round(num_steps: int, graph: bool) -> Operators:
    """Of a tap on a draft that is not SGLang's, after a first one that allocates."""
    draft, tracker = Draft(graph), RoundTracker()
    tap = SignalTap(draft, max_steps=5, max_batch=8, slots=10, fuse=Fuse(lambda: None))
    batch = SimpleNamespace(req_pool_indices=torch.tensor([3, 7]))
    reqs: list[Any] = [SimpleNamespace(), SimpleNamespace()]
    with Operators() as mode:
        tap.begin_round(batch.req_pool_indices)
        if num_steps:
            draft.draft_forward(num_steps, SIZE)
        draft._draft_extend_for_decode(batch, num_steps)
        tracker.launched(reqs, num_steps, tap.finish_round(batch.req_pool_indices, num_steps))
    return mode


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, 3, 5])
def test_operators_of_a_round(num_steps: int, graph: bool) -> None:
    counts = a_round(num_steps, graph).counts
    assert 0 < counts.ours <= most(num_steps, captured=False) - FEWER
    assert counts.reductions == max(num_steps, 1)


def test_one_more_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = SignalTap.begin_round
    before = a_round(3, graph=True).counts.ours
    assert before == most(3, captured=False) - FEWER

    def begin_round(self: SignalTap, slots: torch.Tensor) -> None:
        begin(self, slots)
        self._round_first += 0

    monkeypatch.setattr(SignalTap, "begin_round", begin_round)
    # As far as a frame tells, it is that module's.
    monkeypatch.setitem(begin_round.__globals__, "__name__", signals.__name__)
    assert a_round(3, graph=True).counts.ours == before + 1
