"""The signal tap: what the draft says of its own drafts, taken from the logits where they are made.

For ``topk == 1`` SGLang computes no draft probability at all. Two calls of the draft worker make
every logit there is: the draft runner's forward (draft steps, prefill, eager draft-extend) and the
draft-extend graph's ``execute``. Both are wrapped on the worker's own objects, with the phase set
around ``draft_forward`` and ``_draft_extend_for_{decode,prefill}``. That seam is the same on CPU
and CUDA; what runs inside ``draft_forward`` is captured with the draft graph.

The first draft token of a round is drawn by the draft-extend of the round before (or by prefill),
so its signals wait in a row of their own, by request slot, on the device and in stream order: no
host is involved and batches may be reshuffled in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.reduction import reduce_logits

SIGNALS = 2
"""Per draft position: top-1 probability, entropy in nats."""
TAP = "reading the draft's signals"


class SignalTap:
    """Install it before graphs are captured; buffers serve every tier and batch size.

    ``draft_worker`` is SGLang's ``EagleDraftWorker`` or a subclass. ``max_batch`` bounds rows of a
    captured graph, ``slots`` the request slots (``req_pool_indices``).
    """

    def __init__(
        self, draft_worker: Any, max_steps: int, max_batch: int, slots: int, fuse: Fuse
    ) -> None:
        device, self.max_batch = draft_worker.device, max_batch
        self.draft_vocab_size = 0
        self._draft = draft_worker
        self._fuse = fuse
        # The dtype is named: torch's default may be that of a model that was just loaded.
        number = {"dtype": torch.float32, "device": device}
        self._steps = torch.zeros((max(max_steps - 1, 0), max_batch, SIGNALS), **number)
        self._first = torch.full((slots, SIGNALS), math.nan, **number)
        self.on_draft: Callable[[int], None] | None = None
        """Called after each draft forward with the number of drafts that the round has made."""
        self._phase = ""
        self._step = 0
        self._output: Any = None
        self._round_first: Tensor | None = None
        self._next_first: Tensor | None = None
        self._install()

    def _install(self) -> None:
        draft, runner = self._draft, self._draft.draft_runner
        runner.forward = self._tapped_forward(runner.forward)
        draft.draft_forward = self._during("draft", draft.draft_forward)
        for name in ("_draft_extend_for_decode", "_draft_extend_for_prefill"):
            setattr(draft, name, self._extending(getattr(draft, name)))

    # -- one round, as the worker sees it

    def begin_round(self, slots: Tensor, strangers: Sequence[int] = ()) -> None:
        """Before a decode round of the requests in ``slots`` [bs]. ``strangers``: rows of requests
        that were prefilled elsewhere; their slots hold what the last owner left."""
        self._round_first, self._next_first = self._first[slots], None
        if strangers:
            self._round_first[list(strangers)] = math.nan

    def finish_round(self, slots: Tensor, num_steps: int) -> Tensor:
        """[bs, num_steps + 1, 2]: this round's draft positions, then the coming round's first."""
        assert self._round_first is not None
        if self._next_first is None:  # SGLang was told to skip draft-extend
            self._next_first = self._first[slots] = torch.full_like(self._round_first, math.nan)
        parts = [self._next_first[:, None]]
        if num_steps > 0:
            steps = self._steps[: num_steps - 1, : len(slots)].transpose(0, 1)
            parts = [self._round_first[:, None], steps, *parts]
        self._round_first = None
        return torch.cat(parts, dim=1)

    def made(self, size: int, drafts: int) -> Tensor:
        """[size, drafts]: the top-1 probabilities of the drafts that this round has made."""
        assert self._round_first is not None
        first, steps = self._round_first[:, :1], self._steps[: drafts - 1, :size, 0]
        return torch.cat([first, steps.T], dim=1)

    def firsts(self) -> Tensor:
        """[size]: the top-1 probabilities of this round's first drafts."""
        assert self._round_first is not None
        return self._round_first[:, 0]

    def column(self, step: int, rows: int) -> Tensor:
        """[rows]: where the top-1 probabilities of the draft after forward ``step`` (from 1) are
        written."""
        return self._steps[step - 1, :rows, 0]

    def forget(self, steps: int, rows: int) -> None:
        """What drafts that a round does not make are to have said: nothing."""
        self._steps[:steps, :rows].fill_(math.nan)

    def take_first(self, size: int) -> Tensor:
        """[size, 1, 2] of the prefill that just ran; NaN where it drew no first draft."""
        first, self._next_first = self._next_first, None
        return self.nothing(size, 1) if first is None else first[:, None]

    def nothing(self, size: int, positions: int, numbers: int = SIGNALS) -> Tensor:
        """[size, positions, numbers] of NaN: signals that are unknown."""
        return self._first.new_full((size, positions, numbers), math.nan)

    # -- inside the draft worker

    def _during(self, phase: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def tapped(*args: Any, **kwargs: Any) -> Any:
            self._phase, self._step = phase, 0
            try:
                return original(*args, **kwargs)
            finally:
                self._phase = ""

        return tapped

    def _tapped_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            with self._fuse.guard(TAP):
                self._look_at(result)
            if self._phase == "draft" and self.on_draft is not None:
                self.on_draft(self._step + 1)
            return result

        return forward

    def _look_at(self, result: Any) -> None:
        if self._phase == "draft":
            logits = result.logits_output.next_token_logits
            step, self._step = self._step, self._step + 1  # counted whatever fails
            if step < len(self._steps):  # none are kept of a tree
                reduce_logits(logits, self._steps[step, : logits.shape[0]])
        elif self._phase == "extend":
            self._output = result.logits_output

    def _extending(self, original: Callable[..., Any]) -> Callable[..., Any]:
        run = self._during("extend", original)

        def extend(batch: Any, *args: Any, **kwargs: Any) -> Any:
            with self._fuse.guard(TAP):
                self._tap_graph(getattr(self._draft, "cuda_graph_runner_for_draft_extend", None))
            self._output = None
            result = run(batch, *args, **kwargs)
            output, self._output = self._output, None
            if output is not None:
                # Read only now: the eager path selects each request's row after its forward.
                with self._fuse.guard(TAP):
                    self._note_first(output.next_token_logits, batch.req_pool_indices)
            return result

        return extend

    def _tap_graph(self, runner: Any) -> None:
        """Every tier has its own draft-extend graph."""
        if runner is None or getattr(runner, "_speckv_tapped", False):
            return
        original = runner.execute

        def execute(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if self._phase == "extend":
                self._output = output
            return output

        runner.execute = execute
        runner._speckv_tapped = True

    def _note_first(self, logits: Tensor, slots: Tensor) -> None:
        rows = len(slots)
        first = torch.empty((rows, SIGNALS), dtype=torch.float32, device=logits.device)
        reduce_logits(logits[:rows], first)
        self.draft_vocab_size = logits.shape[-1]
        self._first[slots] = first
        self._next_first = first
