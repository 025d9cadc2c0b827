"""Graphs that SGLang captures again while it serves: those of every depth.

It does so after new weights where it is asked to (``recapture_cuda_graph`` of
``/update_weights_from_disk``; those of a quantised model may lie elsewhere then), and where a
prefill server becomes a decode server. It captures the target's graphs of one depth, those of the
round before, and lays the buffers of that depth's attention anew. The graph that it keeps for a
return to that depth would then read buffers that nobody fills, and other depths the old weights.

The draft's graphs it never captures again.
"""

from __future__ import annotations

from typing import Any


def for_every_depth(worker: Any) -> None:
    """``worker`` is the SpecKV worker, the graphs of all its depths captured."""
    runner = worker._target_worker.model_runner
    original = runner.init_decode_cuda_graph

    def capture() -> None:
        served = worker.tier
        states = worker.adaptive_controller._states
        for tier, state in states.items():
            if tier != served:
                with worker._fuse.guard("capturing graphs again"):
                    capture_one(state)
        capture_one(states[served])

    def capture_one(state: Any) -> None:
        """Where this fails, rounds at that depth run without graphs."""
        state.target_graph_runner = None  # the old one's memory, before the new one takes its own
        worker.apply_runtime_state(state)
        original()
        state.target_graph_runner = runner.decode_cuda_graph_runner

    runner.init_decode_cuda_graph = capture
