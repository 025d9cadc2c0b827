"""The tap on a draft worker of the engine's shape: eager and graph paths, phases, slots, and that
nothing it does waits for the device."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_speckv.srt import signals as tapped
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.reduction import reduce_torch
from sglang_speckv.srt.rounds import RoundTracker
from sglang_speckv.srt.signals import SignalTap

VOCAB = 17
FUSE = Fuse(lambda: None)


class Graph:
    """A draft-extend graph: selects the rows before its lm_head."""

    def __init__(self, draft: "Draft") -> None:
        self.draft = draft

    def execute(self, forward_batch: Any, select_index: torch.Tensor) -> Any:
        return SimpleNamespace(next_token_logits=self.draft.logits()[select_index])


class Draft:
    """Calls what SGLang's EagleDraftWorker calls, in its order, with logits drawn anew."""

    device = "cpu"

    def __init__(self, graph: bool) -> None:
        self.rows = 0
        self.seen: list[torch.Tensor] = []
        self.generator = torch.Generator().manual_seed(5)
        self.draft_runner = SimpleNamespace(
            forward=lambda *_: SimpleNamespace(
                logits_output=SimpleNamespace(next_token_logits=self.logits())
            )
        )
        self.cuda_graph_runner_for_draft_extend = Graph(self) if graph else None

    def logits(self) -> torch.Tensor:
        self.seen.append(torch.randn(self.rows, VOCAB, generator=self.generator) * 3)
        return self.seen[-1]

    def draft_forward(self, num_steps: int, batch_size: int) -> None:
        self.rows = batch_size
        for _ in range(num_steps - 1):
            self.draft_runner.forward("batch")

    def _draft_extend_for_prefill(self, batch: Any) -> None:
        self.rows = len(batch.req_pool_indices)
        self.draft_runner.forward("batch")

    def _draft_extend_for_decode(self, batch: Any, num_steps: int) -> None:
        size = len(batch.req_pool_indices)
        self.rows = size * (num_steps + 1)
        select = torch.arange(size) * (num_steps + 1) + num_steps // 2
        runner = self.cuda_graph_runner_for_draft_extend
        if runner is not None:
            output = runner.execute("batch", select)
        else:
            output = self.draft_runner.forward("batch").logits_output
            output.next_token_logits = output.next_token_logits[select]
        self.seen[-1] = output.next_token_logits


def of(logits: torch.Tensor) -> np.ndarray:
    out = torch.empty(len(logits), 2)
    reduce_torch(logits, out)
    return out.numpy()


def batch(*slots: int) -> SimpleNamespace:
    return SimpleNamespace(req_pool_indices=torch.tensor(slots))


def decode(tap: SignalTap, draft: Draft, num_steps: int, *slots: int) -> np.ndarray:
    draft.seen.clear()
    tap.begin_round(batch(*slots).req_pool_indices)
    if num_steps > 0:
        draft.draft_forward(num_steps, len(slots))
    draft._draft_extend_for_decode(batch(*slots), num_steps)
    return tap.finish_round(batch(*slots).req_pool_indices, num_steps).numpy()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_every_position_is_where_its_logits_were_made(graph: bool, num_steps: int) -> None:
    draft = Draft(graph)
    tap = SignalTap(draft, max_steps=5, max_batch=8, slots=10, fuse=FUSE)
    draft._draft_extend_for_prefill(batch(3, 7))
    first = of(draft.seen[-1])
    np.testing.assert_array_equal(tap.take_first(2)[:, 0].numpy(), first)
    signals = decode(tap, draft, num_steps, 3, 7)
    assert signals.shape == (2, num_steps + 1, 2)
    expected = [of(logits) for logits in draft.seen]
    if num_steps > 0:
        expected = [first, *expected]
    np.testing.assert_allclose(signals, np.stack(expected, axis=1), rtol=1e-6)
    assert tap.draft_vocab_size == VOCAB


@pytest.mark.parametrize("graph", [False, True])
def test_after_each_draft_it_tells_what_the_drafts_said_so_far(graph: bool) -> None:
    draft = Draft(graph)
    tap = SignalTap(draft, max_steps=5, max_batch=8, slots=10, fuse=FUSE)
    draft._draft_extend_for_prefill(batch(3, 7))
    told: dict[int, np.ndarray] = {}
    tap.on_draft = lambda drafts: told.update({drafts: tap.made(2, drafts).numpy()})
    signals = decode(tap, draft, 5, 3, 7)
    assert list(told) == [2, 3, 4, 5], "the first one is there before the round"
    for drafts, probs in told.items():
        np.testing.assert_array_equal(probs, signals[:, :drafts, 0])
    told.clear()
    decode(tap, draft, 1, 3, 7)
    assert not told


@pytest.mark.parametrize("graph", [False, True])
def test_first_drafts_follow_their_request_slot(graph: bool) -> None:
    draft = Draft(graph)
    tap = SignalTap(draft, max_steps=3, max_batch=8, slots=10, fuse=FUSE)
    draft._draft_extend_for_prefill(batch(1, 2, 3))
    _, two, three = of(draft.seen[-1])
    draft._draft_extend_for_prefill(batch(4))
    (four,) = of(draft.seen[-1])
    signals = decode(tap, draft, 2, 4, 3, 2)  # 1 is gone, 4 came, the order changed
    np.testing.assert_allclose(signals[:, 0], [four, three, two])
    again = decode(tap, draft, 3, 2, 4)
    np.testing.assert_allclose(again[:, 0], signals[[2, 0], -1])


def test_a_skipped_draft_extend_leaves_no_stale_signal() -> None:
    draft = Draft(False)
    tap = SignalTap(draft, max_steps=3, max_batch=8, slots=10, fuse=FUSE)
    draft._draft_extend_for_prefill(batch(1))
    tap.begin_round(torch.tensor([1]))
    assert np.isnan(tap.finish_round(torch.tensor([1]), 0).numpy()).all()
    assert np.isnan(decode(tap, draft, 2, 1)[:, 0]).all()


def test_a_request_from_elsewhere_does_not_inherit_its_slots_signal() -> None:
    draft = Draft(False)
    tap = SignalTap(draft, max_steps=3, max_batch=8, slots=10, fuse=FUSE)
    draft._draft_extend_for_prefill(batch(1, 2))
    slots = torch.tensor([1, 2])
    tap.begin_round(slots, [1])
    draft.draft_forward(2, 2)
    draft._draft_extend_for_decode(batch(1, 2), 2)
    first = tap.finish_round(slots, 2)[:, 0]
    assert not first[0].isnan().any() and first[1].isnan().all()
    assert not np.isnan(decode(tap, draft, 2, 1, 2)).any()  # its own from now on


def test_numbers_keep_their_digits_where_torchs_default_has_fewer() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        draft, tracker = Draft(False), RoundTracker()
        tap = SignalTap(draft, max_steps=3, max_batch=8, slots=10, fuse=FUSE)
        signals = torch.from_numpy(decode(tap, draft, 2, 1))
        assert {signals.dtype, tap.take_first(1).dtype} == {torch.float32}
        assert tracker.launched([object()], 2, signals).payload.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_reduction_that_fails_costs_the_signal_and_not_the_draft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blown: list[int] = []
    fuse = Fuse(lambda: blown.append(1))
    draft = Draft(True)
    tap = SignalTap(draft, max_steps=3, max_batch=8, slots=10, fuse=fuse)
    monkeypatch.setattr(tapped, "reduce_logits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # at start-up faults are loud
        decode(tap, draft, 2, 1)
    fuse.armed = True
    assert np.isnan(decode(tap, draft, 2, 1)[:, -1]).all()
    assert fuse.failures == {tapped.TAP: 2} and len(blown) == 2
    counted: list[int] = []
    tap.on_draft = counted.append
    decode(tap, draft, 3, 1)
    assert counted == [2, 3]


def test_forwards_outside_of_the_phases_are_left_alone() -> None:
    draft = Draft(True)
    tap = SignalTap(draft, max_steps=3, max_batch=8, slots=10, fuse=FUSE)
    draft.rows = 2
    draft.draft_runner.forward("a warm-up of somebody else's")
    assert tap.take_first(2).isnan().all()


class Waits(TorchDispatchMode):
    """Records operators that make a host wait for a device, were the tensors on one."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        name = func.name()
        boolean_index = "aten::index" in name and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for part in args[1:2]
            for i in (part or ())
        )
        if boolean_index or any(word in name for word in self.WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("graph", [False, True])
def test_no_host_waits_between_launch_and_result(graph: bool) -> None:
    draft, tracker = Draft(graph), RoundTracker()
    tap = SignalTap(draft, max_steps=5, max_batch=8, slots=10, fuse=FUSE)
    reqs = [object(), object()]
    slots = torch.tensor([3, 7])
    with Waits() as waits:
        draft._draft_extend_for_prefill(batch(3, 7))
        tracker.prefilled(reqs, tap.take_first(2))
        for num_steps in (0, 1, 5):
            tap.begin_round(slots)
            if num_steps:
                draft.draft_forward(num_steps, 2)
            draft._draft_extend_for_decode(batch(3, 7), num_steps)
            tracker.launched(reqs, num_steps, tap.finish_round(slots, num_steps))
    assert waits.operators > 20
    assert waits.found == []


def test_the_test_for_waits_can_fail() -> None:
    with Waits() as waits:
        torch.ones(3).sum().item()
        x = torch.ones(3)
        x[x > 0]
    assert len(waits.found) >= 2
