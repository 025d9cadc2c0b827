"""What SpecKV cannot serve, said in one sentence before anything is spawned.

Stock SGLang falls back to a static depth with a warning; someone who asked for SpecKV is better
served by a refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_speckv.config import ConfigError

ALGORITHMS = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE")


def _attention_dp(cfg: Any) -> bool:
    from sglang.srt.runtime_context import attn_dp_enabled_of

    return bool(attn_dp_enabled_of(cfg))


def _platform_worker(cfg: Any) -> bool:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    name = "EAGLE" if cfg.speculative_algorithm == "NEXTN" else cfg.speculative_algorithm
    return SpeculativeAlgorithm.from_string(name).get_platform_worker_cls() is not None


def _trees(cfg: Any) -> bool:
    return (cfg.speculative_eagle_topk or 1) > 1


_UNSUPPORTED: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (
        lambda cfg: _trees(cfg) and cfg.page_size not in (None, 1),
        "drafts trees in pages of one token only; set --page-size to 1 instead of "
        "{cfg.page_size}, or --speculative-eagle-topk to 1",
    ),
    (
        lambda cfg: _trees(cfg) and cfg.disaggregation_mode != "null",
        "cannot draft trees under PD disaggregation ({cfg.disaggregation_mode}); set "
        "--speculative-eagle-topk to 1",
    ),
    (
        lambda cfg: _trees(cfg) and cfg.speculative_use_rejection_sampling,
        "cannot draft trees under rejection sampling, which SGLang offers to chains only; remove "
        "--speculative-use-rejection-sampling",
    ),
    (
        _attention_dp,
        "cannot run under attention DP (ranks would choose different depths); "
        "remove --attn-dp-size / --enable-dp-attention",
    ),
    (
        lambda cfg: cfg.pp_size > 1,
        "cannot run under pipeline parallelism; set --pp-size to 1 instead of {cfg.pp_size}",
    ),
    (
        lambda cfg: cfg.enable_two_batch_overlap,
        "cannot run under two-batch overlap; remove --enable-two-batch-overlap",
    ),
    (lambda cfg: cfg.enable_pdmux, "cannot run under PD multiplexing; remove --enable-pdmux"),
    (
        lambda cfg: bool(cfg.enable_lora or cfg.lora_paths),
        "cannot serve LoRA adapters (switching depths does not rebuild their graph metadata); "
        "remove --enable-lora and --lora-paths",
    ),
    (
        lambda cfg: cfg.cuda_graph_config.prefill.backend == "full",
        "cannot serve with full CUDA graphs for prefill (they hold the attention metadata of one "
        "depth); remove --cuda-graph-backend-prefill full",
    ),
    (
        lambda cfg: cfg.device == "cpu" and cfg.page_size not in (None, 1),
        "serves pages of one token on a CPU; remove --page-size {cfg.page_size}",
    ),
    (
        lambda cfg: (
            cfg.speculative_algorithm == "STANDALONE" and cfg.speculative_use_rejection_sampling
        ),
        "cannot serve STANDALONE with rejection sampling, which SGLang offers to EAGLE heads only; "
        "remove --speculative-use-rejection-sampling",
    ),
    (
        lambda cfg: cfg.enable_multi_layer_eagle,
        "cannot drive multi-layer EAGLE; remove --enable-multi-layer-eagle",
    ),
    (
        lambda cfg: cfg.speculative_algorithm == "STANDALONE" and cfg.disaggregation_mode != "null",
        "cannot serve STANDALONE under PD disaggregation ({cfg.disaggregation_mode}); "
        "remove --disaggregation-mode or use an EAGLE head",
    ),
    (
        lambda cfg: cfg.max_ep_size is not None,
        "cannot run where elastic EP adds ranks (SGLang then captures the graphs of one depth "
        "again); remove --max-ep-size",
    ),
    (
        _platform_worker,
        "needs SGLang's own worker, but this platform replaces it for {cfg.speculative_algorithm}; "
        "remove the platform plugin",
    ),
)


def unsupported_reason(cfg: Any) -> str | None:
    """Why these (resolving) server arguments cannot be served adaptively, or None.

    Every clause is evaluated here: SGLang's own function stops at its first reason, and for
    STANDALONE that reason is the algorithm itself, which SpecKV lifts.
    """
    algorithm = cfg.speculative_algorithm
    if algorithm is None:
        return (
            "SpecKV needs speculative decoding: add --speculative-algorithm "
            f"{' or '.join(ALGORITHMS)} and --speculative-draft-model-path DRAFT"
        )
    if algorithm not in ALGORITHMS:
        return f"SpecKV serves {', '.join(ALGORITHMS)}, not --speculative-algorithm {algorithm}"
    for applies, sentence in _UNSUPPORTED:
        if applies(cfg):
            return "SpecKV " + sentence.format(cfg=cfg)
    return None


def refuse_unsupported(cfg: Any) -> None:
    reason = unsupported_reason(cfg)
    if reason is not None:
        raise ConfigError(reason)


def refuse_recurrent(role: str, model_config: Any) -> None:
    """Refuse a target or draft that keeps a state per request beside its KV cache (Mamba,
    GatedDeltaNet, ...): a token that is read twice advances it twice, and that it survives a change
    of depth was never shown. ``model_config``: SGLang's, None where there is no such model."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    if model_config is not None and mambaish_config(model_config) is not None:
        raise ConfigError(
            f"SpecKV cannot serve {role} {model_config.model_path!r}: "
            f"{model_config.hf_config.architectures[0]} has layers with recurrent state (Mamba, "
            "linear attention); remove --speckv, or use a model with attention layers only"
        )
