"""The tap's own work on the device, without a server: kernels, graphs, and that nobody waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sglang_speckv.srt import graph_stop
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.reduction import reduce_logits, reduce_torch
from sglang_speckv.srt.rounds import RoundTracker
from sglang_speckv.srt.signals import SignalTap
from sglang_speckv.srt.sleep import DraftSleep
from tests.gpu.conftest import needs_device
from tests.rehearsal.chain import (
    BATCH,
    STEPS,
    captured,
    check_stops,
    drafted,
    random_rule,
    stop_after,
)
from tests.unit.srt.test_signals import Draft

pytestmark = [pytest.mark.gpu, needs_device]
SHAPES = [(1, 2), (1, 33), (5, 1000), (3, 8192), (64, 32000), (8, 128256)]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.1, 4.0, 20.0])
@pytest.mark.parametrize("masked", [False, True])
def test_triton_equals_torch(
    shape: tuple[int, int], dtype: torch.dtype, scale: float, masked: bool
) -> None:
    logits = (torch.randn(shape, device="cuda") * scale).to(dtype)
    if masked:
        logits[:, 1::7] = -torch.inf
    got, expected = (torch.full((shape[0], 2), torch.nan, device="cuda") for _ in range(2))
    reduce_logits(logits, got)
    reduce_torch(logits, expected)
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_rows_and_output_with_strides() -> None:
    logits = torch.randn(4, 3, 5000, device="cuda")[:, 1]
    buffer, expected = torch.zeros(4, 3, 2, device="cuda"), torch.zeros(4, 2, device="cuda")
    reduce_logits(logits, buffer[:, 1])
    reduce_torch(logits, expected)
    torch.testing.assert_close(buffer[:, 1], expected, **TOLERANCE)
    assert not buffer[:, 0].any() and not buffer[:, 2].any()


def test_no_rows() -> None:
    reduce_logits(torch.zeros(0, 50, device="cuda"), torch.zeros(0, 2, device="cuda"))


class DeviceDraft(Draft):
    """The engine's shape on the device; ``pool`` holds the logits of each step of a round."""

    device = "cuda"

    def __init__(self, graph: bool, pool: torch.Tensor | None = None) -> None:
        super().__init__(graph)
        self.generator = torch.Generator("cuda").manual_seed(5)
        self.pool = pool

    def logits(self) -> torch.Tensor:
        if self.pool is None:
            return super().logits()
        self.seen.append(self.pool[len(self.seen)])
        return self.seen[-1]


def test_signals_of_a_replayed_graph_are_those_of_its_logits() -> None:
    steps, size = 5, 3
    pool = torch.zeros(steps - 1, size, 8192, device="cuda")
    draft = DeviceDraft(False, pool)
    tap = SignalTap(draft, max_steps=steps, max_batch=8, slots=10, fuse=Fuse(lambda: None))
    slots = torch.tensor([3, 7, 1], device="cuda")
    draft.draft_forward(steps, size)  # compiles the kernels
    draft.seen.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draft.draft_forward(steps, size)
    for _ in range(3):
        pool.copy_(torch.randn_like(pool) * 3)
        tap.begin_round(slots)
        graph.replay()
        signals = tap.finish_round(slots, steps)
        expected = torch.empty(steps - 1, size, 2, device="cuda")
        for step in range(steps - 1):
            reduce_torch(pool[step], expected[step])
        torch.testing.assert_close(signals[:, 1:steps], expected.transpose(0, 1), **TOLERANCE)


@pytest.fixture
def waiting_is_an_error() -> Any:
    before = torch.cuda.get_sync_debug_mode()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("graph", [False, True])
def test_nothing_waits_for_the_device(graph: bool, waiting_is_an_error: Any) -> None:
    with torch.device("cuda"):
        batch = SimpleNamespace(req_pool_indices=torch.tensor([3, 7]))
        draft, tracker = DeviceDraft(graph), RoundTracker()
        tap = SignalTap(draft, max_steps=5, max_batch=8, slots=10, fuse=Fuse(lambda: None))
        reqs: list[Any] = [SimpleNamespace(), SimpleNamespace()]
        _one_of_each(tap, tracker, draft, batch, reqs)  # compiles the kernels
        waiting_is_an_error()
        _one_of_each(tap, tracker, draft, batch, reqs)


def _one_of_each(
    tap: SignalTap, tracker: RoundTracker, draft: Draft, batch: Any, reqs: list[Any]
) -> None:
    """A prefill and rounds of several depths, from launch to launch."""
    slots = batch.req_pool_indices
    draft._draft_extend_for_prefill(batch)
    tracker.prefilled(reqs, tap.take_first(2))
    for num_steps in (0, 1, 5):
        tap.begin_round(slots)
        if num_steps:
            draft.draft_forward(num_steps, 2)
        draft._draft_extend_for_decode(batch, num_steps)
        tracker.launched(reqs, num_steps, tap.finish_round(slots, num_steps))


def test_a_draft_that_slept_catches_up_without_waiting(waiting_is_an_error: Any) -> None:
    worker = sleeper()
    batch, result = decoding()
    sleep_and_wake(worker, batch, result)
    waiting_is_an_error()
    sleep_and_wake(worker, batch, result)
    assert worker.caught_up == 2


def sleeper() -> Any:
    """What :class:`DraftSleep` uses of the engine's worker, asleep whenever it may."""
    drafted = SimpleNamespace(topk_p=None, topk_index=None)
    draft = SimpleNamespace(
        _draft_extend_for_decode=lambda batch, result: None,
        _draft_extend_for_prefill=lambda batch, states, newest: drafted,
        draft=lambda batch: None,
    )
    worker = SimpleNamespace(
        device="cuda",
        _draft_worker=draft,
        speckv=SimpleNamespace(awake=False, fuse=Fuse(lambda: None)),
        _stub_skipped_draft_extend=lambda batch, result: None,
        caught_up=0,
    )

    def draft_caught_up(batch: Any) -> None:
        worker.caught_up += 1

    worker.draft_caught_up = draft_caught_up
    DraftSleep(worker, slots=8)
    return worker


def decoding() -> tuple[Any, Any]:
    """A batch of two requests, and a round's result."""
    newest = torch.tensor([5, 6], device="cuda")
    lens = torch.tensor([11, 12])
    table = torch.zeros(8, 64, dtype=torch.int32, device="cuda")
    batch = SimpleNamespace(
        reqs=[SimpleNamespace(), SimpleNamespace()],
        seq_lens=lens.to("cuda"),
        seq_lens_cpu=lens,
        req_pool_indices=torch.tensor([3, 7], device="cuda"),
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        spec_info=SimpleNamespace(bonus_tokens=newest, topk_p=None, topk_index=None),
    )
    return batch, SimpleNamespace(next_draft_input=SimpleNamespace(bonus_tokens=newest))


def sleep_and_wake(worker: Any, batch: Any, result: Any) -> None:
    for worker.speculative_num_steps in (0, 0, 3):
        if worker.speculative_num_steps:
            worker._draft_worker.draft(batch)
        worker._draft_worker._draft_extend_for_decode(batch, result)


def test_conditional_nodes_work() -> None:
    assert graph_stop.no_nodes() is None and graph_stop.node_fails("cuda") is None


@pytest.mark.parametrize("steps", [2, STEPS])
@pytest.mark.parametrize(("size", "rows"), [(1, 1), (3, 4), (4, 4)])
def test_a_captured_loop_stops_by_itself(steps: int, size: int, rows: int) -> None:
    check_stops(*captured(steps, rows, "cuda"), size)


def test_the_device_decides_as_the_policy_does() -> None:
    rng, found = np.random.default_rng(4), []
    draft, stop = captured(STEPS, BATCH, "cuda")
    for _ in range(50):
        size = int(rng.integers(1, BATCH + 1))
        _, said = drafted(draft, stop, None, size)
        rule = random_rule(rng, size)
        drafted(draft, stop, rule, size)
        found.append(int(draft.forwards) + 1)
        assert found[-1] == rule.drafts(said[:, :STEPS, 0].double().cpu().numpy())
    assert len(set(found)) > 2


def test_a_round_that_may_stop_waits_for_nothing(waiting_is_an_error: Any) -> None:
    draft, stop = captured(STEPS, 2, "cuda")
    rule, firsts = stop_after(2, 2), torch.full((2, 2), 0.6, device="cuda")
    waiting_is_an_error()
    for told in (None, rule, rule, None):
        stop._tap._round_first = firsts
        stop.begin(told)
        draft.draft(2)


def test_the_test_for_waits_can_fail(waiting_is_an_error: Any) -> None:
    x = torch.ones(3, device="cuda")
    waiting_is_an_error()
    with pytest.raises(RuntimeError):
        x.sum().item()
