"""How many drafts of each request get accepted: a logistic model that follows what is served.

    P(draft i of request r is accepted | those before it are) = sigmoid(a_i + b_i x_r + o_r)

x_r is the log-odds of the draft's top-1 probability of the coming round's first draft, the most
telling number that is known in time. a_i and b_i belong to a position (:mod:`policy.logistic`); o_r
is the request's own running acceptance: what it was better or worse than its signals said.

A request with c correct drafts out of k says "accepted" of positions 1..c and "rejected" of c + 1
where c < k; of deeper positions it says nothing. Where drafts were not made or not verified because
of what the round's drafts said of themselves, they count as what was expected of them: leaving them
out would take the confident rounds for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_speckv.policy import kernels
from sglang_speckv.policy.checks import correct_drafts_of
from sglang_speckv.policy.logistic import LIMIT, Logistic, OwnAcceptance, log_odds
from sglang_speckv.policy.prior import SIGNAL_BINS, AcceptancePrior

SMALL = 8
"""Requests up to which each one's own acceptance is looked at: in larger batches it averages out
(+0.9 % at two requests, +0.4 at four, +0.1 at eight)."""
RECENT = 64.0
"""Rounds after which one weighs 1/e in what is usual."""


class Acceptance:
    """``max_steps`` positions; ``prior`` is what an artifact knows of this pair."""

    def __init__(
        self,
        max_steps: int,
        prior: AcceptancePrior | None = None,
        apart: np.ndarray | None = None,
    ):
        self.depth = max_steps
        self._positions = np.arange(max_steps)
        self._model = Logistic(max_steps, apart)
        self._own = OwnAcceptance()
        self._usual_x = 0.0
        """Where a request's signal is unknown."""
        self.labels = np.zeros(max_steps)
        """[max_steps]: how often each position was judged."""
        self._middles = (np.arange(SIGNAL_BINS) + 0.5) * (2 * LIMIT / SIGNAL_BINS) - LIMIT
        self._seen = np.zeros(SIGNAL_BINS)
        """Share of recent signals in each bin."""
        self._seen[SIGNAL_BINS // 2] = 1.0
        self._by_bin = np.ones((SIGNAL_BINS + 1, max_steps))
        """What survives of requests whose signal is in each bin; the last row is a usual one's."""
        if prior is not None:
            self._start_from(prior)
        self._believe()

    def _start_from(self, prior: AcceptancePrior) -> None:
        """Positions beyond those trained begin like the deepest of them."""
        k, depth = self.depth, min(prior.depth, self.depth)
        at = np.append(self._positions[:depth], k + self._positions[:depth])
        of = np.append(self._positions[:depth], prior.depth + self._positions[:depth])
        self._model.mean[:] = prior.mean[:, np.minimum(self._positions, depth - 1)].ravel()
        others, covariance = np.setdiff1d(np.arange(2 * k), at), self._model.covariance
        covariance[np.ix_(at, others)] = covariance[np.ix_(others, at)] = 0.0
        covariance[np.ix_(at, at)] = prior.covariance[np.ix_(of, of)]
        self._seen, self.labels[:depth] = prior.seen.copy(), prior.labels[:depth]
        self._usual_x = float(self._seen @ self._middles)

    def learned(self) -> AcceptancePrior:
        """What another model may start from."""
        mean, covariance = self._model.mean.reshape(2, self.depth).copy(), self._model.covariance
        return AcceptancePrior(mean, covariance.copy(), self._seen.copy(), self.labels.copy())

    def tokens(
        self, x: np.ndarray, requests: Sequence[int] | None = None, least: float = 0.0
    ) -> tuple[list[float], list[float]]:
        """Expected tokens of the batch at depths 0..max_steps, bonus included, and how many drafts
        are not verified where those are that survive with a probability above ``least``. ``x``
        [size]: log-odds of the first drafts' probabilities, NaN where unknown."""
        size = len(x)
        count, survival = self._survivals(x, requests)
        cut = np.zeros(self.depth)
        if least > 0.0:
            kept = survival > least
            survival, cut = survival * kept, count.dot(1.0 - kept).cumsum()
        tokens = size + self._summed(count.dot(survival))
        return [float(size), *tokens.tolist()], [0.0, *cut.tolist()]

    def _survive(self, accepted: np.ndarray) -> np.ndarray:
        """P(the first i drafts are accepted), from P(draft i is | those before it are); both
        [kinds, max_steps]."""
        survival: np.ndarray = accepted.cumprod(axis=1)
        return survival

    def _summed(self, drafts: np.ndarray) -> np.ndarray:
        """Of every depth from 1 on, where each position brings ``drafts`` [.., max_steps]."""
        summed: np.ndarray = drafts.cumsum(axis=-1)
        return summed

    def _survivals(
        self, x: np.ndarray, requests: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many requests there are of each kind [kinds], and the probabilities that their first
        1, 2, .. drafts are accepted [kinds, max_steps]."""
        if len(x) > SMALL:
            return self._counts(x).astype(float), self._by_bin
        own = np.array(self._offsets(len(x), requests))
        unknown = np.isnan(x)
        survival = self._model.probability(np.where(unknown, self._usual_x, x)[:, None], own)
        survival = self._survive(survival)
        if unknown.any():
            survival[unknown & (own == 0.0)] = self._usual
        return np.ones(len(x)), survival

    def shown(self) -> list[float] | dict[str, list[float]]:
        """[max_steps]: of a usual request, how likely the first i drafts are all accepted."""
        usual: list[float] = self.survival(np.array([np.nan]))[0].round(4).tolist()
        return usual

    def survival(self, first_probs: np.ndarray) -> np.ndarray:
        """[requests, max_steps]: P(the first i drafts are all accepted), i = 1..max_steps, of new
        requests with these signals; of a usual one where a signal is NaN."""
        odds = log_odds(first_probs, (len(first_probs),))
        survival: np.ndarray = self._by_bin[kernels.bins(odds, SIGNAL_BINS, LIMIT)]
        return survival

    def worth_of_signals(self, size: int, costs: Sequence[float] | np.ndarray) -> float:
        """Tokens per round that it earns to choose the depth of ``size`` requests by their signals
        and not by what is usual, in as many rounds as count as recent. ``costs`` [max_steps + 1]:
        the price of each depth's time, in tokens; infinite where there is no such tier."""
        drawn = np.random.default_rng(0).choice(SIGNAL_BINS, (int(RECENT), size), p=self._seen)
        drafts = self._summed(self._by_bin[drawn].sum(axis=1))
        worth = np.insert(drafts, 0, 0.0, axis=1) - costs
        return float(worth.max(axis=1).mean() - worth.mean(axis=0).max())

    def learn(
        self,
        num_steps: int,
        num_correct_drafts: Sequence[int],
        first_probs: np.ndarray | None,
        requests: Sequence[int] | None = None,
        widths: np.ndarray | None = None,
        expected: np.ndarray | None = None,
    ) -> None:
        """One round of ``num_steps`` <= max_steps, of which the first ``widths`` [size] drafts were
        verified, all of them where it is None; entries that cannot be true are left out.
        ``expected`` [size, positions]: where the drafts themselves said how many to make or to
        verify, how likely each one would have been accepted, those before it given."""
        correct, valid = correct_drafts_of(num_correct_drafts, num_steps)
        if not len(correct) or not num_steps:
            return
        x, own = self._known(valid, first_probs, requests)
        made = np.full(len(correct), num_steps) if widths is None else widths[valid]
        labels = kernels.labels(correct, made, self.depth)
        self.labels += labels[0].sum(axis=0)
        if expected is not None:
            labels = kernels.imputed(labels, correct, made, expected[valid])
        self._model.update(x, self._model.probability(x, own), labels)
        self._believe()
        self._learn_own(requests, valid, x, labels)

    def _known(
        self, valid: np.ndarray, first_probs: np.ndarray | None, requests: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the ``valid`` requests of a round that is learned from: their signals [.., 1], a usual
        one where it is unknown, and what they add of their own."""
        size = len(valid)
        x = log_odds(first_probs, (size,))[valid]
        self._see(x)
        own = np.array(self._offsets(size, requests))[valid]
        return np.where(np.isnan(x), self._usual_x, x)[:, None], own

    def _learn_own(
        self,
        requests: Sequence[int] | None,
        valid: np.ndarray,
        x: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        if requests is not None and len(requests) == len(valid) <= SMALL:
            names = [name for name, kept in zip(requests, valid.tolist(), strict=True) if kept]
            self._own.learn(names, self._model.probability(x), labels)

    def _see(self, x: np.ndarray) -> None:
        """What signals are usual: of a request whose own is unknown nothing else is known."""
        seen = self._counts(x)[:-1]
        known = int(seen.sum())
        if known:
            self._seen += (seen / known - self._seen) / RECENT
            self._usual_x = float(self._seen.dot(self._middles))

    @property
    def unexpected_drafts(self) -> float:
        """Drafts accepted so far beyond those that were expected to be."""
        return self._model.surprise

    def _believe(self) -> None:
        """Lay out what :meth:`tokens` asks for."""
        survival = self._survive(self._model.probability(self._middles[:, None]))
        self._usual = self._seen @ survival
        self._by_bin = np.concatenate([survival, self._usual[None]])
        self.usual: list[float] = [1.0, *(1.0 + self._summed(self._usual)).tolist()]
        """A(0)..A(max_steps): tokens of a usual request at every depth, bonus included."""

    def _counts(self, x: np.ndarray) -> np.ndarray:
        """How many requests have a signal in each bin, then how many have none."""
        return np.bincount(kernels.bins(x, SIGNAL_BINS, LIMIT), minlength=SIGNAL_BINS + 1)

    def _offsets(self, size: int, requests: Sequence[int] | None) -> list[float]:
        """What each request adds in log-odds; nothing where nobody numbers them."""
        if requests is None or size > SMALL or len(requests) != size:
            return [0.0] * size
        return self._own.of(requests)
