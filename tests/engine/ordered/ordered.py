"""An SGLang plugin for servers that others are compared with: penalties are applied in one order.

Without speculation and overlap SGLang applies them in the order of a set of classes, which differs
from process to process: a repetition penalty scales logits before or after the other penalties are
taken off, and now and then another token is the likeliest. Under overlap and in verification it
scales last, and so does this.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    from sglang.srt.sampling.penaltylib import BatchedPenalizerOrchestrator

    init = BatchedPenalizerOrchestrator.__init__

    def scaling_last(self: Any, vocab_size: int, batch: Any, penalizers: Any) -> None:
        init(self, vocab_size, batch, sorted(penalizers, key=lambda kind: kind.is_multiplicative))

    BatchedPenalizerOrchestrator.__init__ = scaling_last
