"""Device memory that depths take for their attention, reserved before SGLang sizes its KV cache.

SGLang's estimate of what CUDA graphs take knows one depth. Every further one has wrappers, index
buffers and a workspace of its own, several GiB together with FlashInfer. Unreserved they would be
missing when graphs are captured, minutes after the launch, or when a long prompt comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from sglang_speckv.config import ConfigError
from sglang_speckv.srt.arguments import requested, with_launch_steps

logger = logging.getLogger(__name__)

MIB = 1 << 20
WRAPPER_MIB = 10
"""Integer workspace of a FlashInfer wrapper: 8 MiB, of which torch's allocator puts two in 20."""
SGLANGS_MAX_REQUESTS = 48
"""What SGLang sets for speculative decoding where nobody says."""


def depth_mib(
    backend: str, num_steps: int, graph_sizes: Sequence[int], context_len: int, workspace_mib: float
) -> float:
    """MiB that one depth takes on each device, less its graphs; ``graph_sizes`` are the captured
    batch sizes. Counted in SGLang's sources: one attention backend for verification, one for
    draft-extend and one for each draft step but the last, which runs nothing. Backends that keep
    page tables only count as nothing."""
    largest = max(graph_sizes, default=0)
    rows = largest * (num_steps + 1) * context_len
    draft_rows = largest * num_steps * context_len if num_steps > 1 else 0
    steps = max(num_steps - 1, 0)
    if backend == "flashinfer":
        captured = (2 + steps) * len(graph_sizes)
        eager = 2 * 4 + 2 * steps
        indices = 2 * rows * (4 + 1) + draft_rows * 4  # with a mask of a byte per position
        return workspace_mib + WRAPPER_MIB * (captured + eager) + indices / MIB
    if backend == "triton":
        return (2 * rows * 8 + rows + draft_rows * 8) / MIB
    return 0.0


def further_depths_mib(server_args: Any) -> float:
    """MiB that the candidates take beyond the launch depth, 0 where SpecKV was not asked for or is
    going to be refused. ``server_args``: resolved as far as the sizes of decode graphs."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
    from sglang.srt.environ import envs

    cfg = resolving_view(server_args)
    try:
        config = requested(server_args)
        if config is None or cfg.device != "cuda":
            return 0.0
        config, launch_steps = with_launch_steps(config, cfg.speculative_num_steps)
    except ConfigError:
        return 0.0
    workspace_mib = envs.SGLANG_FLASHINFER_WORKSPACE_SIZE.get() / MIB
    context_len = int(model_config_of(server_args).context_len)
    backend, graph_sizes = _backend(server_args), _graph_sizes(cfg)
    return sum(
        depth_mib(backend, steps, graph_sizes, context_len, workspace_mib)
        for steps in config.candidate_steps
        if steps != launch_steps
    )


def reserve(original: Callable[..., float], server_args: Any) -> float:
    """AROUND ``reserve_for_graph_mb``: SGLang asks it where ``--mem-fraction-static`` is open."""
    extra = further_depths_mib(server_args)
    if extra:
        logger.info(
            "SpecKV: candidate depths take about %.1f GiB more than one depth; reserved. Fewer "
            "--speckv-candidate-steps or --cuda-graph-bs-decode take less, --mem-fraction-static "
            "overrules it",
            extra / 1024,
        )
    return float(original(server_args)) + extra


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
    from sglang.srt.arg_groups import model_override_base
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view, use_mla_backend

    cfg = resolving_view(server_args)
    for named in (cfg.attention_backend, cfg.decode_attention_backend):
        if named is not None:
            return str(named)
    return model_override_base.get_default_attn_backend(
        server_args, use_mla_backend(server_args), model_config_of(server_args)
    )
