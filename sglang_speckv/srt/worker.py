"""SGLang's EAGLE and STANDALONE workers, taught to change depth every round.

The class that SGLang chose is subclassed, so that everything it does stays its own: this file
replaces the policy, makes a switch cheap, and notes which tier launched which round.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sglang_speckv.config import Shape
from sglang_speckv.srt import (
    arguments,
    bounds,
    carrier,
    compat,
    exact,
    graph_stop,
    identity,
    in_round,
    recapture,
    usage,
    weights,
)
from sglang_speckv.srt.controller import on_or_off
from sglang_speckv.srt.graph_stop import GraphStop
from sglang_speckv.srt.kv_reserve import RESERVE
from sglang_speckv.srt.metrics import Metrics
from sglang_speckv.srt.rounds import TREE_SIGNALS, TROUBLE, DecodeLaunch, Launch, RoundTracker
from sglang_speckv.srt.signals import SIGNALS, SignalTap
from sglang_speckv.srt.sleep import DraftSleep
from sglang_speckv.srt.trace import TraceWriter

if TYPE_CHECKING:
    import numpy as np
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2 as _Worker
    from torch import Tensor

    from sglang_speckv.srt.controller import EnginePolicy
    from sglang_speckv.srt.tree_tap import TreeTap
else:
    _Worker = object  # a mixin: SGLang's class comes in when a worker is created

logger = logging.getLogger(__name__)


def create_worker(original: Callable[..., type], self: Any, server_args: Any) -> type:
    """AROUND ``SpeculativeAlgorithm.create_worker``: the same worker with SpecKV mixed in."""
    worker_class = original(self, server_args)
    if not arguments.is_active(server_args):
        return worker_class
    _hook_scheduler(exact.is_on(server_args), _trees_are_drafted())
    return type(f"SpecKV{worker_class.__name__}", (SpecKVMixin, worker_class), {})


def _trees_are_drafted() -> bool:
    from sglang.srt.runtime_context import get_spec

    return bool(get_spec().speculative_eagle_topk > 1)


def _hook_scheduler(exactly: bool, trees: bool) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_speckv.srt import (
        finish,
        joint_cut,
        kv_reserve,
        penalties,
        request_checks,
        state,
        tree_tap,
    )

    hooks: list[tuple[compat.HookTarget, Callable[..., Any], HookType]] = [
        (compat.RESULT_DECODE, note_result, HookType.BEFORE),
        (compat.RESULT_DECODE, note_answers, HookType.AFTER),
        (compat.RESULT_PREFILL, note_prefill, HookType.AFTER),
        (compat.COPY_TO_CPU, copy_launch, HookType.BEFORE),
        (compat.ADD_SPECULATIVE, state.add_speckv, HookType.AFTER),
        (compat.UPDATE_HANDLERS, state.add_handlers, HookType.AFTER),
        (compat.VALIDATE_LENGTH, request_checks.reason_to_abort, HookType.AFTER),
        (compat.SELECT_RUNNERS, weights.select_runners, HookType.AROUND),
        (compat.DECODE_MEM, kv_reserve.check_decode_mem, HookType.AROUND),
        (compat.DECODE_RESERVE, kv_reserve.reserve_per_decode, HookType.AROUND),
        (compat.SLOT_ROWS, kv_reserve.slots_behind_the_end, HookType.AFTER),
        (compat.FINISH_STATE, usage.bound_reasoning, HookType.AFTER),
    ]
    samples: list[Callable[..., Any]] = []
    if exactly:
        samples += [joint_cut.install().sample, exact.sample]
        hooks += [
            (compat.FINISH_STATE, finish.update_finish_state, HookType.AROUND),
            (compat.SAMPLING_INFO, penalties.go_on_counting, HookType.AFTER),
        ]
    if trees:
        samples.append(tree_tap.sample)
    if samples:
        hooks.append((compat.VERIFY_SAMPLE, _nested(samples), HookType.AROUND))
    for target, hook, kind in hooks:
        HookRegistry.register(target.path, hook, kind)
    HookRegistry.apply_hooks()
    compat.check_applied(target for target, _, _ in hooks)


def _nested(hooks: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """One hook of several, each around those before it: SGLang warns of more than one."""

    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for hook in hooks:
            original = partial(hook, original)
        return original(*args, **kwargs)

    return around


class SpecKVMixin(_Worker):
    """Mixed in front of ``EAGLEWorkerV2`` or ``StandaloneWorkerV2``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from sglang.srt.runtime_context import get_parallel, get_schedule, get_spec

        from sglang_speckv.srt.controller import EnginePolicy
        from sglang_speckv.srt.tiers import TierController

        config = carrier.read(get_spec().speculative_adaptive_config)
        assert config is not None
        overlap, ranks = not get_schedule().disable_overlap_schedule, get_parallel().tp_size
        self.tier = config.tier_of(Shape.of(get_spec()))
        self.speckv: EnginePolicy = EnginePolicy(config, self.tier, overlap)
        self._captured = graph_stop.drafts_are_captured()
        reasons = in_round.found(config, self.device, self._captured)
        self.speckv.watch_rounds(*reasons, on_device=self._captured)
        self._config, self._overlap = config, overlap
        self.draft_weights_are_its_own = weights.draft_has_its_own(self.server_args)
        self.adaptive_controller = TierController(self, self.speckv, config)
        # Read for batches that mix prefill in under attention DP, which SpecKV refuses;
        # StandaloneWorkerV2 lacks it.
        self.enable_dp_spec_prefill_coordination = False
        self._chain_buffers: dict[Shape, tuple[Any, Any]] = {}
        self._rounds = RoundTracker(
            share=_share if ranks > 1 else None,
            early_copy=_early_copy,
            alarm=self.speckv.hold,
        )
        self._fuse = self.speckv.fuse
        self._tree_tap: TreeTap | None = None
        self._fuse.blown = self._rounds.distrust
        self._reqs: list[Any] = []
        self._lane: exact.ExactLane | None = None
        self._exact = exact.NOBODY
        self._bounds = bounds.NO_BOUNDS
        self._round_slots: Tensor | None = None
        self._widths: np.ndarray | None = None
        self._result: Any = None
        self._waited = False

    # -- launching a round

    def init_cuda_graphs(self) -> None:
        self._tap = self._install_tap()
        self._graph_stop: GraphStop | None = None
        if self._config.exact == "on":
            self._lane = exact.ExactLane.of(self, self._fuse)
        self._sleep = DraftSleep(self, self._slots()) if DraftSleep.suits(self) else None
        self.speckv.draft_sleeps = self._sleep is not None
        if self.speckv.no_stops is None and self._captured:
            steps, batch = max(self.speckv.candidate_steps), self._tap.max_batch
            self._graph_stop = GraphStop(self._draft_worker, self._tap, steps, batch)
        elif self.speckv.no_stops is None:
            self._tap.on_draft = self._drafted
        if self.speckv.no_widths is None:
            in_round.verify_by_width(
                self._target_worker.model_runner,
                self._choose_widths,
                self._note_widths,
                lambda: self._fuse.guard("choosing widths"),
            )
        with graph_stop.told_of_failure(self._graph_stop):
            super().init_cuda_graphs()
        draft, launch = self._draft_worker, self._config.shape_of(self.tier)
        for shape in self._config.shapes:
            draft.speculative_num_steps, draft.speculative_num_draft_tokens = shape
            draft._rebuild_topk1_chain_buffers()
            self._chain_buffers[shape] = (
                draft._topk1_parents_prealloc,
                draft._topk1_score_indices_prealloc,
            )
        self._set_shape(launch)
        recapture.for_every_depth(self)
        self._observe_from_outside()
        RESERVE.serve(self._config.shapes, self._overlap)
        self._fuse.armed = True
        logger.info(
            "SpecKV is on: policy %s, candidates %s, launch %s; rounds that stop: %s; widths per "
            "request: %s",
            self.speckv.policy_name,
            ", ".join(map(self._config.name_of, self._config.tiers)),
            self._config.name_of(self.speckv.launch_steps),
            on_or_off(self.speckv.no_stops),
            on_or_off(self.speckv.no_widths),
        )

    def _install_tap(self) -> SignalTap:
        """Before graphs are captured, after the pools exist."""
        from sglang.srt.utils.common import get_cuda_graph_max_batch_size

        slots = self._slots()
        max_batch = get_cuda_graph_max_batch_size(slots)  # what captured batches are padded to
        if self._config.trees:
            from sglang_speckv.srt.tree_tap import TreeTap

            drafts = max(shape.drafts for shape in self._config.shapes)
            self._tree_tap = TreeTap(max_batch, drafts, self.device, self._fuse)
        return SignalTap(
            self._draft_worker,
            max_steps=1 if self._config.trees else max(self.speckv.candidate_steps),
            max_batch=max_batch,
            slots=slots,
            fuse=self._fuse,
        )

    def _slots(self) -> int:
        return self._target_worker.model_runner.req_to_token_pool.req_to_token.shape[0]

    def _observe_from_outside(self) -> None:
        """The trace and the metrics, on rank 0."""
        from sglang.srt.runtime_context import get_observability, get_parallel

        self._trace: TraceWriter | None = None
        if get_parallel().tp_rank != 0:
            return
        if self._config.trace is not None:
            self._trace = TraceWriter(self._config.trace, identity.trace_header(self))
            self.speckv.trace = self._trace
        if get_observability().enable_metrics:
            Metrics(self.speckv).start()

    def forward_batch_generation(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            result = super().forward_batch_generation(batch, *args, **kwargs)
            launched = self._prefill_launched
        else:
            self._round_begins(batch)
            result = super().forward_batch_generation(batch, *args, **kwargs)
            launched = self._round_launched
        result.speckv_launch, result.speckv_fuse = None, self._fuse
        with self._fuse.guard("noting a launch"):
            result.speckv_launch = launched(batch)
        return result

    def _round_begins(self, batch: Any) -> None:
        # Kept: what the batch holds changes while it is run.
        self._round_slots, self._reqs = batch.req_pool_indices, batch.reqs
        self._widths, self._exact, self._bounds = None, exact.NOBODY, bounds.NO_BOUNDS
        if self._lane is not None:
            with self._fuse.guard("finding exact requests", holds=False):
                self._exact = self._lane.rows(batch.reqs)
        with self._fuse.guard("reading requests' bounds", holds=False):
            longest = None if self.speckv.profiling else self._config.max_context
            self._bounds = bounds.Bounds.of(batch.reqs, self._exact.rows, longest)
        self.speckv.short_of_kv, self.speckv.undrafted = RESERVE.short, self._exact.alone
        self.speckv.most_steps = self._bounds.most
        self._rounds.waits_for_signals = self.speckv.lag.waits
        with self._fuse.guard("preparing a round"):
            self._tap.begin_round(self._round_slots, _newcomers(batch.reqs))

    def _prefill_launched(self, batch: Any) -> Launch:
        if self._sleep is not None:
            self._sleep.prefilled(batch.reqs)
        _newcomers(batch.reqs)
        return self._rounds.prefilled(batch.reqs, self._tap.take_first(len(batch.reqs)))

    def _round_launched(self, batch: Any) -> DecodeLaunch:
        """The payload goes out whatever failed before: every rank takes part in sharing it."""
        shape, trees = self._config.shape_of(self.tier), self._config.trees
        signals: Tensor | None = None
        with self._fuse.guard("collecting a round's signals"):
            if self._tree_tap is None:
                signals = self._tap.finish_round(self._round_slots, shape.drafts)
            else:
                first = self._tap.finish_round(self._round_slots, 0)[:, -1]
                signals = self._tree_tap.finish_round(len(batch.reqs), shape.drafts, first)
        if signals is None:
            numbers = TREE_SIGNALS if trees else SIGNALS
            signals = self._tap.nothing(len(batch.reqs), shape.drafts + 1, numbers)
        return self._rounds.launched(
            batch.reqs,
            self.tier,
            signals,
            self.speckv.coming,
            self.speckv.decision,
            self.speckv.digest,
            asleep=self._sleep is not None and self._sleep.slept,
            widths=self._widths,
            made=None if self._graph_stop is None else self._graph_stop.decided(),
            exact=self._exact.names,
            tree=shape if trees else None,
        )

    def _drafted(self, drafts: int) -> None:
        """After each draft of a round: is it to make another one?"""
        with self._fuse.guard("stopping a round"):
            if self.speckv.asks_after(drafts):
                assert self._round_slots is not None
                made = self._tap.made(len(self._round_slots), drafts)
                if not self.speckv.goes_on(self._open(made.numpy())):
                    in_round.stop_here(self, drafts)
                    self.speckv.num_steps = drafts

    def _choose_widths(self, size: int) -> np.ndarray | None:
        """After the last draft of a round: how many of each request's are to be verified?"""
        assert self._round_slots is not None
        drafts, widths = self.speculative_num_steps, None
        if not drafts or len(self._round_slots) != size:
            return None
        if self.speckv.watches:
            probs = self._bounds.blanked(self._tap.made(size, drafts).numpy())
            widths = self.speckv.widths(probs)
        return self._bounds.narrowed(widths, drafts)

    def _note_widths(self, widths: np.ndarray) -> None:
        self._widths = widths

    def activate_step_by_batch(self, batch_size: int) -> None:
        """Called by SGLang first thing in a decode round."""
        self.speckv.coming = None
        with self._fuse.guard("describing the coming batch"):
            self.speckv.coming = self._rounds.next_batch(self._reqs, self._closed())
        super().activate_step_by_batch(batch_size)
        if self._graph_stop is not None:
            with self._fuse.guard("telling the device when to stop"):
                self._graph_stop.begin(self.speckv.stop_rule())

    def _closed(self) -> Sequence[int]:
        """Rows of which no draft will be accepted. Without widths per request that is so in the
        exact lane only."""
        return self._bounds.closed if self.speckv.no_widths is None else self._exact.rows

    def _open(self, probs: np.ndarray) -> np.ndarray:
        """``probs`` [bs, drafts], 0 of the drafts that will not be accepted."""
        if self.speckv.no_widths is None:
            return self._bounds.blanked(probs)
        probs = probs.copy()
        probs[self._exact.rows] = 0.0
        return probs

    def verify(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        self._exact.mark(batch.spec_info)
        if self._tree_tap is not None:
            self._tree_tap.mark(batch.spec_info)
        return super().verify(batch, *args, **kwargs)

    def draft_caught_up(self, batch: Any) -> None:
        """The draft read what it had slept through: there is a new first-draft signal, and this
        round's time is not its own."""
        self._tap.begin_round(batch.req_pool_indices)
        self._rounds.disturbed()
        self.speckv.counters.draft_catch_ups += 1

    def _build_trivial_verify_input(self, batch: Any) -> Any:
        """As SGLang's, for rejection sampling too: a verification without drafts has a draft
        distribution of no rows (SGLang leaves it out and then stops serving for want of it)."""
        import torch
        from sglang.srt.runtime_context import get_spec

        if self._sleep is not None:
            with self._fuse.guard("catching up with a draft that slept"):
                self._sleep.before_depth_0(batch)
        verify = super()._build_trivial_verify_input(batch)
        if get_spec().speculative_use_rejection_sampling:
            shape = (len(verify.positions), 0, self._target_worker.model_config.vocab_size)
            verify.draft_probs = torch.empty(shape, dtype=torch.float32, device=self.device)
        return verify

    # -- learning from its result

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        noted, self._result = self._result, None
        launch: DecodeLaunch | None = getattr(noted, "speckv_launch", None)
        if launch is None:  # another path of SGLang's made this result
            return
        with self._fuse.guard("learning from a round"):
            self._learn(launch, num_correct_drafts_per_req)
        with self._fuse.guard("counting an answer's drafts", holds=False):
            usage.count_verified(launch)

    def _learn(self, launch: DecodeLaunch, num_correct_drafts: list[int]) -> None:
        self._rounds.log_vocab = math.log(max(self._tap.draft_vocab_size, 2))
        profiling = self.speckv.profiling
        for done in self._rounds.finished(launch, num_correct_drafts, self._waited):
            self.speckv.counters.count_exact(done.exact)
            self.speckv.observe(done.outcome, done.launch.host_waits)
            if self._trace is not None and not profiling:
                with self._fuse.guard("tracing a round", holds=False):
                    self._trace.write(done, self.speckv.policy_name, self._rounds.log_vocab)

    # -- switching tiers

    def apply_runtime_state(self, state: Any) -> None:
        """As SGLang's, without its INFO line, its rebuilt chain buffers and its override log,
        which grows by an entry with every switch."""
        tier = self._config.tier_of(Shape.of(state))
        if self.tier == tier:
            return
        switched = False
        with self._fuse.guard("switching the depth"):
            self._switch(state)
            switched = True
        if not switched:
            self.speculative_num_steps = -1  # SGLang leaves a state of as many steps as it is
            super().apply_runtime_state(state)
            self.tier = tier

    def _switch(self, state: Any) -> None:
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
        self._set_shape(Shape.of(state))
        self.speckv.counters.switched(time.perf_counter() - started)

    def _set_shape(self, shape: Shape) -> None:
        from sglang.srt.runtime_context import get_spec

        spec, draft = get_spec(), self._draft_worker
        self.tier = self._config.tier_of(shape)
        self.speculative_num_steps, self.speculative_num_draft_tokens = shape
        draft.speculative_num_steps, draft.speculative_num_draft_tokens = shape
        if shape in self._chain_buffers:
            draft._topk1_parents_prealloc, draft._topk1_score_indices_prealloc = (
                self._chain_buffers[shape]
            )
        spec._set("speculative_num_steps", shape.num_steps)
        spec._set("speculative_num_draft_tokens", shape.num_draft_tokens)


# ---------------------------------------------------------------------------- scheduler hooks


def note_result(self: Any, batch: Any, result: Any) -> None:
    """BEFORE ``process_batch_result_decode``, which waits for the result and hands the worker the
    counts, but not whose they are."""
    worker = self.model_worker
    if isinstance(worker, SpecKVMixin):
        with worker._fuse.guard("noting a result"):
            worker._result = result
            worker._waited = result.copy_done is not None and not result.copy_done.query()


def note_answers(result: None, self: Any, batch: Any, *args: Any) -> None:
    """AFTER ``process_batch_result_decode``: which requests ended, and how well they were drafted
    for."""
    worker = self.model_worker
    if isinstance(worker, SpecKVMixin) and not worker.speckv.profiling:
        with worker._fuse.guard("counting answers", holds=False):
            worker.speckv.counters.answers.extend(usage.ended(batch.reqs))


def note_prefill(result: None, self: Any, batch: Any, prefill: Any) -> None:
    """AFTER ``process_batch_result_prefill``: its first-token signals are on the host."""
    launch: Launch | None = getattr(prefill, "speckv_launch", None)
    if launch is not None:
        with prefill.speckv_fuse.guard("reading a prefill's signals"):
            self.model_worker._rounds.landed(launch)


def copy_launch(self: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE ``GenerationBatchResult.copy_to_cpu``: signals ride the copy that is made anyway."""
    launch: Launch | None = getattr(self, "speckv_launch", None)
    if launch is not None and not launch.early:
        from sglang.srt.managers.utils import _async_d2h

        with self.speckv_fuse.guard("copying a round's signals"):
            launch.payload = _async_d2h(launch.payload)


def _share(payload: Tensor) -> Tensor:
    """Rank 0's numbers on every rank, and the sum of what each wrote at ``TROUBLE``."""
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().tp_group
    if group.rank_in_group != 0:
        trouble = payload[TROUBLE].clone()
        payload.zero_()
        payload[TROUBLE] = trouble
    return group.all_reduce(payload)


def _early_copy(payload: Tensor) -> tuple[Tensor, Any]:
    """A copy on the launching stream, and the event after which the host may read it."""
    import torch
    from sglang.srt.managers.utils import _async_d2h

    host = _async_d2h(payload)
    event = torch.get_device_module(payload.device).Event()
    event.record()
    return host, event


KNOWN = "speckv_known"
"""Attribute of a request that this worker has launched before. It lives and dies with it."""


def _newcomers(reqs: list[Any]) -> list[int]:
    """Rows of requests that are launched for the first time; at a decode round these were
    prefilled elsewhere (PD disaggregation)."""
    new = [row for row, req in enumerate(reqs) if not hasattr(req, KNOWN)]
    for row in new:
        setattr(reqs[row], KNOWN, True)
    return new
