"""Prometheus metrics of the scheduler process, on SGLang's own ``/metrics`` page.

Only what the engine's gauges do not say or say wrongly under a moving depth. A thread carries
values over from :class:`Counters` once a second, so that serving does not wait for it and the
last rounds of a burst are told while the server is idle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_speckv.srt.controller import EnginePolicy

EVERY_SECONDS = 1.0


class Metrics:
    """Create it in the scheduler process, where ``PROMETHEUS_MULTIPROC_DIR`` is set."""

    def __init__(self, policy: EnginePolicy, registry: Any = None) -> None:
        import prometheus_client as prometheus

        more: dict[str, Any] = {} if registry is None else {"registry": registry}

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"speckv:{name}", text, labels, **more)

        def gauge(name: str, text: str) -> Any:
            return prometheus.Gauge(f"speckv:{name}", text, multiprocess_mode="mostrecent", **more)

        self._policy = policy
        self._seen: dict[tuple[str, ...], float] = {}
        self._counters = {
            "rounds": counter("rounds", "Decode rounds by draft depth", "num_steps"),
            "proposed": counter(
                "proposed_drafts",
                "Drafts judged: verified, and every draft before them was right. By position",
                "position",
            ),
            "correct": counter("correct_drafts", "Drafts accepted, by position", "position"),
            "exact": counter(
                "exact_rounds", "Rounds of requests that take no drafts, by parameter", "parameter"
            ),
            "drafted": counter("drafted_tokens", "Draft tokens made, verified or not"),
            "cut": counter("cut_drafts", "Draft tokens made and not verified"),
            "decisions": counter("decisions", "Depths chosen by the policy"),
            "decision_seconds": counter("decision_seconds", "Time spent choosing"),
            "stopped": counter("stopped_rounds", "Rounds that their own drafts ended early"),
            "switches": counter("switches", "Changes of depth"),
            "fallbacks": counter("fallbacks", "Rounds on the launch depth for a policy failure"),
            "odd_signals": counter(
                "odd_signals", "Drafts whose own probability is unknown or impossible"
            ),
            "odd_times": counter("odd_times", "Rounds whose measured time is impossible"),
            "failures": counter("failures", "Faults of SpecKV that serving survived", "seam"),
            "dropped": counter("trace_dropped_rounds", "Rounds that the trace could not take"),
        }
        self._answers = prometheus.Histogram(
            "speckv:request_accept_rate",
            "Share of its verified drafts that was accepted, per answer",
            buckets=[n / 10 for n in range(1, 11)],
            **more,
        )
        self._active = gauge("active", "1 where SpecKV chooses the depth")
        self._num_steps = gauge("num_steps", "Depth of the newest round")
        self._held = gauge("held", "1 where the launch depth is held, for what decides is in doubt")
        self._unexpected = gauge(
            "unexpected_drafts", "Drafts accepted beyond those that the policy expected, so far"
        )
        self._active.set(1)

    def start(self) -> None:
        """Carry values over from now on, for as long as the process lives."""
        threading.Thread(target=self._run, name="speckv-metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._policy.fuse.guard("metrics", holds=False):
                self.carry()
            time.sleep(EVERY_SECONDS)

    def carry(self) -> None:
        """Bring the metrics up to date."""
        self._num_steps.set(self._policy.shape_of(self._policy.num_steps).num_steps)
        self._held.set(self._policy.held)
        self._unexpected.set(getattr(self._policy.policy, "unexpected_drafts", 0.0))
        answers = self._policy.counters.answers
        while answers:
            self._answers.observe(answers.popleft())
        for (name, *labels), value in self._totals():
            self._carry(name, labels, value)

    def _totals(self) -> Iterable[tuple[tuple[str, ...], float]]:
        counters = self._policy.counters
        for name, count in counters.rounds_by_name().items():
            yield ("rounds", name), count
        for position, (judged, correct) in enumerate(counters.positions(), start=1):
            yield ("proposed", str(position)), judged
            yield ("correct", str(position)), correct
        for name, count in list(counters.exact_rounds.items()):
            yield ("exact", name), count
        yield ("drafted",), counters.drafted_tokens
        yield ("cut",), counters.drafted_tokens - counters.proposed_drafts
        yield ("decisions",), counters.decisions
        yield ("decision_seconds",), counters.decision_seconds
        yield ("stopped",), counters.stopped_rounds
        yield ("switches",), counters.switches
        yield ("fallbacks",), counters.fallbacks
        yield ("odd_signals",), counters.odd_signals
        yield ("odd_times",), counters.odd_times
        for seam, count in list(self._policy.fuse.failures.items()):
            yield ("failures", seam), count
        if self._policy.trace is not None:
            yield ("dropped",), self._policy.trace.dropped

    def _carry(self, name: str, labels: list[str], value: float) -> None:
        key = (name, *labels)
        news = value - self._seen.get(key, 0.0)
        if news > 0:
            metric = self._counters[name]
            (metric.labels(*labels) if labels else metric).inc(news)
            self._seen[key] = value
