"""From launches and results to finished rounds: whose tier, whose time, whose signals.

Round times come from the scheduler's own rhythm, the wall time between two consecutive results. In
steady decoding that is what a round costs the user, host work included, with and without the
overlap scheduler; no event and no synchronisation is added.

Signals and outcomes are joined by request object, never by row: batches are reshuffled between a
launch and its result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_speckv.policy.base import Batch, Decision, Round

FIRST_PROB = "speckv_first_prob"
"""Attribute of a request: the newest known top-1 probability of its next first draft token. It
lives and dies with the request, so nothing has to be cleaned up after aborts."""


@dataclass(slots=True, eq=False)
class Launch:
    """What is remembered of a forward between its launch and its result.

    ``payload`` holds the signals, flattened, behind one number, rank 0's time of the newest
    finished round (NaN where there is none); on the device until the result is copied.
    """

    reqs: tuple[Any, ...]
    payload: Tensor
    shape: tuple[int, ...]
    early: bool = False
    """The host may have the signals before the result: they are there, or ``ready`` says when."""
    ready: Any = None
    told: bool = False
    """The requests know of their next first draft."""

    def signals(self) -> np.ndarray:
        """[bs, num_steps + 1, 2] of a decode round, [bs, 1, 2] of a prefill; host side."""
        return self.payload.numpy()[1:].reshape(self.shape)

    def tell(self) -> None:
        """Each request's next first-token probability, unless a newer one was told."""
        if self.told:
            return
        if self.ready is not None:
            self.ready.synchronize()
        self.told = True
        for req, prob in zip(self.reqs, self.signals()[:, -1, 0].tolist(), strict=True):
            setattr(req, FIRST_PROB, prob)


@dataclass(slots=True, eq=False)
class DecodeLaunch(Launch):
    """``clean``: nothing but the previous decode round was launched before it, so the time between
    their results is its own. ``settles``: rounds whose shared time rides in this payload."""

    num_steps: int = 0
    clean: bool = False
    batch: Batch | None = None
    decision: Decision | None = None
    asleep: bool = False
    settles: tuple[FinishedRound, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRound:
    """``outcome`` has live requests only; ``live`` are their rows in ``launch``, ``context_lens``
    their lengths in tokens when the round began."""

    outcome: Round
    launch: DecodeLaunch
    live: Sequence[int]
    context_lens: Sequence[int]


class RoundTracker:
    """Follows rounds from launch to result.

    ``share``: where several ranks decide, broadcasts a tensor from rank 0 in place and in stream
    order. Ranks that decided on their own clocks or signals would choose different depths and
    hang. A round's time is then settled by the payload of a later launch, with no host waiting.
    ``early_copy``: copies a tensor to the host on the spot and returns it with the event after
    which it may be read; None where tensors are on the host anyway.
    """

    def __init__(
        self,
        share: Callable[[Tensor], None] | None = None,
        early_copy: Callable[[Tensor], tuple[Tensor, Any]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.log_vocab = 1.0
        """Log of the draft vocabulary's size: the unit of entropies in :class:`Round`."""
        self.waits_for_signals = False
        """Let :meth:`next_batch` wait for the coming round's first-token signal."""
        self._share = share
        self._early_copy = early_copy
        self._clock = clock
        self._flying: deque[Launch] = deque(maxlen=4)
        self._unsettled: list[FinishedRound] = []
        self._last_was_decode = False
        self._last_result: float | None = None

    # -- launches

    def next_batch(self, reqs: Sequence[Any]) -> Batch:
        """What is known of ``reqs`` before their round. Under overlap the tokens of the round in
        flight are not counted yet."""
        if self.waits_for_signals:
            for launch in self._flying:
                if launch.early:
                    launch.tell()
        firsts = np.array([getattr(req, FIRST_PROB, math.nan) for req in reqs])
        return Batch(len(reqs), firsts, sum(map(_context_len, reqs)))

    def disturbed(self) -> None:
        """The time of the next decode round will not be its own."""
        self._last_was_decode = False

    def prefilled(self, reqs: Sequence[Any], first: Tensor | None) -> Launch | None:
        """A prefill was launched; ``first`` [bs, 2] are its first-token signals. The next decode
        round's time is not its own."""
        self.disturbed()
        if first is None:
            return None
        launch = Launch(tuple(reqs), self._pack(first, None), (len(reqs), 1, first.shape[-1]))
        self._fly(launch)
        return launch

    def launched(
        self,
        reqs: Sequence[Any],
        num_steps: int,
        signals: Tensor,
        batch: Batch | None = None,
        decision: Decision | None = None,
        asleep: bool = False,
    ) -> DecodeLaunch:
        """A decode round was launched; ``signals`` [bs, num_steps + 1, 2]."""
        settles = tuple(self._unsettled)
        self._unsettled.clear()
        newest = settles[-1].outcome.seconds if settles else None
        launch = DecodeLaunch(
            tuple(reqs),
            self._pack(signals, newest),
            tuple(signals.shape),
            num_steps=num_steps,
            clean=self._last_was_decode,
            batch=batch,
            decision=decision,
            asleep=asleep,
            settles=settles,
        )
        self._last_was_decode = True
        self._fly(launch)
        return launch

    def _pack(self, signals: Tensor, seconds: float | None) -> Tensor:
        payload = torch.empty(1 + signals.numel(), device=signals.device)
        payload[0].fill_(math.nan if seconds is None else seconds)
        payload[1:] = signals.flatten()
        if self._share is not None:
            self._share(payload)
        return payload

    def _fly(self, launch: Launch) -> None:
        if self._early_copy is None:
            launch.early = True
        elif self.waits_for_signals:
            launch.early = True
            launch.payload, launch.ready = self._early_copy(launch.payload)
        self._flying.append(launch)

    # -- results

    def landed(self, launch: Launch) -> None:
        """The result of ``launch`` is on the host; results come in order."""
        if launch in self._flying:
            while self._flying.popleft() is not launch:
                pass  # never processed: its requests are gone
        launch.tell()

    def finished(
        self, launch: DecodeLaunch, num_correct_drafts: Sequence[int]
    ) -> list[FinishedRound]:
        """The rounds that can be learned from, now that the result of ``launch`` is here."""
        self.landed(launch)
        now, last = self._clock(), self._last_result
        self._last_result = now
        seconds = now - last if launch.clean and last is not None else None
        done = self._join(launch, num_correct_drafts, seconds)
        if self._share is None:
            return [done]
        self._unsettled.append(done)
        return self._settle(launch)

    def _join(
        self, launch: DecodeLaunch, num_correct_drafts: Sequence[int], seconds: float | None
    ) -> FinishedRound:
        live = [
            row for row, req in enumerate(launch.reqs) if not (req.is_retracted or req.finished())
        ]
        whole = len(live) == len(launch.reqs)
        # Results come in order and this one's tokens are appended after this: what the requests
        # hold now is what they held when the round began.
        lens = [_context_len(req) for req in launch.reqs]
        signals = launch.signals()[:, : launch.num_steps] / (1.0, self.log_vocab)
        firsts = launch.batch.first_probs if launch.batch is not None else None
        if not whole:
            signals = signals[live]
            firsts = None if firsts is None else firsts[live]
        outcome = Round(
            launch.num_steps,
            len(launch.reqs),
            list(num_correct_drafts) if whole else [num_correct_drafts[row] for row in live],
            seconds,
            firsts,
            signals,
            sum(lens),
            launch.asleep,
        )
        return FinishedRound(outcome, launch, live, [lens[row] for row in live])

    def _settle(self, launch: DecodeLaunch) -> list[FinishedRound]:
        """Of the rounds that rode in ``launch`` only the newest has a shared time."""
        shared = float(launch.payload[0])
        newest = len(launch.settles) - 1
        settled = []
        for index, done in enumerate(launch.settles):
            seconds = shared if index == newest and shared == shared else None
            settled.append(replace(done, outcome=replace(done.outcome, seconds=seconds)))
        return settled


def _context_len(req: Any) -> int:
    return len(req.origin_input_ids) + len(req.output_ids)
