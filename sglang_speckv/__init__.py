"""SGLang plugin that picks ``speculative_num_steps`` per batch while the server runs."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Engine", "Runtime", "SpecKVConfig", "__version__", "load_policy"]

# Lazy, because importing SGLang takes ten seconds and the policies need none of it.
_HOMES = {
    "Engine": "sglang_speckv.srt.engine",
    "Runtime": "sglang_speckv.srt.engine",
    "SpecKVConfig": "sglang_speckv.config",
    "load_policy": "sglang_speckv.policy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
