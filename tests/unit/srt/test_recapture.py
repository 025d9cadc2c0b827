"""Graphs captured again are those of every depth, and each depth keeps its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_speckv.srt import recapture
from sglang_speckv.srt.fuse import Fuse

STEPS = (0, 1, 3)


class Worker:
    """SGLang's worker and its target's runner; a graph is named by its depth and its capture."""

    def __init__(self, served: int) -> None:
        self.captures = 0
        self.broken: int | None = None
        self.held = False
        self._fuse = Fuse(self.hold)
        self._fuse.armed = True
        states = {k: SimpleNamespace(steps=k, target_graph_runner=(k, 0)) for k in STEPS}
        self.adaptive_controller = SimpleNamespace(_states=states)
        self.runner = SimpleNamespace(init_decode_cuda_graph=self.capture)
        self._target_worker = SimpleNamespace(model_runner=self.runner)
        self.apply_runtime_state(states[served])
        recapture.for_every_depth(self)

    def hold(self) -> None:
        self.held = True

    def apply_runtime_state(self, state: Any) -> None:
        self.tier = state.steps
        self.runner.decode_cuda_graph_runner = state.target_graph_runner

    def capture(self) -> None:
        """SGLang's own, which lets go of the old graph first."""
        self.runner.decode_cuda_graph_runner = None
        held = self.adaptive_controller._states[self.tier]
        assert held.target_graph_runner is None, "two graphs of one depth take memory at once"
        if self.tier == self.broken:
            raise RuntimeError("out of memory")
        self.captures += 1
        self.runner.decode_cuda_graph_runner = (self.tier, 1)

    def graphs(self) -> list[Any]:
        states = self.adaptive_controller._states
        return [states[steps].target_graph_runner for steps in STEPS]


@pytest.mark.parametrize("served", STEPS)
def test_every_depth_has_its_new_graph(served: int) -> None:
    worker = Worker(served)
    worker.runner.init_decode_cuda_graph()
    assert worker.captures == len(STEPS)
    assert worker.graphs() == [(steps, 1) for steps in STEPS]
    assert worker.tier == served
    assert worker.runner.decode_cuda_graph_runner == (served, 1)


def test_a_depth_that_fails_runs_without_a_graph() -> None:
    worker = Worker(served=1)
    worker.broken = 3
    worker.runner.init_decode_cuda_graph()
    assert worker.graphs() == [(0, 1), (1, 1), None]
    assert worker.runner.decode_cuda_graph_runner == (1, 1)
    assert worker.held and worker._fuse.failures == {"capturing graphs again": 1}


def test_where_the_served_depth_fails_the_update_fails_as_in_sglang() -> None:
    worker = Worker(served=1)
    worker.broken = 1
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.runner.init_decode_cuda_graph()
