"""An SGLang plugin for one test: every rank sees draft signals of its own, and the policy `ema`
decides by nothing else. Ranks that did not share them would choose different depths at once. Under
`confidence` they choose alike and believe otherwise, by the last bit."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

UNSHARED = "RANK_NOISE_UNSHARED"


def register() -> None:
    from sglang_speckv.policy.base import Batch, Decision
    from sglang_speckv.policy.confidence import ConfidencePolicy
    from sglang_speckv.policy.ema import EmaPolicy
    from sglang_speckv.srt import signals, worker

    honest = signals.reduce_logits
    calls = 0

    def noisy(logits: Any, out: Any) -> None:
        nonlocal calls
        from sglang.srt.runtime_context import get_parallel

        honest(logits, out)
        calls += 1
        out[:, 0] = 0.9 if (calls // 5 + get_parallel().tp_rank) % 2 else 0.1

    def decide(self: EmaPolicy, batch: Batch) -> Decision:
        assert batch.first_probs is not None
        return Decision(5 if np.nanmean(batch.first_probs) > 0.5 else 1, "best")

    def decide_alike(self: ConfidencePolicy, batch: Batch) -> Decision:
        from sglang.srt.runtime_context import get_parallel

        return Decision(5, "confident", tokens_per_s=np.nextafter(1.0, 1 + get_parallel().tp_rank))

    ConfidencePolicy.decide = decide_alike  # type: ignore[method-assign]
    signals.reduce_logits = noisy
    EmaPolicy.decide = decide  # type: ignore[method-assign]
    EmaPolicy.observe = lambda self, outcome: None  # type: ignore[method-assign]
    if os.environ.get(UNSHARED):
        worker._share = lambda payload: payload
