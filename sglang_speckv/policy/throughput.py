"""The default policy: the depth with the most tokens per second, at this load, on this machine.

    worth(k) = tokens(k) - lambda T(B, k)

tokens(k) are the tokens expected of the batch at depth k, T(B, k) is the time of such a round, and
lambda is the price of a second: what this load has been earning in one. The tier with the most
worth is taken. Depth 0 is a tier too: where a round without the draft is worth most, the draft
sleeps. Every so often a round is drafted one tier deeper or shallower than the best one, sooner
again where that paid.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.checks import context_of, correct_drafts_of, is_count, is_round
from sglang_speckv.policy.cost import CostModel, ProfileRow, bucket_of
from sglang_speckv.policy.prior import OFF, AcceptancePrior, CostPrior

RECENT = 64.0
"""Rounds of a load after which one weighs 1/e in what the load has been earning."""
STAY = 0.01
"""Relative gain for which a draft is put to sleep or woken. Near a tie it would be both at random,
and waking costs what was saved."""
PROBE_ROUNDS, PROBE_AGAIN = 64, 4
"""Rounds from one probe to the next; the fewest after probes that paid."""
PROBE_SHARE, PROBE_MOST = 0.003, 2.0
"""Share of the time that probes may lose against the best tier, and the most rounds that are saved
up for one: dearer ones are never made."""
LOOK_ROUNDS = 3
"""Rounds at each of three tiers where nothing told the times."""
REASONS = ("launch", "look", "best", "probe")


@dataclass(slots=True)
class Load:
    """What is known of one bucket of batch sizes."""

    tokens: float = 0.0
    seconds: float = 0.0
    """Decayed sums over the recent rounds, per request: expected tokens and times of what was
    chosen."""
    asleep: bool = False
    wait: int = PROBE_ROUNDS
    left: int = PROBE_ROUNDS
    """Rounds between probes, and to the next one."""
    deeper: bool = False
    """Which way the last one went."""
    credit: float = 1.0
    lost: float = 0.0
    """What may be spent on probes, and what the last one was expected to lose, in rounds."""

    def earn(self, tokens: float, seconds: float) -> None:
        self.tokens += tokens - self.tokens / RECENT
        self.seconds += seconds - self.seconds / RECENT


class ThroughputPolicy:
    """Reasons: ``launch`` (no round times yet), ``look`` (the first rounds), ``best``, ``probe``
    (one tier deeper or shallower than the best).

    ``acceptance`` and ``cost`` are what an artifact knows of this pair and machine.
    """

    name = "throughput"

    def __init__(
        self,
        candidate_steps: Sequence[int],
        initial_steps: int,
        acceptance: AcceptancePrior | None = None,
        cost: CostPrior | None = None,
    ):
        self.candidate_steps = tuple(candidate_steps)
        self._launch = min(self.candidate_steps, key=lambda steps: abs(steps - initial_steps))
        self._acceptance = Acceptance(max(self.candidate_steps[-1], 1), acceptance)
        self._cost = CostModel(self.candidate_steps[-1], cost)
        self._look = [] if self._cost.samples else _first_look(self.candidate_steps, self._launch)
        self._loads: dict[int, Load] = {}
        self._probed: tuple[int, int, float] | None = None
        """The deeper probe that is under way: its load, its tier, the tokens that would pay it."""
        self._times_of: dict[int, tuple[int, list[float], float | None]] = {}
        self._decisions = dict.fromkeys(REASONS, 0)
        self._observed = self._ignored = 0
        self._last_size, self._last_context = 1, 0
        self._may_sleep = True

    def profiled(self, rows: Iterable[ProfileRow]) -> None:
        """Take round times from a profile, rows of (batch_size, num_steps, context_len, seconds),
        one per round (num_steps -1: at depth 0, the draft asleep); with any there is no first look.
        Says nothing of acceptance."""
        self._cost.profiled(rows)
        self._times_of.clear()
        if self._cost.samples:
            self._look = []

    def allow_sleep(self, may_sleep: bool) -> None:
        """Whether a round at depth 0 may leave the draft out; True at first."""
        self._may_sleep = may_sleep
        self._times_of.clear()

    def decide(self, batch: Batch) -> Decision:
        decision = self._choose(batch)
        self._decisions[decision.reason] += 1
        return decision

    def _choose(self, batch: Batch) -> Decision:
        if not is_count(batch.size):
            return Decision(self._launch, "launch")
        size = int(batch.size)
        tokens = self._tokens(batch)
        if self._look or not self._cost.samples:
            steps, reason = (self._look.pop(), "look") if self._look else (self._launch, "launch")
            return Decision(steps, reason, tokens[self.candidate_steps.index(steps)] / size)
        load = self._loads.setdefault(bucket_of(size), Load())
        worth, times, price = self._worth(size, load, tokens)
        best = tier = worth.index(max(worth))
        reason = "best"
        probe = self._probe(load, best, worth, price * times[best])
        if probe is not None:
            tier, reason = probe, "probe"
            if load.deeper:
                self._probed = bucket_of(size), tier, price * times[tier]
        load.earn(tokens[best] / size, times[best] / size)
        steps, awake = self.candidate_steps[tier], not (load.asleep and tier == 0)
        return Decision(steps, reason, tokens[tier] / size, awake, price / self._cost.level)

    def _tokens(self, batch: Batch) -> list[float]:
        every = self._acceptance.tokens(int(batch.size), batch.first_probs, batch.requests)
        return [every[steps] for steps in self.candidate_steps]

    def _worth(
        self, size: int, load: Load, tokens: Sequence[float]
    ) -> tuple[list[float], list[float], float]:
        """Of every tier its worth in tokens and its time, and the price of time."""
        times, off = self._times(size)
        usual = self._acceptance.usual
        drafting = max(
            size * usual[k] / t for k, t in zip(self.candidate_steps, times, strict=True)
        )
        if load.seconds > 0.0 and not load.asleep:
            drafting = max(drafting, load.tokens / load.seconds)
        price = drafting
        asleep = off is not None and size / off > drafting * (
            1.0 + (-STAY if load.asleep else STAY)
        )
        if asleep != load.asleep:
            load.asleep, load.tokens, load.seconds = asleep, 0.0, 0.0
        if asleep and off is not None:
            price, waking = size / off, times[0] - off
            times = [off, *(t + waking for t in times[1:])]  # it reads what it missed first
        return [n - price * t for n, t in zip(tokens, times, strict=True)], times, price

    def _probe(
        self, load: Load, best: int, worth: Sequence[float], round_worth: float
    ) -> int | None:
        """A tier beside the best one, where one is due and can be afforded."""
        load.left -= 1
        load.credit = min(load.credit + PROBE_SHARE, PROBE_MOST)
        deeper = not load.deeper or best == 0
        aside = best + (1 if deeper else -1)
        if load.left > 0:
            return None
        if aside >= len(worth):
            load.deeper = True
            return None
        lost = (worth[best] - worth[aside]) / round_worth
        if lost > load.credit:
            return None
        load.credit, load.lost = load.credit - lost, lost
        load.left = load.wait = min(PROBE_ROUNDS, 2 * load.wait)
        load.deeper, self._probed = deeper, None
        return aside

    def _times(self, size: int) -> tuple[list[float], float | None]:
        """T of every tier and of a round that the draft sleeps through, as of the last fit."""
        made, times, off = self._times_of.get(size, (-1, [], None))
        if made != self._cost.fits:
            if len(self._times_of) >= RECENT:
                self._times_of.clear()
            context = self._last_context * size // self._last_size  # requests as long as the last
            every = self._cost.times(size, context)
            times = [every[steps] for steps in self.candidate_steps]
            sleeps = self._may_sleep and self.candidate_steps[0] == 0
            off = self._cost.off_time(size, context) if sleeps else None
            self._times_of[size] = self._cost.fits, times, off
        return times, off

    def observe(self, outcome: Round) -> None:
        if not is_round(outcome, self.candidate_steps):
            self._ignored += 1
            return
        steps, size = int(outcome.num_steps), int(outcome.batch_size)
        context = context_of(outcome.context_len)
        self._observed += 1
        self._last_size, self._last_context = size, context
        self._cost.update(size, OFF if outcome.asleep else steps, outcome.seconds, context)
        self._acceptance.learn(
            steps, outcome.num_correct_drafts, outcome.first_probs, outcome.requests
        )
        self._judge_probe(size, steps, outcome)

    def _judge_probe(self, size: int, steps: int, outcome: Round) -> None:
        """After a probe that paid the next one comes sooner."""
        bucket, tier, pays = self._probed or (-1, 0, 0.0)
        if bucket != bucket_of(size) or self.candidate_steps[tier] != steps:
            return
        self._probed = None
        correct, _ = correct_drafts_of(outcome.num_correct_drafts, steps)
        if size + int(correct.sum()) > pays:
            load = self._loads[bucket]
            load.left = load.wait = max(PROBE_AGAIN, load.wait // 4)
            load.credit += load.lost

    def explain(self, batch: Batch) -> dict[str, object]:
        """What :meth:`decide` would do with this batch and why, as JSON builtins; changes
        nothing. ``worth`` is in tokens: those expected less the price of the time."""
        mine = copy.deepcopy(self)
        decision = mine.decide(batch)
        told: dict[str, object] = {"num_steps": decision.num_steps, "reason": decision.reason}
        if not self._cost.samples or not is_count(batch.size):
            return told
        size, level = int(batch.size), self._cost.level
        tokens = mine._tokens(batch)
        load = mine._loads[bucket_of(size)]
        worth, times, price = mine._worth(size, load, tokens)
        seconds = [time * level for time in times]
        per_tier = {"tokens": tokens, "seconds": seconds, "worth": worth}
        return {
            **told,
            "batch_size": size,
            "tokens_per_s": round(price / level, 3),
            "asleep": load.asleep,
            **{
                what: {
                    str(k): round(v, 6) for k, v in zip(self.candidate_steps, values, strict=True)
                }
                for what, values in per_tier.items()
            },
        }

    def snapshot(self) -> dict[str, object]:
        size, load = self._last_size, self._loads.get(bucket_of(self._last_size))
        earned = load.tokens / load.seconds if load and load.seconds else None
        known = bool(self._cost.samples)
        return {
            "survival": [round(s, 4) for s in self._acceptance.survival()],
            "labels": [round(n, 1) for n in self._acceptance.labels.tolist()],
            "batch_size": size,
            "round_ms": self._round_ms(size) if known else None,
            "tokens_per_s": None if earned is None else round(earned / self._cost.level, 3),
            "asleep": bool(load and load.asleep),
            "level": round(self._cost.level, 4),
            "noise": round(self._cost.noise, 4),
            "rounds": self._observed,
            "timed_rounds": self._cost.samples,
            "ignored_rounds": self._ignored,
            "decisions": dict(self._decisions),
        }

    def _round_ms(self, size: int) -> dict[str, float]:
        seconds = self._cost.seconds(size)
        shown = {str(steps): round(1e3 * seconds[steps], 3) for steps in self.candidate_steps}
        off = self._cost.off_time(size)
        return shown if off is None else shown | {"asleep": round(1e3 * off * self._cost.level, 3)}


def _first_look(tiers: tuple[int, ...], launch: int) -> list[int]:
    """The first rounds, last one first: the launch step, about twice as deep, the shallowest."""
    deep = min(tiers, key=lambda steps: abs(steps - 2 * launch - 1))
    order = list(dict.fromkeys((launch, deep, tiers[0])))
    return [steps for steps in reversed(order) for _ in range(LOOK_ROUNDS)]
