"""SGLang's runtime states, one for every tier.

SGLang keeps a state by its steps and builds it for a chain. Trees of as many steps may differ in
how many tokens they verify, so here a state is kept by its tier and built for the tier's shape.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController

from sglang_speckv.config import Shape, SpecKVConfig


class TierController(AdaptiveController):
    """``worker`` has a ``tier``."""

    def __init__(self, worker: Any, policy: Any, config: SpecKVConfig) -> None:
        super().__init__(worker, policy)
        self._config = config

    def register(self, state: Any, steps: int | None = None) -> None:
        self._states[self._config.tier_of(Shape.of(state))] = state

    def init_states(self, cuda_graph_bs: list[int] | None = None) -> None:
        self.params.set_cuda_graph_bs(cuda_graph_bs)
        for tier in self._config.tiers:
            if tier not in self._states:
                steps, tokens = self._config.shape_of(tier)
                self._states[tier] = self.worker.build_adaptive_runtime_state(
                    speculative_num_steps=steps,
                    speculative_num_draft_tokens=tokens,
                    cuda_graph_bs=self.params.cuda_graph_bs_for_step(tier),
                )
        self._activate(self.worker.tier)

    def activate_step_by_batch(self, batch_size: int) -> None:
        tier = self.params.get_steps_for_batch(batch_size)
        if tier != self.worker.tier:
            self._activate(tier)
