"""Rounds that stop by themselves where SGLang captures the draft loop as one graph.

The host could only look at what a draft says by waiting for the device. So the device decides: each
forward of the draft is captured in a conditional node, which runs where another draft is worth its
price (:class:`policy.stopping.StopRule`). Before such a round the host writes the rule's numbers,
with no wait; before any other it writes a price that every draft is worth.

SGLang's own code between two forwards stays outside of the nodes and runs in every round. It counts
positions, and takes the argmax of the logits, which is a valid token whatever the memory of a
forward that did not run holds. The signals of such a draft are NaN, and no link of the chain leads
to it, so that it is never accepted. The target verifies the whole depth all the same: its graph is
that of the depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sglang_speckv.policy.checks import is_share
from sglang_speckv.policy.logistic import LIMIT
from sglang_speckv.policy.stopping import StopRule
from sglang_speckv.srt.signals import SignalTap

LEAST = 1.0 / (1.0 + math.exp(LIMIT))
"""The probability of the least log-odds."""
NEVER = -1.0
"""A price that no draft falls short of."""
NEEDS_CUDA = 12, 4
MODELS = 5
"""Rows of a rule's numbers: prices, then intercepts and slopes of its two models."""


def no_nodes() -> str | None:
    """Why torch cannot capture a conditional node here, as far as it says so; None where it can."""
    if not hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node"):
        return f"torch {torch.__version__} has no conditional nodes in captured graphs"
    built = tuple(map(int, (torch.version.cuda or "0.0").split(".")[:2]))
    if built < NEEDS_CUDA:
        return f"torch is built for CUDA {torch.version.cuda}, and conditional nodes need 12.4"
    if torch.cuda.is_available():
        driver = torch._C._cuda_getDriverVersion()
        if divmod(driver, 1000) < (NEEDS_CUDA[0], 10 * NEEDS_CUDA[1]):
            return f"the driver's CUDA {driver // 1000}.{driver % 1000 // 10} is older than 12.4"
    return None


def node_fails(device: str) -> str | None:
    """Why a small graph with two conditional nodes does not do here what it should."""
    try:
        with torch.inference_mode():
            found = _try_nodes(device)
    except Exception as error:  # whatever it is, rounds are as they were without nodes
        return f"a conditional node could not be captured or run here ({error!r})"
    return None if found == [4.0, 0.0] else f"conditional nodes gave {found}, not [4.0, 0.0]"


def _try_nodes(device: str) -> list[float]:
    module = torch.get_device_module(device)
    ones = torch.ones(2, 2, device=device)
    outs = torch.zeros(2, 2, 2, device=device)
    going = [torch.tensor(goes, device=device) for goes in (True, False)]
    torch.mm(ones, ones)  # what is compiled or set up at the first call
    graph = torch.cuda.CUDAGraph()
    with module.graph(graph):
        for out, goes in zip(outs, going, strict=True):
            with node(goes):
                torch.mm(ones, ones, out=out)
    outs.zero_()
    graph.replay()
    return [float(out.sum()) / 2 for out in outs]


@contextmanager
def node(going: Tensor) -> Iterator[None]:
    """What is captured inside runs in a replay in which ``going`` [] is true then."""
    graph = torch.cuda.CUDAGraph.get_currently_capturing_graph()
    graph.begin_capture_to_if_node(going)
    try:
        yield
    finally:
        graph.end_capture_to_conditional_node()


def drafts_are_captured() -> bool:
    """Whether SGLang captures the draft loop as one graph, in a process that serves."""
    from sglang.srt.model_executor.cuda_graph_config import (
        Backend,
        Phase,
        check_cuda_graph_backend,
    )
    from sglang.srt.speculative import eagle_worker_v2

    return not eagle_worker_v2._is_cpu and check_cuda_graph_backend(Phase.DECODE, Backend.FULL)


@contextmanager
def told_of_failure(stop: GraphStop | None) -> Iterator[None]:
    """Where graphs cannot be captured, say what was new in them."""
    try:
        yield
    except Exception as error:
        if stop is not None:
            error.add_note(
                "SpecKV: draft graphs were captured with conditional nodes; --speckv-stop off "
                "leaves them out"
            )
        raise


class GraphStop:
    """Install it on SGLang's ``EagleDraftWorker`` after the tap and before graphs are captured.

    ``max_batch`` bounds the rows of a captured graph. ``watching``: the round that was launched
    last may have stopped, after :attr:`made` drafts.
    """

    def __init__(self, draft_worker: Any, tap: SignalTap, max_steps: int, max_batch: int) -> None:
        device = draft_worker.device
        self.watching = False
        self.made = torch.ones((), dtype=torch.int32, device=device)
        """Drafts of the newest captured round."""
        number = {"dtype": torch.float32, "device": device}
        self._tap = tap
        self._columns = max_steps + 1
        self._rule = torch.zeros(1 + MODELS * self._columns + max_batch, **number)
        """Live rows, then :data:`MODELS` rows of columns, then what each request adds."""
        self._firsts = torch.zeros(max_batch, **number)
        self._survival = torch.ones(max_batch, **number)
        self._going = torch.zeros((), dtype=torch.bool, device=device)
        self._column = torch.arange(self._columns, device=device)
        self._whole = False
        """What the device was told last: to make every draft."""
        self._step = -1
        """Forwards that the draft loop has run; -1 outside of one that is captured."""
        self._stream = torch.get_device_module(device)
        self.begin(None)
        self._decide(self._firsts, 0)  # what is compiled must not be under capture
        self._install(draft_worker)

    def _install(self, draft: Any) -> None:
        runner = draft.draft_runner
        runner.forward = self._one_draft(runner.forward)
        draft.draft_forward = self._loop(draft, draft.draft_forward)
        draft.draft = self._chain(draft.draft)

    # -- one round, as the worker sees it

    def begin(self, rule: StopRule | None) -> None:
        """Before a round's drafts; None: it makes all of them. No wait for the device."""
        self.watching = False
        if rule is None and self._whole:
            return
        host = torch.zeros(self._rule.shape, pin_memory=self._rule.is_cuda)
        numbers = host.numpy()
        models = numbers[1:][: MODELS * self._columns].reshape(MODELS, -1)
        models[0] = NEVER
        if rule is not None:
            firsts = self._tap.firsts()
            self._firsts[: len(firsts)].copy_(firsts)
            numbers[0] = len(firsts)
            models[:, :-1] = [rule.price, *rule.own, *rule.coming]
            numbers[1 + MODELS * self._columns :][: len(firsts)] = rule.offsets
        self._rule.copy_(host, non_blocking=True)
        self._whole, self.watching = rule is None, rule is not None

    def decided(self) -> Tensor | None:
        """[]: the drafts of the round that was launched last, where the device decided that."""
        return self.made if self.watching else None

    def _chain(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The chain that is verified ends where the drafts do."""

        def draft(*args: Any, **kwargs: Any) -> Any:
            verify = original(*args, **kwargs)
            if self.watching:
                links = verify.retrieve_next_token
                unmade = self._column[: links.shape[1]] >= self.made
                verify.retrieve_next_token = links.masked_fill(unmade, -1)
            return verify

        return draft

    # -- while a graph is captured

    def _loop(self, draft: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def draft_forward(forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._stream.is_current_stream_capturing():
                self.watching = False  # drafted eagerly, for a batch of more than graphs are for
                return original(forward_batch, *args, **kwargs)
            self._step = 0
            try:
                self._tap.forget(draft.speculative_num_steps - 1, forward_batch.batch_size)
                self._decide(self._firsts[: forward_batch.batch_size], 0)
                return original(forward_batch, *args, **kwargs)
            finally:
                self._step = -1

        return draft_forward

    def _one_draft(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            if self._step < 0:
                return original(forward_batch, *args, **kwargs)
            with node(self._going):
                result = original(forward_batch, *args, **kwargs)
                self._step += 1
                probs = self._tap.column(self._step, forward_batch.batch_size)
                self._decide(probs, self._step)
            return result

        return forward

    def _decide(self, probs: Tensor, column: int) -> None:
        """Draft ``column`` (from 0) of each request has the probability ``probs`` [rows]."""
        decide = decide_torch
        if probs.is_cuda:
            from sglang_speckv.srt.graph_stop_triton import launch as decide
        state = self._rule, self._survival, self._going, self.made
        decide(probs, *state, column, self._columns)


def decide_torch(
    probs: Tensor,
    rule: Tensor,
    survival: Tensor,
    going: Tensor,
    made: Tensor,
    column: int,
    columns: int,
) -> None:
    """The reference: see :meth:`StopRule.drafts`, of which this is one step. ``survival`` [rows or
    more] is what it was after the draft before, and is brought up to date."""
    rows = len(probs)
    price, own_at, own_by, coming_at, coming_by = rule[1:][: MODELS * columns].view(MODELS, -1)
    offsets = rule[1 + MODELS * columns :][:rows]
    odds = torch.where(is_share(probs), probs.clamp(LEAST, 1.0 - LEAST).logit(), math.nan)
    own = (own_at[column] + own_by[column] * odds + offsets).clamp(-LIMIT, LIMIT).sigmoid()
    if column > 0:
        own = own * survival[:rows]
    survival[:rows].copy_(own)
    after = column + 1
    coming = coming_at[after] + coming_by[after] * odds + offsets
    gain = own * coming.clamp(-LIMIT, LIMIT).sigmoid()
    live = torch.arange(rows, device=probs.device) < rule[0]
    going.copy_((torch.where(live, gain, 0.0).sum() <= price[after]).logical_not())
    made.fill_(after)
