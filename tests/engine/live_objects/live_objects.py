"""An SGLang plugin for soaks: `/server_info` also tells what the scheduler keeps alive."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

KINDS = ("Launch", "DecodeLaunch", "FinishedRound", "Round", "Req")


def register() -> None:
    from sglang_speckv.srt.controller import EnginePolicy

    snapshot = EnginePolicy.snapshot

    def with_objects(self: EnginePolicy) -> dict[str, Any]:
        gc.collect()
        alive = Counter(type(thing).__name__ for thing in gc.get_objects())
        return {**snapshot(self), "alive": {kind: alive[kind] for kind in KINDS}}

    EnginePolicy.snapshot = with_objects  # type: ignore[method-assign]
