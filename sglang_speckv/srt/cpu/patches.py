"""What SGLang's runtime has to be told to run speculation on a plain CPU.

Runs in the launcher and in every scheduler, from the plugin's ``register()``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_speckv.srt import compat, request_checks, weights
from sglang_speckv.srt.cpu.kernels import linear, sampling
from sglang_speckv.srt.cpu.kernels.attention import PLANS

_applied = False
_BACKEND = "sglang.srt.layers.attention.intel_amx_backend."


def apply() -> None:
    global _applied
    if _applied:
        return
    _applied = True
    _keep_attention_backend()
    _supply_sampling()
    around = HookType.AROUND
    HookRegistry.register(
        "sglang.srt.speculative.eagle_utils._verify_uses_greedy", _greedy_if_asked, around
    )
    HookRegistry.register(
        "sglang.srt.distributed.parallel_state.init_model_parallel_group", _no_nccl, around
    )
    HookRegistry.register("sglang.srt.utils.numa_utils.init_threads_binding", _share_cores, around)
    HookRegistry.register(
        "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply", _linear, around
    )
    HookRegistry.register(
        "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head", _lm_head, around
    )
    HookRegistry.register("sglang.srt.mem_cache.memory_pool._set_kv_buffer_impl", _store_kv, around)
    HookRegistry.register(
        compat.VALIDATE_LENGTH.path, request_checks.reason_to_abort, HookType.AFTER
    )
    HookRegistry.register(compat.SELECT_RUNNERS.path, weights.select_runners, around)
    for backend in ("IntelAMXAttnBackend", "IntelAMXMultiStepDraftBackend"):
        HookRegistry.register(
            f"{_BACKEND}{backend}.init_forward_metadata", _forget_plans, HookType.BEFORE
        )
    for method in ("forward_decode", "forward_extend"):
        HookRegistry.register(f"{_BACKEND}IntelAMXAttnBackend.{method}", _share_plans, around)


def _keep_attention_backend() -> None:
    """The resolver takes ``intel_amx`` off machines without AMX.  The layers ask elsewhere and
    go on using their native code."""
    from sglang.srt.runtime_context import override_platform

    override_platform(has_amx=True).install()


def _supply_sampling() -> None:
    """SGLang has no CPU version of these: they are None or Triton's, and imported by value."""
    from sglang.kernels.ops.sampling import renorm
    from sglang.kernels.ops.speculative import verify_sampling
    from sglang.srt.speculative import eagle_utils, spec_utils

    for name in ("top_k_renorm_prob", "top_p_renorm_prob"):
        setattr(renorm, name, getattr(sampling, name))
        setattr(eagle_utils, name, getattr(sampling, name))
    name = "tree_speculative_sampling_target_only"
    setattr(verify_sampling, name, getattr(sampling, name))
    setattr(eagle_utils, name, getattr(sampling, name))
    eagle_utils.chain_speculative_sampling_triton = sampling.chain_speculative_sampling
    spec_utils.row_argmax = partial(torch.argmax, dim=-1)


def _greedy_if_asked(original: Callable[..., bool], **facts: Any) -> bool:
    """A CPU would verify greedily whatever the temperature, for want of the ops above."""
    return original(**{**facts, "is_cpu": False})


def _no_nccl(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The CUDA build of torch would have SGLang open NCCL on the device ``cpu``."""
    return original(*args, **{**kwargs, "use_pynccl": False})


def _share_cores(original: Callable[..., str], *, numa_index: int, world_size: int) -> str:
    """SGLang wants a NUMA node for each rank, or cores named by hand, and binds nothing without
    AMX.  Ranks on one machine divide its cores instead."""
    if world_size == 1 or "SGLANG_CPU_OMP_THREADS_BIND" in os.environ:
        return original(numa_index=numa_index, world_size=world_size)
    cores = sorted(os.sched_getaffinity(0))
    own = cores[numa_index::world_size] or [cores[numa_index % len(cores)]]
    torch.set_num_threads(len(own))
    return ",".join(map(str, own))


def _linear(
    original: Callable[..., torch.Tensor],
    self: Any,
    layer: Any,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    if linear.applies(layer, x):
        return linear.packed_linear(layer, x, bias)
    return original(self, layer, x, bias)


def _lm_head(
    original: Callable[..., torch.Tensor],
    self: Any,
    hidden_states: torch.Tensor,
    lm_head: Any,
    embedding_bias: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    if embedding_bias is None and linear.applies(lm_head, hidden_states):
        return linear.packed_linear(lm_head, hidden_states, None)
    return original(self, hidden_states, lm_head, embedding_bias, **options)


def _store_kv(
    original: Callable[..., None],
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    indices: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> None:
    """SGLang's assignment by index, by a quicker op: 1.6 % of a verification round, ten pairs."""
    if k.dtype != k_cache.dtype:
        original(k, v, k_cache, v_cache, indices, *args, **kwargs)
        return
    k_cache.index_copy_(0, indices, k)
    v_cache.index_copy_(0, indices, v)


def _forget_plans(*args: Any, **kwargs: Any) -> None:
    PLANS.start()


def _share_plans(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """This backend's layers, whose forward was announced above."""
    with PLANS.shared():
        return original(*args, **kwargs)
