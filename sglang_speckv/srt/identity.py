"""Whose rounds these are: what identifies a pair, its compression and its machine."""

from __future__ import annotations

import time
from typing import Any

from sglang_speckv import __version__
from sglang_speckv.offline.records import Header


def trace_header(worker: Any) -> Header:
    """Identity of a scheduler's worker, for its trace; call it once the models are loaded."""
    from sglang.srt.runtime_context import get_parallel, get_spec

    target, draft = worker._target_worker.model_runner, worker._draft_worker.draft_runner
    return Header(
        target=str(target.model_config.model_path),
        draft=str(draft.model_config.model_path),
        algorithm=str(get_spec().speculative_algorithm),
        draft_vocab_size=draft_vocab_size(draft.model_config),
        candidate_steps=tuple(worker.speckv.candidate_steps),
        quantization=target.model_config.quantization,
        draft_quantization=draft.model_config.quantization,
        dtype=_plain(target.model_config.dtype),
        kv_cache_dtype=_plain(target.kv_cache_dtype),
        device=device_name(),
        sglang=_version(),
        speckv=__version__,
        policy=worker.speckv.policy_name,
        signal_lag=worker.speckv.lag.mode,
        overlap=worker.speckv.lag.overlap,
        tp_size=get_parallel().tp_size,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def draft_vocab_size(model_config: Any) -> int:
    """An EAGLE-3 head may draft from a vocabulary of its own."""
    own = getattr(model_config.hf_config, "draft_vocab_size", None)
    return int(own or model_config.vocab_size)


def device_name() -> str:
    import platform

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()


def _plain(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _version() -> str:
    from sglang_speckv.srt.compat import installed_version

    return installed_version()
