"""The default policy: the depth with the most tokens per second, at this load, on this machine.

    k* = argmax_k [ sum_r A_r(k) - lambda T(B, k) ]      lambda: long-run tokens/s at this load

with A from the acceptance table and T from profiled and measured round times. Where neither a
profile nor an artifact told the times, a first look at three tiers; then every round its own
choice, a switch when staying has cost what switching costs, probing on a budget, and a guard that
compares realised rates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np

from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.checks import context_of, is_count, is_round
from sglang_speckv.policy.cost import CostModel, ProfileRow, bucket_of
from sglang_speckv.policy.guard import Guard
from sglang_speckv.policy.plan import Mix, Plan
from sglang_speckv.policy.prior import OFF, AcceptancePrior, CostPrior
from sglang_speckv.policy.probing import Probing

LOOK_ROUNDS = 3
"""Rounds at each tier of the first look."""
SWITCH_SECONDS = 20e-6
"""What a switch of tiers costs in the engine (`benchmarks/switching.py`): staying is changed when
it has cost as much."""
PLAN_ROUNDS = 64
"""Rounds that a batch size's plan is kept for where none of that size is observed."""
RENEW_ROUNDS = 4
"""Rounds that are waited for before they are learned from, all at once, ..."""
RENEW_REQUESTS = 8
"""... and requests in them: a single one's labels say little ..."""
YOUNG = 64
"""... once this many rounds were seen; before, after every one."""
MOST_WAITING = 16
"""Rounds that wait at most while other work is due."""
LOOK_AHEAD_ROUNDS = 8
"""Rounds from one look for a tier that is worth a probe to the next."""
MAX_PLANS = 64
REASONS = ("launch", "look", "best", "signal", "probe", "guard")


class ThroughputPolicy:
    """Reasons: ``launch`` (no round times yet), ``look`` (the first rounds), ``best`` (the tier
    that is best at this load), ``signal`` (these requests' draft probabilities say another one),
    ``probe`` (a doubtful tier is tried) and ``guard`` (the tier with the best realised rate is
    held).

    ``acceptance`` and ``cost`` are what an artifact knows of this pair and machine; None starts
    from the documented defaults of :mod:`~sglang_speckv.policy.acceptance` and
    :mod:`~sglang_speckv.policy.cost`.
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
        self._acceptance = Acceptance(self.candidate_steps[-1], acceptance)
        self._cost = CostModel(self.candidate_steps[-1], cost)
        self._look = [] if self._cost.samples else _first_look(self.candidate_steps, self._launch)
        self._guards: dict[int, Guard] = {}
        self._probing = Probing()
        self._mixes: dict[int, Mix] = {}
        self._plans: dict[int, tuple[int, Plan]] = {}
        self._waiting: list[tuple[int, int, np.ndarray, float | None]] = []
        self._waiting_requests = 0
        self._plan_due = False
        self._held = self.candidate_steps.index(self._launch)
        self._regret = 0.0
        self._decisions = dict.fromkeys(REASONS, 0)
        self._observed = self._ignored = self._switches = 0
        self._last_size, self._last_context = 1, 0
        self._may_sleep = True
        self._lay_table()

    def profiled(self, rows: Iterable[ProfileRow]) -> None:
        """Take round times from a profile, rows of (batch_size, num_steps, context_len, seconds),
        one per round (num_steps -1: at depth 0, the draft asleep); with any there is no first look.
        Says nothing of acceptance."""
        self._cost.profiled(rows)
        self._plans.clear()
        if self._cost.samples:
            self._look = []

    def allow_sleep(self, may_sleep: bool) -> None:
        """Whether a round at depth 0 may leave the draft out; True at first."""
        self._may_sleep = may_sleep
        self._plans.clear()

    def decide(self, batch: Batch) -> Decision:
        decision = self._choose(batch)
        self._decisions[decision.reason] += 1
        return decision

    def _choose(self, batch: Batch) -> Decision:
        if not is_count(batch.size):
            return Decision(self._launch, "launch", self._unknown[self._launch])
        size = int(batch.size)
        counts = self._acceptance.count(size, batch.first_probs)
        tokens = (counts @ self._table).tolist()
        if self._look or not self._cost.samples:
            steps, reason = (self._look.pop(), "look") if self._look else (self._launch, "launch")
            return Decision(steps, reason, tokens[self.candidate_steps.index(steps)] / size)
        plan = self._plan(size)
        if counts[-1] < size:  # a sleeping draft, of whom nothing is known, says nothing of the mix
            self._mix(bucket_of(size)).add(counts, size)
        tier, reason = self._tier(bucket_of(size), plan, tokens)
        steps, expected = self.candidate_steps[tier], tokens[tier] / size
        return Decision(steps, reason, expected, not plan.off, plan.rate / self._cost.level)

    def _tier(self, bucket: int, plan: Plan, tokens: Sequence[float]) -> tuple[int, str]:
        chosen, losses = plan.choose(tokens)
        chosen = self._settle(chosen, losses[self._held])
        guarded = self._guard(bucket).overrule(chosen)
        if guarded is not None:
            return guarded, "guard"
        probe = self._probing.next(bucket)
        if probe is not None:
            return probe, "probe"
        return chosen, "best" if chosen == plan.best else "signal"

    def _settle(self, chosen: int, loss: float) -> int:
        """The held tier, or ``chosen`` where staying has cost a switch by now."""
        if chosen == self._held:
            self._regret = 0.0
            return chosen
        self._regret += loss * self._cost.level
        if self._regret < SWITCH_SECONDS:
            return self._held
        self._switches += 1
        self._regret = 0.0
        self._held = chosen
        return chosen

    def _guard(self, bucket: int) -> Guard:
        if bucket not in self._guards:
            self._guards[bucket] = Guard(self.candidate_steps)
        return self._guards[bucket]

    def _mix(self, bucket: int) -> Mix:
        if bucket not in self._mixes:
            self._mixes[bucket] = Mix(self._acceptance.rows)
        return self._mixes[bucket]

    def _plan(self, size: int) -> Plan:
        made, plan = self._plans.get(size, (-PLAN_ROUNDS, None))
        if plan is None or self._observed - made >= PLAN_ROUNDS:
            plan = self._make_plan(size)
        return plan

    def _make_plan(self, size: int) -> Plan:
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        context = self._last_context * size // self._last_size  # requests as long as the last ones
        every = self._cost.times(size, context)
        times = [every[steps] for steps in self.candidate_steps]
        shares = self._mix(bucket_of(size)).shares()
        _, before = self._plans.get(size, (0, None))
        sleeps = self._may_sleep and self.candidate_steps[0] == 0
        off = self._cost.off_time(size, context) if sleeps else None
        plan = Plan.of(size, self._table, shares, times, before, off)
        self._plans[size] = self._observed, plan
        return plan

    def _lay_table(self) -> None:
        lengths = self._acceptance.lengths
        self._table = np.ascontiguousarray(lengths[:, self.candidate_steps])
        self._unknown: list[float] = lengths[-1].tolist()

    def observe(self, outcome: Round) -> None:
        if not is_round(outcome, self.candidate_steps):
            self._ignored += 1
            return
        steps, size = int(outcome.num_steps), int(outcome.batch_size)
        context = context_of(outcome.context_len)
        self._observed += 1
        self._last_size, self._last_context = size, context
        row = OFF if outcome.asleep else steps
        ratio = self._cost.update(size, row, outcome.seconds, context)
        cells = self._acceptance.cells(steps, outcome.num_correct_drafts, outcome.first_probs)
        self._waiting.append((bucket_of(size), steps, cells, ratio))
        self._waiting_requests += size
        self._catch_up(size, self._cost.refitted)

    def _catch_up(self, size: int, refitted: bool) -> None:
        """What takes long is done here, where time is cheaper than in :meth:`decide`; once there is
        no hurry, one such thing a round."""
        young = self._observed <= YOUNG
        looks = self._observed % LOOK_AHEAD_ROUNDS == LOOK_AHEAD_ROUNDS // 2
        busy = (refitted or looks) and not young
        learns = young or self._learning_is_due(busy)
        if learns:
            self._learn()
        if self._cost.samples:
            self._plan_ahead(size, looks, may_plan=young or not (busy or learns))

    def _learning_is_due(self, busy: bool) -> bool:
        waiting = len(self._waiting)
        if waiting < RENEW_ROUNDS or self._waiting_requests < RENEW_REQUESTS:
            return False
        return not busy or waiting >= MOST_WAITING

    def _learn(self) -> None:
        """From the rounds that wait for it."""
        told = self._acceptance.update([cells for _, _, cells, _ in self._waiting])
        for (bucket, steps, _, ratio), (requests, tokens, expected) in zip(
            self._waiting, told, strict=True
        ):
            if ratio is not None and requests:
                self._guard(bucket).update(steps, requests, tokens / expected, ratio)
        self._waiting.clear()
        self._waiting_requests = 0
        self._plan_due = True
        self._lay_table()

    def _plan_ahead(self, size: int, looks: bool, may_plan: bool) -> None:
        if self._plan_due and may_plan:
            plan = self._make_plan(size)
            self._plan_due = False
        else:
            plan = self._plan(size)
        self._guard(bucket_of(size)).check(plan)
        if looks:
            hope = self._acceptance.hope(self.candidate_steps[plan.best])
            errors = self._cost.errors(size)
            hopes = [float(hope[k]) for k in self.candidate_steps]
            doubts = [errors[k] for k in self.candidate_steps]
            self._probing.look(bucket_of(size), plan, hopes, doubts)

    def explain(self, batch: Batch) -> dict[str, object]:
        """What :meth:`decide` would do with this batch and why, as JSON builtins; changes
        nothing. ``worth`` is in tokens: those expected less the price of the time."""
        decision = copy.deepcopy(self).decide(batch)
        told: dict[str, object] = {"num_steps": decision.num_steps, "reason": decision.reason}
        if not self._cost.samples or not is_count(batch.size):
            return told
        plan, level = copy.deepcopy(self)._plan(batch.size), self._cost.level
        counts = self._acceptance.count(batch.size, batch.first_probs)
        tokens = (counts @ self._table).tolist()
        per_tier = {
            "tokens": tokens,
            "seconds": [time * level for time in plan.times],
            "worth": [n - plan.rate * t for n, t in zip(tokens, plan.times, strict=True)],
            "usual_tokens_per_s": [rate / level for rate in plan.rates],
        }
        return {
            **told,
            "batch_size": int(batch.size),
            "with_signal": int(batch.size - counts[-1]),
            "tokens_per_s": round(plan.rate / level, 3),
            "asleep": plan.off,
            **{
                what: {
                    str(k): round(v, 6) for k, v in zip(self.candidate_steps, values, strict=True)
                }
                for what, values in per_tier.items()
            },
        }

    def snapshot(self) -> dict[str, object]:
        size = self._last_size
        known = bool(self._cost.samples)
        rate = self._plan(size).rate / self._cost.level if known else None
        return {
            "survival": [round(s, 4) for s in self._acceptance.survival().tolist()],
            "labels": [round(n, 1) for n in self._acceptance.counts],
            "calibration": self._acceptance.calibration.snapshot(),
            "batch_size": size,
            "round_ms": self._round_ms(size) if known else None,
            "tokens_per_s": None if rate is None else round(rate, 3),
            "level": round(self._cost.level, 4),
            "noise": round(self._cost.noise, 4),
            "rounds": self._observed,
            "timed_rounds": self._cost.samples,
            "ignored_rounds": self._ignored,
            "switches": self._switches,
            "guard_holds": sum(guard.holds for guard in self._guards.values()),
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
