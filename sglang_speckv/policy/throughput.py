"""The default policy: the depth with the most tokens per second, at this load, on this machine.

    worth(k) = tokens(k) - lambda T(B, k)

tokens(k) are the tokens expected of the batch at depth k, T(B, k) is the time of such a round, and
lambda is the price of a second: what this load's best rounds were expected to earn in one, lately,
and at least what a usual batch would. The tier with the most worth is taken. Depth 0 is a tier too:
where a round without the draft is worth most, the draft sleeps. Every so often a round is drafted
one tier deeper or shallower than the best one, at once again where that paid and the best one was
depth 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sglang_speckv.config import Shape
from sglang_speckv.policy.acceptance import RECENT, Acceptance
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.checks import (
    correct_drafts_of,
    is_count,
    is_round,
    widths_of,
    windows_of,
)
from sglang_speckv.policy.cost import CostModel, TimedRound
from sglang_speckv.policy.logistic import LIMIT, log_odds
from sglang_speckv.policy.prior import AcceptancePrior, CostPrior
from sglang_speckv.policy.stopping import Stopping, StopRule
from sglang_speckv.policy.trees import TreeAcceptance

PROBE_SHARE = 0.003
"""Share of the time that probes should lose against the best tier, in the long run: one follows
another after :data:`RECENT` rounds, after a dear one later. The first ones of a tier lose more, and
so does one that is repeated because it paid."""
MOST_LATE = 3
"""A round is observed before so many more are decided."""
REASONS = ("launch", "look", "best", "probe")


@dataclass(slots=True)
class Load:
    """What is known of a batch size."""

    to_probe: float = RECENT
    """Rounds to the next probe."""
    tokens: float = 0.0
    seconds: float = 0.0
    """Decayed sums over the recent rounds: expected tokens per request and times of the best."""
    asleep: bool = False
    deeper: bool = False
    """Which way the last one went."""
    waits: dict[int, float] = field(default_factory=dict)
    """Rounds that the newest probe of each tier put off the next one by."""
    pending: int = 0
    """Decisions by which the newest probe's result has surely come."""
    probe_cost: float = np.inf
    """Tokens that would pay for the newest probe from depth 0; infinite where its result has
    come."""

    def earn(self, tokens: float, seconds: float) -> None:
        self.tokens += tokens - self.tokens / RECENT
        self.seconds += seconds - self.seconds / RECENT

    def probe(self, tier: int, lost: float) -> None:
        """A probe goes out that should lose as much as ``lost`` rounds bring. It puts off the next
        one at most twice as long as the last of its tier did, the first not at all: what it loses
        is not well known before it is measured."""
        self.pending = MOST_LATE
        most = 2 * self.waits.get(tier, RECENT / 2)
        self.to_probe = self.waits[tier] = min(max(RECENT, lost / PROBE_SHARE), most)

    def probed(self, tokens: int) -> None:
        """The probe from depth 0 brought ``tokens``."""
        if tokens > self.probe_cost:
            self.to_probe = 0
        self.pending, self.probe_cost = 0, np.inf

    @property
    def keeps_awake(self) -> bool:
        """A probe is next, or the last one may be repeated. Of a round that wakes the draft nobody
        knows the time, so the draft is woken before it."""
        return self.to_probe <= 1 or self.pending > 0


class Weighed(NamedTuple):
    """What a decision weighed: of every tier the tokens expected of the batch, its time and its
    worth in tokens.

    ``whole``: the times with every draft verified. ``token_time``: what one more verified draft
    takes; 0 where all of them are. ``watchable``: the round's own drafts may change it.
    """

    batch_size: int
    asleep: bool
    price: float
    tokens: list[float]
    times: list[float]
    worth: list[float]
    whole: list[float]
    token_time: float
    watchable: bool

    @property
    def least(self) -> float:
        """The probability of surviving above which a draft is worth verifying."""
        return self.price * self.token_time


class ThroughputPolicy:
    """Reasons: ``launch`` (no round times yet), ``look`` (the first rounds), ``best``, ``probe``
    (one tier deeper or shallower than the best).

    ``acceptance`` and ``cost`` are what an artifact knows of this pair and machine; ``shapes`` what
    the tiers 0, 1, .. stand for with trees.
    """

    name = "throughput"

    def __init__(
        self,
        candidate_steps: Sequence[int],
        initial_steps: int,
        acceptance: AcceptancePrior | None = None,
        cost: CostPrior | None = None,
        shapes: Sequence[Shape] | None = None,
    ):
        self.candidate_steps = tuple(candidate_steps)
        self._shapes = None if shapes is None else tuple(shapes)
        self._names = dict(
            zip(self.candidate_steps, map(str, shapes or candidate_steps), strict=True)
        )
        self._launch = min(self.candidate_steps, key=lambda steps: abs(steps - initial_steps))
        self._depth = max(self.candidate_steps[-1], 1)
        self._trained = acceptance
        self._acceptance = self._new_acceptance()
        self._by_age = {False: self._acceptance}
        """By whether signals are late: see :meth:`use_late_signals`."""
        self._prior = cost
        self._cost = self._new_cost()
        self._look = [] if self._cost.rounds else _first_look(self.candidate_steps, self._launch)
        self._loads: dict[int, Load] = {}
        self._newest: Decision | None = None
        self._weighed: Weighed | None = None
        """By the newest decision; None where it had no times to weigh by."""
        self._decisions = dict.fromkeys(REASONS, 0)
        self._observed = self._ignored = 0
        self._last_size = 1
        self._may_sleep = True
        self._stopping: Stopping | None = None
        self._stops = self._cuts = self._on_device = False
        self._batch = Batch(0)
        """The newest one that was watched."""

    def _new_acceptance(self) -> Acceptance:
        if self._shapes is not None:
            return TreeAcceptance(self._shapes)
        return Acceptance(self._depth, self._trained)

    def _new_cost(self, padded: Sequence[int] = ()) -> CostModel:
        return CostModel(self.candidate_steps[-1], self._prior, padded, self._shapes)

    def watch(self, stops: bool, widths: bool, on_device: bool = False) -> None:
        """What the engine asks while a round runs: :meth:`goes_on`, :meth:`widths`. ``on_device``:
        before it, :meth:`stop_rule` instead of :meth:`goes_on`."""
        self._stops, self._cuts, self._on_device = stops, widths, on_device
        self._stopping = Stopping(self._depth) if stops or widths else None

    def profiled(self, rows: Iterable[TimedRound]) -> None:
        """Take round times from a profile; with any there is no first look. Says nothing of
        acceptance."""
        self._cost.profiled(rows)
        if self._cost.rounds:
            self._look = []

    def set_cuda_graph_bs(self, cuda_graph_bs: Sequence[int] | None) -> None:
        """The batch sizes that graphs were captured for; what rounds took before is forgotten."""
        self._cost = self._new_cost(cuda_graph_bs or ())
        self._loads.clear()

    def allow_sleep(self, may_sleep: bool) -> None:
        """Whether a round at depth 0 may leave the draft out; True at first."""
        self._may_sleep = may_sleep

    def use_late_signals(self, late: bool) -> None:
        """Whether the signals of batches are, from now on, those of the round before and not of the
        coming one. They say different things, so there is a model for each."""
        if late not in self._by_age:
            self._by_age[late] = self._new_acceptance()
        self._acceptance = self._by_age[late]

    def worth_of_fresh_signals(self) -> float:
        """What the newest batch would earn more by the coming round's signals than by those of the
        round before, as a share of its tokens; 0 as long as too little is known."""
        fresh, late = self._by_age[False], self._by_age.get(True)
        weighed = self._weighed
        if late is None or weighed is None or fresh.labels[0] < RECENT:
            return 0.0
        costs = np.full(self._depth + 1, np.inf)
        costs[list(self.candidate_steps)] = weighed.price * np.array(weighed.times)
        more, less = (model.worth_of_signals(weighed.batch_size, costs) for model in (fresh, late))
        return (more - less) / max(weighed.tokens)

    def decide(self, batch: Batch) -> Decision:
        decision = self._newest = self._choose(batch)
        self._decisions[decision.reason] += 1
        return decision

    def _choose(self, batch: Batch) -> Decision:
        self._weighed = None
        if not is_count(batch.size):
            return Decision(self._launch, "launch")
        size = int(batch.size)
        x = log_odds(batch.open_probs, (size,))
        if self._look or not self._cost.rounds:
            steps, reason = (self._look.pop(), "look") if self._look else (self._launch, "launch")
            return Decision(
                steps, reason, self._acceptance.tokens(x, batch.requests)[0][steps] / size
            )
        row = self._cost.row_of(size)
        if row not in self._loads:
            self._loads[row] = Load()
        load = self._loads[row]
        weighed = self._weighed = self._weigh(x, batch, load)
        best = weighed.worth.index(max(weighed.worth))
        load.earn(weighed.tokens[best] / size, weighed.times[best])
        tier = self._probe(load, weighed, best)
        awake = tier > 0 or not load.asleep or load.keeps_awake
        steps = self.candidate_steps[tier]
        length = weighed.tokens[tier] / size
        if tier != best:
            return Decision(steps, "probe", length, awake, weighed.price)
        watched = steps > 0 and weighed.watchable
        if watched:
            self._batch = batch
            if not self._on_device:
                steps = self._deepest_worth_starting(steps, batch)
        return Decision(steps, "best", None if watched else length, awake, weighed.price, watched)

    def _deepest_worth_starting(self, best: int, batch: Batch) -> int:
        """Where rounds may stop and the best depth is more than the one draft that is there: the
        greatest depth, if the second draft is worth it."""
        if not self._stops or best <= 1:
            return best
        firsts = np.asarray(batch.open_probs, dtype=float)[:, None]
        if 1 in self.candidate_steps and not self.goes_on(firsts):
            return 1
        return self.candidate_steps[-1]

    def stop_rule(self) -> StopRule | None:
        """How many drafts the round makes that was decided last, where a device sees to it; None
        where it makes all of them."""
        weighed = self._weighed
        if weighed is None or self._stopping is None or not self._stops:
            return None
        price = weighed.price * self._cost.draft_time(weighed.batch_size)
        rule = self._stopping.rule(price, weighed.batch_size, self._batch.requests)
        rule.offsets[list(self._batch.closed)] = -LIMIT * (LIMIT + 2)  # whatever the slopes
        return rule

    def goes_on(self, probs: np.ndarray) -> bool:
        """Whether the round that was decided last goes on to the next tier: ``probs`` [size, k]
        are the top-1 probabilities of the drafts that it has made, k of them, a tier."""
        weighed, made = self._weighed, probs.shape[1]
        if not self._stops:
            return True
        survival = self._survival(probs)
        if survival is None or weighed is None or made not in self.candidate_steps[:-1]:
            return made < self._launch
        tier = self.candidate_steps.index(made)
        more = survival[:, made : self.candidate_steps[tier + 1]]
        gain = np.maximum(more - weighed.least, 0.0).sum()
        drafting = weighed.whole[tier + 1] - weighed.whole[tier] - more.size * weighed.token_time
        return bool(gain > weighed.price * max(drafting, 0.0))

    def widths(self, probs: np.ndarray) -> np.ndarray | None:
        """How many of each request's drafts are worth verifying [size], now that the round has made
        those with the top-1 probabilities ``probs`` [size, k]; None where all are."""
        weighed = self._weighed
        survival = self._survival(probs) if self._cuts else None
        if weighed is None or survival is None:
            return None
        widths: np.ndarray = (survival[:, : probs.shape[1]] > weighed.least).sum(axis=1)
        return widths if widths.min(initial=probs.shape[1]) < probs.shape[1] else None

    def _survival(self, probs: np.ndarray) -> np.ndarray | None:
        stopping = self._stopping
        return None if stopping is None else stopping.survival(probs, self._batch.requests)

    def _weigh(self, x: np.ndarray, batch: Batch, load: Load) -> Weighed:
        size = len(x)
        drafting = size - len(batch.closed)
        every, usual = self._cost.times(size), self._acceptance.usual
        whole = [every[steps] for steps in self.candidate_steps]
        price = max((size + drafting * (usual[k] - 1)) / every[k] for k in self.candidate_steps)
        if load.seconds > 0.0 and not load.asleep:
            price = max(price, size * load.tokens / load.seconds)
        sleeps = self._may_sleep and self.candidate_steps[0] == 0
        slept = self._cost.asleep_time(size) if sleeps else None
        asleep = slept is not None and size / slept > price
        if asleep != load.asleep:
            load.asleep, load.tokens, load.seconds = asleep, 0.0, 0.0
            if not asleep:
                load.waits.clear()
        if asleep and slept is not None:
            price, waking = size / slept, whole[0] - slept
            whole = [slept, *(t + waking for t in whole[1:])]  # it reads what it missed first
        watchable = self._stopping is not None and not asleep and not np.isnan(x).any()
        token_time = self._cost.token_time(size) if self._cuts and watchable else 0.0
        told = self._acceptance.tokens(x, batch.requests, price * token_time)
        tokens, cut = ([column[steps] for steps in self.candidate_steps] for column in told)
        times = [t - token_time * n for t, n in zip(whole, cut, strict=True)]
        worth = [n - price * t for n, t in zip(tokens, times, strict=True)]
        return Weighed(size, asleep, price, tokens, times, worth, whole, token_time, watchable)

    def _probe(self, load: Load, weighed: Weighed, best: int) -> int:
        """The best tier, or the one beside it, deeper and shallower by turns, where that is due."""
        worth, wakes = weighed.worth, load.asleep and best > 0  # drafting tells more than a probe
        if len(worth) == 1:
            return best
        load.to_probe, load.pending = load.to_probe - 1, load.pending - 1
        if load.to_probe > 0 or wakes:
            return best
        load.deeper = best == 0 or (not load.deeper and best + 1 < len(worth))
        aside = best + (1 if load.deeper else -1)
        lost = (worth[best] - worth[aside]) / (weighed.price * weighed.times[best])
        if load.asleep:  # and the round before it that woke the draft
            lost += (
                self._cost.times(weighed.batch_size)[self.candidate_steps[0]] / weighed.times[0] - 1
            )
        load.probe(aside, lost)
        load.probe_cost = weighed.price * weighed.times[aside] if best == 0 else np.inf
        return aside

    def observe(self, outcome: Round) -> None:
        if not is_round(outcome, self.candidate_steps):
            self._ignored += 1
            return
        steps, size = int(outcome.num_steps), int(outcome.batch_size)
        self._observed += 1
        self._last_size = size
        widths, signals = widths_of(outcome, steps), outcome.signals
        cut = outcome.cut if widths is not None and is_count(outcome.cut) else 0
        if outcome.made is None:
            self._cost.update(size, steps, outcome.seconds, outcome.asleep, cut)
        elif is_count(outcome.made, steps):  # it took less time than its tier, nobody knows by what
            steps = int(outcome.made)
            signals = windows_of(signals)[:, :steps]
        correct, requests, expected = outcome.num_correct_drafts, outcome.requests, None
        load = self._loads.get(self._cost.row_of(size))
        if isinstance(self._acceptance, TreeAcceptance):
            self._acceptance.learn_tree(
                steps, correct, outcome.first_probs, requests, outcome.nodes
            )
            self._probed(load, outcome)
            return
        if self._stopping is not None and steps:
            expected = self._stopping.learn(steps, correct, signals, requests, widths)
        if expected is not None:  # as far as the round was to draft
            decided = self._depth if outcome.made is None and outcome.stopped else outcome.num_steps
            whole = widths is None and not outcome.stopped
            expected = None if whole else expected[:, :decided]
        self._acceptance.learn(steps, correct, outcome.first_probs, requests, widths, expected)
        if self._acceptance is not self._by_age[False] and steps:
            firsts = windows_of(signals)[:, 0, 0]
            self._by_age[False].learn(steps, correct, firsts, None, widths, expected)
        self._probed(load, outcome)

    def _probed(self, load: Load | None, outcome: Round) -> None:
        if load is not None and outcome.num_steps and load.probe_cost < np.inf:
            steps = self._most_right(outcome.num_steps)
            right, _ = correct_drafts_of(outcome.num_correct_drafts, steps)
            load.probed(int(outcome.batch_size) + int(right.sum()))

    def _most_right(self, tier: int) -> int:
        return tier if self._shapes is None else self._shapes[tier].num_steps

    @property
    def unexpected_drafts(self) -> float:
        """Drafts accepted so far beyond those that were expected to be: for metrics."""
        return self._acceptance.unexpected_drafts

    def explain(self) -> dict[str, object]:
        """The newest decision and why, as JSON builtins: the tokens that every depth was expected
        to bring, the milliseconds that it takes, and its worth in tokens, which are those expected
        less the price of the time."""
        if self._newest is None:
            return {}
        steps, reason = self._newest.num_steps, self._newest.reason
        chosen = {"num_steps": steps} if self._shapes is None else {"shape": self._names[steps]}
        told: dict[str, object] = {**chosen, "reason": reason}
        weighed = self._weighed
        if weighed is None:
            return told
        columns = zip(weighed.tokens, weighed.times, weighed.worth, strict=True)
        rows = [
            {"tokens": round(n, 3), "ms": round(1e3 * t, 3), "worth": round(worth, 3)}
            for n, t, worth in columns
        ]
        return told | {
            "batch_size": weighed.batch_size,
            "asleep": weighed.asleep,
            "tokens_per_s": round(weighed.price, 3),
            "depths": dict(zip(self._names.values(), rows, strict=True)),
        }

    def snapshot(self) -> dict[str, object]:
        size = self._last_size
        load = self._loads.get(self._cost.row_of(size))
        known = bool(self._cost.rounds)
        return {
            "survival": self._acceptance.shown(),
            "labels": [round(n, 1) for n in self._acceptance.labels.tolist()],
            "batch_size": size,
            "round_ms": self._round_ms(size) if known else None,
            "tokens_per_s": round(self._weighed.price, 3) if self._weighed else None,
            "asleep": bool(load and load.asleep),
            "rounds": self._observed,
            "timed_rounds": self._cost.rounds,
            "ignored_rounds": self._ignored,
            "decisions": dict(self._decisions),
        }

    def _round_ms(self, size: int) -> dict[str, float]:
        times, slept = self._cost.times(size), self._cost.asleep_time(size)
        seconds = {name: times[steps] for steps, name in self._names.items()}
        if slept is not None:
            seconds["asleep"] = slept
        return {name: round(1e3 * t, 3) for name, t in seconds.items()}


def _first_look(tiers: tuple[int, ...], launch: int) -> list[int]:
    """The first rounds, last one first: the launch step, about twice as deep, the shallowest. One
    each: three would cost 1 % of the first 300 rounds and tell no more."""
    deep = min(tiers, key=lambda steps: abs(steps - 2 * launch - 1))
    return list(dict.fromkeys((tiers[0], deep, launch)))
