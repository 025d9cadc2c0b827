"""From launches and results to finished rounds: whose tier, whose time, whose signals.

A round's time is the wall time from the result before it to its own: what a round costs the user,
host work included. No event and no synchronisation is added. Under the overlap scheduler the host
launches the next round, or a prefill, between the two results. Where the device is the bottleneck,
so that the host has to wait for both results, that is hidden. Elsewhere the time holds that launch,
and counts only if it was of the same work.

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

from sglang_speckv.config import Shape
from sglang_speckv.policy.base import Batch, Decision, Round

FIRST_PROB = "speckv_first_prob"
"""Attribute of a request: the newest known top-1 probability of its next first draft token. It
lives and dies with the request, so nothing has to be cleaned up after aborts."""

NUMBER = "speckv_number"
"""Attribute of a request: a number that no other one has; the same on every rank, for ranks see
requests in the same order."""

TREE_SIGNALS = 3
"""Of every node of a tree that is verified: the joint probability of the path to it, its level, and
whether it was accepted. Behind them the coming round's first draft's, as of a chain."""

SECONDS, DIGEST, TROUBLE, MADE = range(4)
HEAD = 4
"""Numbers in front of a payload's signals. For the other ranks: rank 0's time of the newest
finished round (NaN where there is none), rank 0's digest of the decision that this launch follows,
and how many ranks cannot trust their decisions; not written where one rank decides alone. And how
many drafts a round made that could stop on the device; not written where it could not."""


@dataclass(slots=True, eq=False)
class Launch:
    """What is remembered of a forward between its launch and its result.

    ``payload`` holds the signals, flattened, behind :data:`HEAD`; on the device until the result
    is copied.
    """

    reqs: tuple[Any, ...]
    payload: Tensor
    size: tuple[int, ...]
    early: bool = False
    """The host may have the signals before the result: they are there, or ``ready`` says when."""
    ready: Any = None
    told: bool = False
    """The requests know of their next first draft."""

    def on_host(self) -> np.ndarray:
        """The payload, once it is there."""
        if self.ready is not None:
            self.ready.synchronize()
            self.ready = None
        return self.payload.numpy()

    def signals(self) -> np.ndarray:
        """[bs, num_steps + 1, 2] of a decode round, [bs, drafts + 1, 3] of a tree's, [bs, 1, 2] of
        a prefill."""
        return self.on_host()[HEAD:].reshape(self.size)

    def tell(self) -> None:
        """Each request's next first-token probability, unless a newer one was told."""
        if self.told:
            return
        self.told = True
        for req, prob in zip(self.reqs, self.signals()[:, -1, 0].tolist(), strict=True):
            setattr(req, FIRST_PROB, prob)


@dataclass(slots=True, eq=False)
class DecodeLaunch(Launch):
    """``follows``: a decode round was launched before it and nothing else since. ``overlapped``:
    the result of that one was not here yet. ``other_behind``: other work was launched before this
    one's result. ``digest``: of the decision, on this rank. ``settles``: rounds whose shared time
    rides in this payload."""

    num_steps: int = 0
    """The tier: of a chain its depth."""
    tree: Shape | None = None
    """What the tier stands for where trees are drafted."""
    follows: bool = False
    overlapped: bool = False
    other_behind: bool = False
    host_waits: bool = False
    """The host waits for this launch's signals before the next one."""
    batch: Batch | None = None
    decision: Decision | None = None
    digest: int = 0
    asleep: bool = False
    widths: np.ndarray | None = None
    """How many of each request's drafts are verified; None for all of them."""
    may_stop: bool = False
    """The device decides how many drafts it makes, and the payload says it."""
    exact: Sequence[str | None] = ()
    """Per request the parameter for which it took no drafts, None where it speculated; empty where
    all of them did."""
    settles: tuple[FinishedRound, ...] = ()

    @property
    def shape(self) -> Shape:
        return self.tree or Shape(self.num_steps, self.num_steps + 1)

    @property
    def made(self) -> int | None:
        """The drafts that the round made of each request, where the device stopped it."""
        if not self.may_stop:
            return None
        made = float(self.on_host()[MADE])
        return int(made) if 1 <= made < self.num_steps else None

    @property
    def stopped(self) -> bool:
        """The round ended before the depth that was decided, by what its own drafts said."""
        if self.made is not None:
            return True
        decision = self.decision
        return decision is not None and decision.watched and self.num_steps < decision.num_steps

    @property
    def cut(self) -> int:
        """Drafts that were not verified."""
        widths = self.widths
        return 0 if widths is None else self.num_steps * len(widths) - int(widths.sum())

    @property
    def work(self) -> tuple[int, int, bool, bool]:
        """Rounds of equal work take equally long, apart from noise."""
        return self.num_steps, len(self.reqs), self.asleep, self.host_waits


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRound:
    """``outcome`` has live requests only, and of them those that speculated; ``live`` are their
    rows in ``launch``, ``context_lens`` their lengths in tokens when the round began. ``exact``: of
    each live request that did not speculate, for which parameter."""

    outcome: Round
    launch: DecodeLaunch
    live: Sequence[int]
    context_lens: Sequence[int]
    exact: Sequence[str] = ()


class RoundTracker:
    """Follows rounds from launch to result.

    ``share``: where several ranks decide, returns the payload that all of them are to see: rank
    0's, and the sum of what every rank wrote at :data:`TROUBLE`; in stream order. Ranks that
    decided on their own clocks or signals would choose different depths and hang. A round's time
    is then settled by the payload of a later launch, with no host waiting.
    ``early_copy``: copies a tensor to the host on the spot and returns it with the event after
    which it may be read; None where tensors are on the host anyway.
    ``alarm`` is called at the same result on every rank once one of them has reason to distrust
    its decisions.
    """

    def __init__(
        self,
        share: Callable[[Tensor], Tensor] | None = None,
        early_copy: Callable[[Tensor], tuple[Tensor, Any]] = lambda payload: (payload, None),
        alarm: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.log_vocab = 1.0
        """Log of the draft vocabulary's size: the unit of entropies in :class:`Round`."""
        self.waits_for_signals = False
        """Let :meth:`next_batch` wait for the coming round's first-token signal."""
        self._share = share
        self._early_copy = early_copy
        self._alarm = alarm
        self._clock = clock
        self._flying: deque[Launch] = deque(maxlen=4)
        self._unsettled: list[FinishedRound] = []
        self._last_was_decode = False
        self._last_result: float | None = None
        self._waited_for_last = False
        self._in_trouble = False
        self._numbered = 0

    # -- launches

    def next_batch(self, reqs: Sequence[Any], closed: Sequence[int] = ()) -> Batch:
        """What is known of ``reqs`` before their round; those in the rows ``closed`` take no
        drafts."""
        if self.waits_for_signals:
            for launch in self._flying:
                if launch.early:
                    launch.tell()
        firsts = np.array([getattr(req, FIRST_PROB, math.nan) for req in reqs])
        return Batch(len(reqs), firsts, [self._number_of(req) for req in reqs], closed)

    def _number_of(self, req: Any) -> int:
        number: int | None = getattr(req, NUMBER, None)
        if number is None:
            number, self._numbered = self._numbered, self._numbered + 1
            setattr(req, NUMBER, number)
        return number

    def disturbed(self) -> None:
        """Something else than a decode round is launched: the time of the next round is not its
        own, and that of the round in flight may not be."""
        self._last_was_decode = False
        self._launch_behind(None)

    def _launch_behind(self, work: tuple[Any, ...] | None) -> None:
        for launch in self._flying:
            if isinstance(launch, DecodeLaunch) and launch.work != work:
                launch.other_behind = True

    def prefilled(self, reqs: Sequence[Any], first: Tensor) -> Launch:
        """A prefill was launched; ``first`` [bs, 1, 2] are its first-token signals."""
        self.disturbed()
        launch = Launch(tuple(reqs), self._pack(first), tuple(first.shape))
        self._fly(launch)
        return launch

    def launched(
        self,
        reqs: Sequence[Any],
        num_steps: int,
        signals: Tensor,
        batch: Batch | None = None,
        decision: Decision | None = None,
        digest: int = 0,
        asleep: bool = False,
        widths: np.ndarray | None = None,
        made: Tensor | None = None,
        exact: Sequence[str | None] = (),
        tree: Shape | None = None,
    ) -> DecodeLaunch:
        """A decode round was launched; ``signals`` are [bs, num_steps + 1, 2], and of a ``tree``
        [bs, drafts + 1, 3]. ``digest``: at most 24 bits that differ where ``decision`` or what it
        followed from does. ``made`` []: how many drafts the device makes, where that is for it to
        decide."""
        settles = tuple(self._unsettled)
        self._unsettled.clear()
        newest = settles[-1].outcome.seconds if settles else None
        launch = DecodeLaunch(
            tuple(reqs),
            self._pack(signals, newest, digest, made),
            tuple(signals.shape),
            num_steps=num_steps,
            tree=tree,
            follows=self._last_was_decode,
            overlapped=bool(self._flying),
            host_waits=self.waits_for_signals,
            batch=batch,
            decision=decision,
            digest=digest,
            asleep=asleep,
            widths=widths,
            may_stop=made is not None,
            exact=exact,
            settles=settles,
        )
        self._last_was_decode = True
        self._launch_behind(launch.work)
        self._fly(launch)
        return launch

    def _pack(
        self,
        signals: Tensor,
        seconds: float | None = None,
        digest: int = 0,
        made: Tensor | None = None,
    ) -> Tensor:
        numbers = HEAD + signals.numel()
        payload = torch.empty(numbers, dtype=torch.float32, device=signals.device)
        payload[HEAD:] = signals.flatten()
        if made is not None:
            payload[MADE].copy_(made)
        if self._share is None:
            return payload
        payload[SECONDS].fill_(math.nan if seconds is None else seconds)
        payload[DIGEST].fill_(digest)
        payload[TROUBLE].fill_(self._in_trouble)
        return self._share(payload)

    def _fly(self, launch: Launch) -> None:
        if self.waits_for_signals:
            launch.early = True
            launch.payload, launch.ready = self._early_copy(launch.payload)
        self._flying.append(launch)

    # -- results

    def landed(self, launch: Launch) -> None:
        """The result of ``launch`` is on the host; results come in order."""
        if self._share is not None:
            self._listen(launch)
        if launch in self._flying:
            while self._flying.popleft() is not launch:
                pass  # never processed: its requests are gone
        launch.tell()

    def _listen(self, launch: Launch) -> None:
        """Whether the ranks still decide alike."""
        _, digest, trouble, _ = launch.on_host()[:HEAD].tolist()
        if isinstance(launch, DecodeLaunch) and digest != launch.digest:
            self.distrust()
        if trouble:
            self._in_trouble = False
            self._alarm()

    def distrust(self) -> None:
        """This rank's decisions may not be those of the others, or follow from nothing true."""
        if self._share is None:
            self._alarm()
        else:
            self._in_trouble = True

    def finished(
        self, launch: DecodeLaunch, num_correct_drafts: Sequence[int], waited: bool = False
    ) -> list[FinishedRound]:
        """The rounds that can be learned from, now that the result of ``launch`` is here.
        ``waited``: the host had to wait for it, so the device finished just now."""
        self.landed(launch)
        seconds = self._own_time(launch, waited)
        done = self._join(launch, num_correct_drafts, seconds)
        if self._share is None:
            return [done]
        self._unsettled.append(done)
        return self._settle(launch)

    def _own_time(self, launch: DecodeLaunch, waited: bool) -> float | None:
        """Seconds since the last result where they are this round's own."""
        now, last = self._clock(), self._last_result
        by_device = waited and self._waited_for_last
        self._last_result, self._waited_for_last = now, waited
        # One launch lies between the two results: this round's own or that of the next one.
        one_launch = launch.overlapped == bool(self._flying)
        own = launch.follows and one_launch and (by_device or not launch.other_behind)
        return now - last if own and last is not None else None

    def _join(
        self, launch: DecodeLaunch, num_correct_drafts: Sequence[int], seconds: float | None
    ) -> FinishedRound:
        live = [
            row for row, req in enumerate(launch.reqs) if not (req.is_retracted or req.finished())
        ]
        names, exact = launch.exact, []
        if names:
            exact = [name for row in live if (name := names[row]) is not None]
            live = [row for row in live if names[row] is None]
        whole = len(live) == len(launch.reqs)
        # Results come in order and this one's tokens are appended after this: what the requests
        # hold now is what they held when the round began.
        lens = [_context_len(req) for req in launch.reqs]
        signals: np.ndarray | None = None
        told, nodes = launch.signals(), None
        if told.shape[2] == TREE_SIGNALS:
            nodes = told[:, :-1].astype(float)
        else:
            signals = told[:, : launch.num_steps] / (1.0, self.log_vocab)
        batch = launch.batch or Batch(len(launch.reqs))
        firsts, requests = batch.first_probs, batch.requests
        if not whole:
            signals = None if signals is None else signals[live]
            nodes = None if nodes is None else nodes[live]
            firsts = None if firsts is None else firsts[live]
            requests = None if requests is None else [requests[row] for row in live]
        outcome = Round(
            launch.num_steps,
            len(launch.reqs),
            list(num_correct_drafts) if whole else [num_correct_drafts[row] for row in live],
            seconds,
            firsts,
            signals,
            launch.asleep,
            requests,
            launch.stopped,
            None if launch.widths is None else launch.widths[live],
            launch.cut,
            launch.made,
            nodes,
        )
        return FinishedRound(outcome, launch, live, [lens[row] for row in live], exact)

    def _settle(self, launch: DecodeLaunch) -> list[FinishedRound]:
        """Of the rounds that rode in ``launch`` only the newest has a shared time."""
        shared = float(launch.on_host()[SECONDS])
        # Taken out of the launch: each would keep the launch before it alive, for ever.
        settles, launch.settles = launch.settles, ()
        newest = len(settles) - 1
        settled = []
        for index, done in enumerate(settles):
            seconds = shared if index == newest and shared == shared else None
            settled.append(replace(done, outcome=replace(done.outcome, seconds=seconds)))
        return settled


def _context_len(req: Any) -> int:
    return len(req.origin_input_ids) + len(req.output_ids)
