"""Whose rounds these are: what identifies a pair, its compression and its machine.

One function for the launcher, which compares an artifact with it, and for the scheduler, which
writes it into a trace: what was recorded here fits here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from sglang_speckv import __version__
from sglang_speckv.offline.records import Header
from sglang_speckv.srt import compat


def identity(server_args: Any) -> dict[str, str | int | None]:
    """The fields of :class:`Header` that an artifact must agree with; ``server_args`` resolved."""
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import ModelConfig

    cfg = resolving_view(server_args)
    target = ModelConfig.from_server_args(server_args)
    draft = draft_model_config(server_args) or target
    dtype = str(target.dtype).removeprefix("torch.")
    return {
        "target": model_name(cfg.model_path),
        "draft": model_name(cfg.speculative_draft_model_path or cfg.model_path),
        "algorithm": cfg.speculative_algorithm,
        "quantization": target.quantization,
        "draft_quantization": draft.quantization,
        "kv_cache_dtype": dtype if cfg.kv_cache_dtype == "auto" else cfg.kv_cache_dtype,
        "dtype": dtype,
        "device": device_name(),
        "sglang": compat.installed_version(),
        "draft_vocab_size": draft_vocab_size(draft),
    }


def draft_model_config(server_args: Any) -> Any:
    """SGLang's ``ModelConfig`` of the draft, None for a target that drafts for itself."""
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import ModelConfig

    cfg = resolving_view(server_args)
    if cfg.speculative_draft_model_path is None:
        return None
    return ModelConfig.from_server_args(
        server_args,
        model_path=cfg.speculative_draft_model_path,
        model_revision=cfg.speculative_draft_model_revision,
        is_draft_model=True,
    )


def trace_header(worker: Any) -> Header:
    """The first line of a scheduler's trace."""
    from sglang.srt.runtime_context import get_parallel

    policy = worker.speckv
    names = tuple(map(policy.name_of, policy.candidate_steps))
    tiers: dict[str, Any] = {"candidate_steps": tuple(policy.candidate_steps)}
    if worker.topk > 1:
        tiers = {"candidate_shapes": names, "topk": worker.topk}
    return Header(
        **identity(worker.server_args),  # type: ignore[arg-type]
        **tiers,
        speckv=__version__,
        policy=policy.policy_name,
        signal_lag=policy.lag.mode,
        overlap=policy.lag.overlap,
        tp_size=get_parallel().tp_size,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def model_name(path: str) -> str:
    """A hub id as it is, a local folder by its last name: folders move, models stay the same."""
    return Path(os.path.abspath(path)).name if os.path.exists(path) else path


def draft_vocab_size(model_config: Any) -> int:
    """An EAGLE-3 head may draft from a vocabulary of its own."""
    own = getattr(model_config.hf_config, "draft_vocab_size", None)
    return int(own or model_config.vocab_size)


def device_name() -> str:
    import platform

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
