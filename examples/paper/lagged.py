"""What the previous window tells of the next: ``throughput`` driven over the gamma-8 rounds.

A round that accepted n of 8 drafts tells what any depth up to 8 would have brought. The policy is
the one that serves, with its table learned from the other prompts (in ten folds) and
updated as it goes. Where it would be given the draft's probability of the coming round it gets one
made of the last window, the only thing recorded: a logistic fit of "the first draft is accepted"
on the window's minimum and mean confidence (log-odds) and maximum entropy, fitted on the other
prompts too. A round of depth k takes 1 + c k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from sglang_speckv.offline.fit_acceptance import teach
from sglang_speckv.policy import Batch, Round
from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.prior import AcceptancePrior, CostPrior
from sglang_speckv.policy.throughput import ThroughputPolicy

from .records import Records

DEPTH = 8
FOLDS, BATCH_FOLDS = 10, 2
"""Batches take half of the prompts each, so that what is held out is a mix of all tasks too."""
DEPTHS = np.arange(1, DEPTH + 1)


@dataclass(frozen=True)
class Rounds:
    """Gamma-8 rounds; ``signals`` [rounds, 3] of the window before, NaN in a run's first round."""

    accepted: np.ndarray
    signals: np.ndarray
    fold: np.ndarray
    task: np.ndarray

    @property
    def lagged(self) -> np.ndarray:
        """Rounds that have one before them; only these are scored."""
        return np.isfinite(self.signals[:, 0])


@dataclass(frozen=True)
class Gain:
    """In per cent of the best fixed depth's tokens per second over the same rounds."""

    best: int
    policy: float
    clairvoyant: float
    shares: np.ndarray
    """[DEPTH]: share of rounds at each depth."""


def rounds_of(records: Records, folds: int = FOLDS) -> Rounds:
    """``folds`` groups of prompts, each with a like share of every task."""
    deep = records.gamma == DEPTH
    run, task, prompt = records.run[deep], records.task[deep], records.prompt[deep]
    window = np.column_stack([
        _log_odds(records.min_confidence[deep]),
        _log_odds(records.mean_confidence[deep]),
        records.max_entropy[deep],
    ])  # fmt: skip
    before = np.full_like(window, np.nan)
    same = run[1:] == run[:-1]
    before[1:][same] = window[:-1][same]
    _, index = np.unique(np.char.add(task, prompt), return_inverse=True)  # task by task
    return Rounds(records.accepted[deep], before, index % folds, task)


def replay(rounds: Rounds, cost_ratio: float) -> Gain:
    """One request at a time, in recorded order."""
    chosen, scored = [], []
    for fold in np.unique(rounds.fold):
        known = rounds.fold != fold
        signal, prior = _learn(rounds, known)
        policy = _policy(prior, cost_ratio)
        for index in np.nonzero(~known)[0]:
            depth = _serve(policy, signal[[index]], rounds.accepted[[index]], cost_ratio)
            if rounds.lagged[index]:
                chosen.append(depth)
                scored.append(index)
    return _gain(np.array(chosen), rounds.accepted[scored][:, None], cost_ratio)


def replay_batches(
    rounds: Rounds, size: int, phased: bool, cost_ratio: float = 0.25, length: int = 300
) -> Gain:
    """``size`` rounds at a time under one depth, drawn from the held-out prompts: of all tasks
    together, or of one task after the other (``phased``), which is traffic that comes in phases."""
    rng = np.random.default_rng(size)
    chosen, drawn = [], []
    for fold in np.unique(rounds.fold):
        known = rounds.fold != fold
        held_out = np.nonzero(~known & rounds.lagged)[0]
        signal, prior = _learn(rounds, known)
        policy = _policy(prior, cost_ratio, size)
        pools = _pools(rounds, held_out, phased)
        for pool in pools:
            for _ in range(length // len(pools)):
                batch = rng.choice(pool, size)
                chosen.append(_serve(policy, signal[batch], rounds.accepted[batch], cost_ratio))
                drawn.append(batch)
    return _gain(np.array(chosen), rounds.accepted[np.array(drawn)], cost_ratio)


def _pools(rounds: Rounds, indices: np.ndarray, phased: bool) -> list[np.ndarray]:
    if not phased:
        return [indices]
    tasks = rounds.task[indices]
    return [indices[tasks == task] for task in np.unique(tasks)]


def _learn(rounds: Rounds, known: np.ndarray) -> tuple[np.ndarray, AcceptancePrior]:
    """``first_prob`` of every round, NaN where there is none, and what the known ones teach."""
    lagged = rounds.lagged
    train = known & lagged
    fit = LogisticRegression().fit(rounds.signals[train], rounds.accepted[train] > 0)
    signal = np.full(len(known), np.nan)
    signal[lagged] = fit.predict_proba(rounds.signals[lagged])[:, 1]
    model = Acceptance(DEPTH)
    teach(model, np.full(known.sum(), DEPTH), rounds.accepted[known], signal[known])
    return signal, model.learned()


def _policy(prior: AcceptancePrior, cost_ratio: float, size: int = 1) -> ThroughputPolicy:
    """Told the cost, as after a start-up profile."""
    ones = np.ones(DEPTH)
    cost = CostPrior(size * ones.astype(int), DEPTHS, 1 + cost_ratio * DEPTHS, 100 * ones)
    return ThroughputPolicy(DEPTHS.tolist(), 4, prior, cost)


def _serve(
    policy: ThroughputPolicy, signal: np.ndarray, accepted: np.ndarray, cost_ratio: float
) -> int:
    depth = policy.decide(Batch(len(signal), signal)).num_steps
    correct: Sequence[int] = np.minimum(accepted, depth).tolist()
    policy.observe(Round(depth, len(signal), correct, 1 + cost_ratio * depth, signal))
    return depth


def _gain(chosen: np.ndarray, accepted: np.ndarray, cost_ratio: float) -> Gain:
    """``chosen`` [rounds], ``accepted`` [rounds, requests] of 8 drafts."""
    tokens = (np.minimum(accepted[:, :, None], DEPTHS) + 1).sum(axis=1)
    times = 1 + cost_ratio * DEPTHS
    every = np.arange(len(chosen))
    fixed = tokens.sum(axis=0) / (times * len(tokens))
    best = float(fixed.max())
    policy = tokens[every, chosen - 1].sum() / times[chosen - 1].sum()
    rate = best
    for _ in range(50):  # the rate that knowing every round's outcome would earn
        oracle = (tokens - rate * times).argmax(axis=1)
        rate = tokens[every, oracle].sum() / times[oracle].sum()
    return Gain(
        best=int(fixed.argmax()) + 1,
        policy=100.0 * (policy / best - 1.0),
        clairvoyant=100.0 * (rate / best - 1.0),
        shares=np.bincount(chosen, minlength=DEPTH + 1)[1:] / len(chosen),
    )


def _log_odds(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability, 1e-3, 1.0 - 1e-3)
    return np.log(p / (1.0 - p))
