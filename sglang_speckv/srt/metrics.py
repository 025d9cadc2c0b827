"""Prometheus metrics of the scheduler process, on SGLang's own ``/metrics`` page.

Only what the engine's gauges do not say or say wrongly under a moving depth. Values are carried
over from :class:`Counters` about once a second, off the hot path.
"""

from __future__ import annotations

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
        self._next = 0.0
        self._counters = {
            "rounds": counter("rounds", "Decode rounds by draft depth", "num_steps"),
            "proposed": counter(
                "proposed_drafts", "Draft tokens judged, by the depth that ran", "position"
            ),
            "correct": counter("correct_drafts", "Draft tokens accepted", "position"),
            "drafted": counter("drafted_tokens", "Draft tokens proposed, judged or not"),
            "decisions": counter("decisions", "Depths chosen by the policy"),
            "decision_seconds": counter("decision_seconds", "Time spent choosing"),
            "switches": counter("switches", "Changes of depth"),
            "fallbacks": counter("fallbacks", "Rounds on the launch depth for a policy failure"),
            "dropped": counter("trace_dropped_rounds", "Rounds that the trace could not take"),
        }
        self._active = gauge("active", "1 where SpecKV chooses the depth")
        self._num_steps = gauge("num_steps", "Depth of the newest round")
        self._active.set(1)

    def tick(self, now: float | None = None, dropped: int = 0) -> None:
        """Called every round; does its work at most once in EVERY_SECONDS."""
        now = time.monotonic() if now is None else now
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        self._num_steps.set(self._policy.num_steps)
        for (name, *labels), value in self._totals(dropped):
            self._carry(name, labels, value)

    def _totals(self, dropped: int) -> Iterable[tuple[tuple[str, ...], float]]:
        counters = self._policy.counters
        for steps, count in counters.rounds.items():
            yield ("rounds", str(steps)), count
        for position, (judged, correct) in enumerate(counters.positions(), start=1):
            yield ("proposed", str(position)), judged
            yield ("correct", str(position)), correct
        yield ("drafted",), counters.proposed_drafts
        yield ("decisions",), counters.decisions
        yield ("decision_seconds",), counters.decision_seconds
        yield ("switches",), counters.switches
        yield ("fallbacks",), counters.fallbacks
        yield ("dropped",), dropped

    def _carry(self, name: str, labels: list[str], value: float) -> None:
        key = (name, *labels)
        news = value - self._seen.get(key, 0.0)
        if news > 0:
            metric = self._counters[name]
            (metric.labels(*labels) if labels else metric).inc(news)
            self._seen[key] = value
