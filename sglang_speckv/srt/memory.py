"""Device memory that depths take for their attention, reserved before SGLang sizes its KV cache.

SGLang's estimate of what CUDA graphs take knows one depth. Every further one has wrappers, index
buffers and a workspace of its own, several GiB together with FlashInfer. Unreserved they would be
missing when graphs are captured, minutes after the launch, or when a long prompt comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sglang_speckv.config import ConfigError, Shape
from sglang_speckv.srt.arguments import requested, with_launch_tier
from sglang_speckv.srt.identity import draft_model_config

logger = logging.getLogger(__name__)

MIB = 1 << 20
WRAPPER_MIB = 10
"""Integer workspace of a FlashInfer wrapper: 8 MiB, of which torch's allocator puts two in 20."""
PINNED_MIB = 8
"""The same again in page-locked memory of the host."""
LARGE_WORKSPACE_FOR = (
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MiMoForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
LARGE_WORKSPACE_MIB = 512
DETERMINISTIC_WORKSPACE_MIB = 2048
SGLANGS_MAX_REQUESTS = 48
"""What SGLang sets for speculative decoding where nobody says."""


class Memory(NamedTuple):
    """MiB on each rank: on the device what the candidates take beyond the launch depth, pinned on
    the host what all of them take."""

    further_device_mib: float = 0.0
    pinned_host_mib: float = 0.0


def workspace_mib(architectures: Iterable[str], deterministic: bool, asked_mib: float) -> float:
    """MiB of FlashInfer's float workspace for a target and a draft of these ``architectures``.

    ``asked_mib`` is SGLANG_FLASHINFER_WORKSPACE_SIZE, which SGLang overrules for the whole process
    when it builds a backend (``FlashInferAttnBackend.__init__``).
    """
    if deterministic:
        return DETERMINISTIC_WORKSPACE_MIB
    large = not set(architectures).isdisjoint(LARGE_WORKSPACE_FOR)
    return LARGE_WORKSPACE_MIB if large else asked_mib


def wrappers(backend: str, num_steps: int, graph_sizes: Sequence[int]) -> int:
    """How many FlashInfer wrappers one depth has. Counted in SGLang's sources: one attention
    backend for verification, one for draft-extend and one for each draft step but the last, which
    runs nothing; each has some that run eagerly and one per captured batch size. TRT-LLM's MHA
    backend, a subclass, has the eager ones."""
    steps = max(num_steps - 1, 0)
    eager = 2 * 4 + 2 * steps
    if backend == "flashinfer":
        return eager + (2 + steps) * len(graph_sizes)
    return eager if backend == "trtllm_mha" else 0


def tier_mib(
    backend: str,
    shape: Shape,
    topk: int,
    graph_sizes: Sequence[int],
    context_len: int,
    workspace_mib: float,
) -> float:
    """MiB that one tier takes on each device, less its graphs; ``graph_sizes`` are the captured
    batch sizes. Backends that keep page tables only count as nothing."""
    largest, (num_steps, num_draft_tokens) = max(graph_sizes, default=0), shape
    rows = largest * num_draft_tokens * context_len
    draft_rows = largest * topk * num_steps * context_len if num_steps > 1 else 0
    taken = WRAPPER_MIB * wrappers(backend, num_steps, graph_sizes)
    if backend == "flashinfer":
        indices = 2 * rows * (4 + 1) + draft_rows * 4  # with a mask of a byte per position
        return workspace_mib + taken + indices / MIB
    if backend == "triton":
        return (2 * rows * 8 + rows + draft_rows * 8) / MIB
    if backend == "fa3" and topk > 1:
        return largest * num_draft_tokens * (context_len + num_draft_tokens) / MIB  # the mask
    return taken


def planned(server_args: Any) -> Memory:
    """What the candidates take, nothing where SpecKV was not asked for or is going to be refused.
    ``server_args``: resolved as far as the sizes of decode graphs."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view

    cfg = resolving_view(server_args)
    try:
        config = requested(server_args)
        if config is None or cfg.device != "cuda":
            return Memory()
        config, launch = with_launch_tier(config, cfg)
    except ConfigError:
        return Memory()
    workspace = _workspace_mib(server_args)
    context_len = int(model_config_of(server_args).context_len)
    backend, graph_sizes = _backend(server_args), _graph_sizes(cfg)
    topk, shapes = cfg.speculative_eagle_topk or 1, config.shapes
    return Memory(
        sum(
            tier_mib(backend, shape, topk, graph_sizes, context_len, workspace)
            for shape in shapes
            if shape != config.shape_of(launch)
        ),
        PINNED_MIB * sum(wrappers(backend, shape.num_steps, graph_sizes) for shape in shapes),
    )


def reserve(original: Callable[..., float], server_args: Any) -> float:
    """AROUND ``reserve_for_graph_mb``: SGLang asks it where ``--mem-fraction-static`` is open."""
    extra, pinned = planned(server_args)
    if extra:
        logger.info(
            "SpecKV: candidate depths take about %.1f GiB more than one depth; reserved. They pin "
            "%.1f GiB of host memory on each rank. Fewer candidates or "
            "--cuda-graph-bs-decode take less, --mem-fraction-static overrules it",
            extra / 1024,
            pinned / 1024,
        )
    return float(original(server_args)) + extra


def _workspace_mib(server_args: Any) -> float:
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
    from sglang.srt.environ import envs

    architectures = list(model_config_of(server_args).hf_config.architectures)
    try:
        draft = draft_model_config(server_args)
    except Exception:  # whatever is wrong with it is said when it is checked
        draft = None
    if draft is not None:
        architectures += draft.hf_config.architectures
    return workspace_mib(
        architectures,
        resolving_view(server_args).enable_deterministic_inference,
        envs.SGLANG_FLASHINFER_WORKSPACE_SIZE.get() / MIB,
    )


def _graph_sizes(cfg: Any) -> Sequence[int]:
    """SGLang captures what can be running; when memory is planned it has not yet set how much."""
    from sglang.srt.model_executor.cuda_graph_config import Backend

    decode = cfg.cuda_graph_config.decode
    if decode.backend == Backend.DISABLED:
        return []
    requests = cfg.max_running_requests or SGLANGS_MAX_REQUESTS
    return sorted({min(size, requests) for size in decode.bs or [decode.max_bs]})


def _backend(server_args: Any) -> str:
    """The attention backend that is going to be chosen, here as in SGLang."""
    from sglang.srt.arg_groups import model_override_base, overrides
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view, use_mla_backend

    cfg = resolving_view(server_args)
    for named in (cfg.attention_backend, cfg.decode_attention_backend):
        if named is not None:
            return str(named)
    deterministic = overrides._deterministic_attention_backend(cfg)
    if deterministic:
        return str(deterministic["attention_backend"])
    return model_override_base.get_default_attn_backend(
        server_args, use_mla_backend(server_args), model_config_of(server_args)
    )
