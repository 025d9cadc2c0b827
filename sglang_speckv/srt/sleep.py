"""Depth 0 of a STANDALONE draft costs what a server without a draft does: the draft sleeps.

SGLang runs the draft over every new token at depth 0 too, so that its KV cache stays whole; with a
separate draft that is a tenth to a quarter of a round. Here such rounds leave the draft out, unless
the policy wants it awake for the sake of the next round's signal, and remember the token that each
request got. The first round that drafts again or wants the draft awake, or one in ``WINDOW``, lets
the draft read all of them in one pass. So no token is read twice and those of requests that end
meanwhile never are.

An EAGLE head needs the target's states beside the tokens and stays awake. So does a draft under
rejection sampling, whose distribution SGLang takes along from round to round; one with positions in
three dimensions (M-RoPE), which SGLang knows for prompts and for a next token, not for several; and
one whose lengths SGLang leaves on the device: under the overlap scheduler with attention backends
that do without them on the host (Triton, FA3; not FlashInfer).

What a request that ended in its sleep leaves in the prefix cache lacks draft KV for at most
``WINDOW`` tokens: a request that goes on from there may see fewer drafts accepted, and the same
output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sglang_speckv.srt.fuse import Fuse

WINDOW = 64
"""Tokens per request that the draft may be behind."""
BEHIND = "speckv_behind"
"""Attribute of a request: tokens that the draft has not read. It lives and dies with the request,
so nothing has to be cleaned up after aborts."""


class DraftSleep:
    """``worker`` is the SpecKV worker, its pools allocated and its tap installed; ``slots`` the
    number of request slots (``req_pool_indices``)."""

    def __init__(self, worker: Any, slots: int, window: int = WINDOW) -> None:
        self._worker = worker
        self._draft = worker._draft_worker
        self._fuse: Fuse = worker.speckv.fuse
        self._window = window
        self.slept = False
        """Whether the draft slept through the round that was launched last."""
        # The token that follows position p of a request, in column p % window of its slot.
        self._next = torch.zeros((slots, window), dtype=torch.int64, device=worker.device)
        self._draft._draft_extend_for_decode = self._unless_asleep(
            self._draft._draft_extend_for_decode
        )
        self._draft.draft = self._awake(self._draft.draft)

    @staticmethod
    def suits(worker: Any) -> bool:
        from sglang.srt.managers.overlap_utils import decide_needs_cpu_seq_lens
        from sglang.srt.runtime_context import get_schedule, get_spec

        return (
            worker.speculative_algorithm.is_standalone()
            and not get_spec().speculative_use_rejection_sampling
            and not worker._draft_worker.draft_runner.model_config.model_is_mrope
            and (
                get_schedule().disable_overlap_schedule
                or decide_needs_cpu_seq_lens(worker.spec_v2_attn_backends)
            )
        )

    @staticmethod
    def prefilled(reqs: Sequence[Any]) -> None:
        """The draft has just read all that these requests have."""
        for req in reqs:
            setattr(req, BEHIND, 0)

    def _unless_asleep(self, extend: Callable[..., None]) -> Callable[..., None]:
        def sleep_or_extend(batch: Any, result: Any, **kwargs: Any) -> None:
            self.slept = False
            with self._fuse.guard("letting the draft sleep"):
                self.slept = self._sleeps(batch, result)
            if not self.slept:
                extend(batch, result, **kwargs)

        return sleep_or_extend

    def _sleeps(self, batch: Any, result: Any) -> bool:
        """Leave the draft out of this round, unless it is wanted, and note what it misses."""
        # Without the lengths on the host, catching up would have to wait for the device.
        drafts = self._worker.speculative_num_steps > 0
        if drafts or self._wanted_awake or batch.seq_lens_cpu is None:
            return False
        self._worker._stub_skipped_draft_extend(batch, result)
        tokens = result.next_draft_input.bonus_tokens
        self._next[batch.req_pool_indices, batch.seq_lens % self._window] = tokens.long()
        for req in batch.reqs:
            setattr(req, BEHIND, _behind(req) + 1)
        return True

    def _awake(self, draft: Callable[..., Any]) -> Callable[..., Any]:
        def catch_up_and_draft(batch: Any, **kwargs: Any) -> Any:
            self.catch_up(batch)
            return draft(batch, **kwargs)

        return catch_up_and_draft

    @property
    def _wanted_awake(self) -> bool:
        return self._worker.speckv.awake

    def before_depth_0(self, batch: Any) -> None:
        """Catch up in a round that does not draft: where the draft is to be awake, and where the
        window is full."""
        behind = max(map(_behind, batch.reqs), default=0)
        if behind < (1 if self._wanted_awake else self._window):
            return
        from sglang.srt.layers.moe.utils import (
            speculative_moe_a2a_backend_context,
            speculative_moe_backend_context,
        )
        from sglang.srt.speculative.spec_utils import draft_tp_context

        with (
            draft_tp_context(self._draft.parallel_layout),
            speculative_moe_backend_context(),
            speculative_moe_a2a_backend_context(),
        ):
            self.catch_up(batch)

    def catch_up(self, batch: Any) -> None:
        """Let the draft read what ``batch``, about to decode, has and it has not. Where that fails
        it is not tried again: the draft guesses worse, and the text stays the same."""
        behind = [_behind(req) for req in batch.reqs]
        if not any(behind):
            return
        self.prefilled(batch.reqs)
        with self._fuse.guard("catching up with a draft that slept"):
            self._read(batch, behind)

    def _read(self, batch: Any, behind: list[int]) -> None:
        drafted = self._draft._draft_extend_for_prefill(
            self._as_prefill(batch, behind), None, batch.spec_info.bonus_tokens
        )
        batch.spec_info.topk_p, batch.spec_info.topk_index = drafted.topk_p, drafted.topk_index
        self._worker.draft_caught_up(batch)

    def _as_prefill(self, batch: Any, behind: list[int]) -> Any:
        """``batch`` as if its last tokens were a prompt's. A request that misses nothing reads its
        last token again: the pass must yield a first draft for every request."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        lens = [max(n, 1) for n in behind]
        ends = batch.seq_lens_cpu.tolist()
        starts = [end - n for end, n in zip(ends, lens, strict=True)]
        every = torch.cat([torch.arange(*span) for span in zip(starts, ends, strict=True)])
        at, counts = self._to_device(every), self._to_device(torch.tensor(lens))
        rows = batch.req_pool_indices.repeat_interleave(counts, output_size=len(at))
        view = copy.copy(batch)
        view.forward_mode = ForwardMode.EXTEND
        view.input_ids = self._shifted(rows, at)
        view.out_cache_loc = batch.req_to_token_pool.req_to_token[rows, at].to(torch.int64)
        view.prefix_lens, view.extend_lens, view.extend_num_tokens = starts, lens, len(at)
        view.return_logprob = False
        view.extend_logprob_start_lens = view.extend_input_logprob_token_ids = None
        view.chunked_req_next_prompt_token = None
        return view

    def _to_device(self, host: Tensor) -> Tensor:
        return host.to(self._next.device, non_blocking=True)

    def _shifted(self, rows: Tensor, at: Tensor) -> Tensor:
        """What SGLang's prefill turns into the tokens that follow ``at``: it drops each request's
        first id, moves the others up and appends the newest token."""
        return self._next[rows, at % self._window].roll(1)


def _behind(req: Any) -> int:
    return getattr(req, BEHIND, 0)
