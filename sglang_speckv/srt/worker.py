"""SGLang's EAGLE and STANDALONE workers, taught to change depth every round.

The class that SGLang chose is subclassed, so that everything it does stays its own: this file
replaces the policy, makes a switch cheap, and notes which tier launched which round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang_speckv.srt import arguments, carrier, compat
from sglang_speckv.srt.timing import Launch, RoundTimer, SharedRoundTimer

if TYPE_CHECKING:
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2 as _Worker

    from sglang_speckv.srt.controller import EnginePolicy
else:
    _Worker = object  # a mixin: SGLang's class comes in when a worker is created

logger = logging.getLogger(__name__)


def create_worker(original: Callable[..., type], self: Any, server_args: Any) -> type:
    """AROUND ``SpeculativeAlgorithm.create_worker``: the same worker with SpecKV mixed in."""
    worker_class = original(self, server_args)
    if not arguments.is_active(server_args):
        return worker_class
    _hook_scheduler()
    return type(f"SpecKV{worker_class.__name__}", (SpecKVMixin, worker_class), {})


def _hook_scheduler() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_speckv.srt import state

    for target, hook, kind in (
        (compat.RESOLVE_TOKENS, note_result, HookType.BEFORE),
        (compat.COPY_TO_CPU, copy_launch, HookType.BEFORE),
        (compat.ADD_SPECULATIVE, state.add_speckv, HookType.AFTER),
        (compat.UPDATE_HANDLERS, state.add_handlers, HookType.AFTER),
    ):
        HookRegistry.register(target.path, hook, kind)
    HookRegistry.apply_hooks()
    compat.check_applied(compat.SCHEDULER_HOOKS)


class SpecKVMixin(_Worker):
    """Mixed in front of ``EAGLEWorkerV2`` or ``StandaloneWorkerV2``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from sglang.srt.runtime_context import get_parallel, get_spec
        from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController

        from sglang_speckv.srt.controller import EnginePolicy

        config = carrier.read(get_spec().speculative_adaptive_config)
        assert config is not None
        self.speckv: EnginePolicy = EnginePolicy(config, self.speculative_num_steps)
        self.adaptive_controller = AdaptiveController(self, self.speckv)
        # Read for batches that mix prefill in under attention DP, which SpecKV refuses;
        # StandaloneWorkerV2 lacks it.
        self.enable_dp_spec_prefill_coordination = False
        self._chain_buffers: dict[int, tuple[Any, Any]] = {}
        self._timer = (
            SharedRoundTimer(get_parallel().tp_group, self.device)
            if get_parallel().tp_size > 1
            else RoundTimer()
        )
        self._result: tuple[Any, Any] | None = None

    # -- launching a round

    def init_cuda_graphs(self) -> None:
        super().init_cuda_graphs()
        draft = self._draft_worker
        for num_steps in self.speckv.candidate_steps:
            draft.speculative_num_steps = num_steps
            draft.speculative_num_draft_tokens = num_steps + 1
            draft._rebuild_topk1_chain_buffers()
            self._chain_buffers[num_steps] = (
                draft._topk1_parents_prealloc,
                draft._topk1_score_indices_prealloc,
            )
        self._set_depth(self.speculative_num_steps)
        logger.info(
            "SpecKV is on: policy %s, candidate steps %s, launch steps %d",
            self.speckv.policy_name,
            self.speckv.candidate_steps,
            self.speckv.launch_steps,
        )

    def forward_batch_generation(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        prefill = batch.forward_mode.is_extend() or batch.is_extend_in_batch
        result = super().forward_batch_generation(batch, *args, **kwargs)
        if prefill:
            self._timer.prefilled()
        else:
            result.speckv_launch = self._timer.launched(self.speculative_num_steps)
        return result

    # -- learning from its result

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        noted, self._result = self._result, None
        if noted is None:
            return
        result, batch = noted
        launch: Launch | None = getattr(result, "speckv_launch", None)
        if launch is None:  # another path of SGLang's made this result
            return
        live = [
            correct
            for correct, req in zip(num_correct_drafts_per_req, batch.reqs, strict=True)
            if not (req.is_retracted or req.finished())
        ]
        for outcome in self._timer.finished(launch, len(batch.reqs), live):
            self.speckv.observe(outcome)

    # -- switching tiers

    def apply_runtime_state(self, state: Any) -> None:
        """As SGLang's, without its INFO line, its rebuilt chain buffers and its override log,
        which grows by an entry with every switch."""
        if self.speculative_num_steps == state.speculative_num_steps:
            return
        started = time.perf_counter()
        draft, target = self._draft_worker, self._target_worker.model_runner
        draft.draft_attn_backend = state.draft_attn_backend
        draft.draft_runner.draft_attn_backend = state.draft_attn_backend
        draft.cuda_graph_runner = state.cuda_graph_runner
        draft.draft_extend_attn_backend = state.draft_extend_attn_backend
        if state.draft_extend_attn_backend is not None:
            draft.draft_runner.attn_backend = state.draft_extend_attn_backend
        draft.cuda_graph_runner_for_draft_extend = state.cuda_graph_runner_for_draft_extend
        target.attn_backend = state.target_attn_backend
        target.decode_cuda_graph_runner = state.target_graph_runner
        self._set_depth(state.speculative_num_steps)
        self.speckv.counters.switched(time.perf_counter() - started)

    def _set_depth(self, num_steps: int) -> None:
        from sglang.srt.runtime_context import get_spec

        spec, draft = get_spec(), self._draft_worker
        self.speculative_num_steps = draft.speculative_num_steps = num_steps
        self.speculative_num_draft_tokens = draft.speculative_num_draft_tokens = num_steps + 1
        if num_steps in self._chain_buffers:
            draft._topk1_parents_prealloc, draft._topk1_score_indices_prealloc = (
                self._chain_buffers[num_steps]
            )
        spec._set("speculative_num_steps", num_steps)
        spec._set("speculative_num_draft_tokens", num_steps + 1)


# ---------------------------------------------------------------------------- scheduler hooks


def note_result(self: Any, result: Any, batch: Any) -> None:
    """BEFORE ``_resolve_spec_v2_tokens``, which hands the worker the counts but neither the
    result nor the requests they belong to."""
    worker = self.model_worker
    if isinstance(worker, SpecKVMixin):
        worker._result = (result, batch)


def copy_launch(self: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE ``GenerationBatchResult.copy_to_cpu``: the shared clock rides the same copy."""
    launch: Launch | None = getattr(self, "speckv_launch", None)
    if launch is not None and launch.seconds is not None:
        from sglang.srt.managers.utils import _async_d2h

        launch.seconds = _async_d2h(launch.seconds)
