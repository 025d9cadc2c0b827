"""What SGLang's runtime has to be told to run speculation on a plain CPU.

Runs in the launcher and in every scheduler, from the plugin's ``register()``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_speckv.srt import compat, in_round, request_checks, weights
from sglang_speckv.srt.cpu.kernels import linear, sampling
from sglang_speckv.srt.cpu.kernels.attention import PLANS

_applied = False


def apply() -> None:
    global _applied
    if _applied:
        return
    _applied = True
    _keep_attention_backend()
    _supply_sampling()
    for target, hook, kind in (
        (compat.VERIFY_GREEDY, _greedy_if_asked, HookType.AROUND),
        (compat.PARALLEL_GROUP, _no_nccl, HookType.AROUND),
        (compat.BIND_THREADS, _share_cores, HookType.AROUND),
        (compat.LINEAR, _linear, HookType.AROUND),
        (compat.LM_HEAD, _lm_head, HookType.AROUND),
        (compat.STORE_KV, _store_kv, HookType.AROUND),
        (compat.PLAN_ATTENTION, _forget_plans, HookType.BEFORE),
        (compat.PLAN_DRAFT_ATTENTION, _forget_plans, HookType.BEFORE),
        (compat.EXTEND_LENGTHS, _by_width, HookType.AROUND),
        *((target, _share_plans, HookType.AROUND) for target in compat.CPU_ATTENTION),
        (compat.VALIDATE_LENGTH, request_checks.reason_to_abort, HookType.AFTER),
        (compat.SELECT_RUNNERS, weights.select_runners, HookType.AROUND),
        (compat.CREATE_WORKER, _check_applied, HookType.BEFORE),
    ):
        HookRegistry.register(target.path, hook, kind)


def _check_applied(*args: Any, **kwargs: Any) -> None:
    """In a scheduler: SGLang only logs a hook that it could not apply, and would go on to verify
    greedily whatever the temperature. The launcher has asked the same of its own process."""
    compat.check_applied(compat.CPU_HOOKS)


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
        _supply(name, getattr(sampling, name), renorm, eagle_utils)
    name = "tree_speculative_sampling_target_only"
    _supply(name, getattr(sampling, name), verify_sampling, eagle_utils)
    _supply("chain_speculative_sampling_triton", sampling.chain_speculative_sampling, eagle_utils)
    _supply("row_argmax", partial(torch.argmax, dim=-1), spec_utils)


def _supply(name: str, op: Callable[..., Any], *modules: ModuleType) -> None:
    """Only a name that SGLang has can be one that it uses: another raises, which keeps the plugin
    from loading and the launcher from serving."""
    for module in modules:
        getattr(module, name)
        setattr(module, name, op)


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


def _by_width(original: Callable[..., Any], self: Any, forward_batch: Any) -> Any:
    """SGLang verifies as many tokens of one request as of another; see :mod:`srt.in_round`."""
    lengths = getattr(forward_batch.spec_info, in_round.LENGTHS, None)
    if lengths is None:
        return original(self, forward_batch)
    starts = lengths.cumsum(0) - lengths
    return forward_batch.seq_lens + lengths, lengths.int(), starts.int(), None


def _share_plans(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """This backend's layers, whose forward was announced above."""
    with PLANS.shared():
        return original(*args, **kwargs)
