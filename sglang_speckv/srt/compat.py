"""Every function of SGLang that this package hooks, overrides or restates, in tables that are
checked before they are used. What it merely calls is not listed.

SGLang swallows the exceptions of plugins and hooks, so a hook that no longer fits would leave a
stock server that looks healthy. The launcher therefore verifies the version, every signature and
that the hooks really applied, before anything is spawned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass

from sglang_speckv.config import ConfigError
from sglang_speckv.srt import cpu

SGLANG_VERSION = "0.5.23"

_SRT = "sglang.srt."


@dataclass(frozen=True)
class HookTarget:
    """A function of SGLang and the parameters it is expected to have, less ``self``."""

    path: str
    parameters: tuple[str, ...]


# Hooked when the plugin loads, in every process: argument parsing and resolution.
ADD_CLI_ARGS = HookTarget(_SRT + "server_args.ServerArgs.add_cli_args", ("parser",))
FROM_CLI_ARGS = HookTarget(_SRT + "server_args.ServerArgs.from_cli_args", ("args",))
RESOLVE_SPECULATIVE = HookTarget(
    _SRT + "arg_groups.speculative_hook.handle_speculative_decoding", ("server_args",)
)
MODEL_ADJUSTMENTS = HookTarget(
    _SRT + "arg_groups.model_hook.handle_model_specific_adjustments", ("server_args",)
)
UNSUPPORTED_REASON = HookTarget(
    _SRT + "speculative.adaptive_spec_params.adaptive_unsupported_reason", ("server_args",)
)
DEFAULT_ATTENTION = HookTarget(
    _SRT + "arg_groups.model_override_base.get_default_attn_backend",
    ("server_args", "use_mla_backend", "model_config"),
)
RESERVE_MEMORY = HookTarget(_SRT + "arg_groups.memory_hook.reserve_for_graph_mb", ("server_args",))
CHECK_ARGS = HookTarget(_SRT + "arg_groups.validation_hook.check_server_args", ("server_args",))
CREATE_WORKER = HookTarget(
    _SRT + "speculative.spec_info.SpeculativeAlgorithm.create_worker", ("server_args",)
)
LAUNCHER_HOOKS = (
    ADD_CLI_ARGS,
    FROM_CLI_ARGS,
    MODEL_ADJUSTMENTS,
    RESOLVE_SPECULATIVE,
    UNSUPPORTED_REASON,
    DEFAULT_ATTENTION,
    RESERVE_MEMORY,
    CHECK_ARGS,
    CREATE_WORKER,
)

# Hooked in a scheduler process that serves with SpecKV, when its worker is created.
RESULT_DECODE = HookTarget(
    _SRT + "managers.scheduler_components.batch_result_processor."
    "SchedulerBatchResultProcessor.process_batch_result_decode",
    ("batch", "result"),
)
RESULT_PREFILL = HookTarget(
    _SRT + "managers.scheduler_components.batch_result_processor."
    "SchedulerBatchResultProcessor.process_batch_result_prefill",
    ("batch", "result"),
)
COPY_TO_CPU = HookTarget(
    _SRT + "managers.utils.GenerationBatchResult.copy_to_cpu",
    ("return_logprob", "return_hidden_states"),
)
ADD_SPECULATIVE = HookTarget(
    _SRT + "managers.scheduler_components.internal_state."
    "SchedulerInternalStateController._add_speculative",
    ("state",),
)
UPDATE_HANDLERS = HookTarget(
    _SRT + "managers.scheduler_components.internal_state."
    "SchedulerInternalStateController._update_handlers",
    (),
)
VALIDATE_LENGTH = HookTarget(
    _SRT + "managers.utils.validate_input_length",
    ("req", "max_req_input_len", "allow_auto_truncate"),
)
SELECT_RUNNERS = HookTarget(
    _SRT + "managers.scheduler_components.weight_updater."
    "SchedulerWeightUpdaterManager._select_runners",
    ("selector",),
)
FINISH_STATE = HookTarget(
    _SRT + "managers.schedule_batch.Req.update_finish_state", ("new_accepted_len",)
)
DECODE_MEM = HookTarget(
    _SRT + "managers.schedule_batch.ScheduleBatch.check_decode_mem", ("selected_indices",)
)
DECODE_RESERVE = HookTarget(_SRT + "mem_cache.allocation_sizing.get_alloc_reserve_per_decode", ())
SLOT_ROWS = HookTarget(_SRT + "mem_cache.allocation_sizing.get_req_to_token_extra_context_len", ())
SCHEDULER_HOOKS = (
    FINISH_STATE,
    RESULT_DECODE,
    RESULT_PREFILL,
    COPY_TO_CPU,
    ADD_SPECULATIVE,
    UPDATE_HANDLERS,
    VALIDATE_LENGTH,
    SELECT_RUNNERS,
    DECODE_MEM,
    DECODE_RESERVE,
    SLOT_ROWS,
)
# Beside these, unless --speckv-exact is off.
VERIFY_SAMPLE = HookTarget(
    _SRT + "speculative.eagle_utils.eagle_sample",
    (
        "verify_input",
        "batch",
        "logits_output",
        "grammar_mask",
        "uno_target_max_top_k",
        "watermark_state",
        "watermark_full_mask",
    ),
)
SAMPLING_INFO = HookTarget(
    _SRT + "sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch",
    ("batch", "vocab_size"),
)
EXACT_HOOKS = (VERIFY_SAMPLE, SAMPLING_INFO)

# Hooked in the launcher of an HTTP server, once SpecKV was accepted.
WARM_UP = HookTarget(
    _SRT + "entrypoints.http_server._wait_and_warmup",
    ("server_args", "launch_callback", "execute_warmup_func", "post_warmup_callback"),
)

# Hooked by the CPU engine when the plugin loads, in every process.
VERIFY_GREEDY = HookTarget(
    _SRT + "speculative.eagle_utils._verify_uses_greedy",
    ("is_all_greedy", "is_cpu", "is_hip", "is_xpu", "use_rejection_sampling"),
)
PARALLEL_GROUP = HookTarget(
    _SRT + "distributed.parallel_state.init_model_parallel_group",
    (
        "group_ranks",
        "local_rank",
        "backend",
        "use_pynccl",
        "use_custom_allreduce",
        "use_message_queue_broadcaster",
        "group_name",
        "use_mscclpp",
        "use_torch_symm_mem_allreduce",
        "recovered_rank",
        "rank_offset",
        "max_world_size",
    ),
)
BIND_THREADS = HookTarget(
    _SRT + "utils.numa_utils.init_threads_binding", ("numa_index", "world_size")
)
LINEAR = HookTarget(
    _SRT + "layers.quantization.unquant.UnquantizedLinearMethod.apply", ("layer", "x", "bias")
)
LM_HEAD = HookTarget(
    _SRT + "layers.logits_processor.LogitsProcessor._compute_lm_head",
    ("hidden_states", "lm_head", "embedding_bias", "out"),
)
STORE_KV = HookTarget(
    _SRT + "mem_cache.memory_pool._set_kv_buffer_impl",
    (
        "k",
        "v",
        "k_cache",
        "v_cache",
        "indices",
        "row_dim",
        "store_dtype",
        "device_module",
        "size_limit",
        "alt_stream",
        "v_row_dim",
    ),
)
PLAN_ATTENTION = HookTarget(
    _SRT + "layers.attention.intel_amx_backend.IntelAMXAttnBackend.init_forward_metadata",
    ("forward_batch",),
)
PLAN_DRAFT_ATTENTION = HookTarget(
    _SRT + "layers.attention.intel_amx_backend.IntelAMXMultiStepDraftBackend.init_forward_metadata",
    ("forward_batch",),
)
EXTEND_LENGTHS = HookTarget(
    _SRT + "layers.attention.intel_amx_backend.IntelAMXAttnBackend._build_extend_metadata",
    ("forward_batch",),
)
CPU_ATTENTION = tuple(
    HookTarget(
        _SRT + f"layers.attention.intel_amx_backend.IntelAMXAttnBackend.{method}",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache", "sinks"),
    )
    for method in ("forward_decode", "forward_extend")
)
CPU_HOOKS = (
    VERIFY_GREEDY,
    PARALLEL_GROUP,
    BIND_THREADS,
    LINEAR,
    LM_HEAD,
    STORE_KV,
    PLAN_ATTENTION,
    PLAN_DRAFT_ATTENTION,
    EXTEND_LENGTHS,
    *CPU_ATTENTION,
    VALIDATE_LENGTH,
    SELECT_RUNNERS,
)

# Hooked in a launcher that serves with SpecKV or on the CPU engine.
TOKENIZED_REQUEST = HookTarget(
    _SRT + "managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
    ("obj", "input_text", "input_ids", "input_embeds", "mm_inputs", "token_type_ids"),
)
ANSWER_COUNTS = HookTarget(
    _SRT + "managers.tokenizer_manager.TokenizerManager._calculate_spec_decoding_metrics",
    ("meta_info", "recv_obj", "i"),
)
NORMALIZED_REQUEST = HookTarget(
    _SRT + "managers.io_struct.GenerateReqInput.normalize_batch_and_arguments", ()
)
RESERVED_TOKENS = HookTarget(_SRT + "managers.utils.compute_num_reserved_tokens", ())
MEMORY_CALLS = tuple(
    HookTarget(
        _SRT + f"managers.tokenizer_control_mixin.TokenizerControlMixin.{name}_memory_occupation",
        ("obj", "request"),
    )
    for name in ("release", "resume")
)

# Hooked where a detokenizer starts, and the method that is wrapped there.
DETOKENIZER_STATUS = HookTarget(
    _SRT + "managers.detokenizer_manager.DetokenizerManager.init_running_status", ("server_args",)
)
DETOKENIZE = HookTarget(
    _SRT + "managers.detokenizer_manager.DetokenizerManager._decode_batch_token_id_output",
    ("recv_obj",),
)

# Overridden by the worker subclass or called by it.
WORKER_SEAMS = (
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2.forward_batch_generation",
        ("batch", "on_publish", "grammar_barrier", "pp_proxy_tensors"),
    ),
    HookTarget(_SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2.init_cuda_graphs", ()),
    HookTarget(_SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2.apply_runtime_state", ("state",)),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2.on_verify_complete_cpu",
        ("num_correct_drafts_per_req", "batch_size"),
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2.activate_step_by_batch", ("batch_size",)
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2._build_trivial_verify_input", ("batch",)
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2.verify",
        ("batch", "pp_proxy_tensors", "grammar_barrier"),
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2._stub_skipped_draft_extend",
        ("batch", "batch_output"),
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EagleDraftWorker.draft", ("batch", "with_topology")
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EagleDraftWorker.draft_forward", ("forward_batch",)
    ),
    HookTarget(
        _SRT + "model_executor.model_runner.ModelRunner.forward",
        (
            "forward_batch",
            "skip_attn_backend_init",
            "pp_proxy_tensors",
            "reinit_attn_backend",
            "split_forward_count",
        ),
    ),
    HookTarget(
        _SRT + "speculative.eagle_draft_cuda_graph_runner.EAGLEDraftCudaGraphRunner."
        "capture_one_shape",
        ("size", "forward", "stream_idx", "variant_label", "attention_variant"),
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EagleDraftWorker._draft_extend_for_decode",
        ("batch", "batch_result", "kv_loc_plan"),
    ),
    HookTarget(
        _SRT + "speculative.eagle_worker_v2.EagleDraftWorker._draft_extend_for_prefill",
        (
            "batch",
            "target_hidden_states",
            "next_token_ids",
            "mm_input_embeds",
            "kv_loc_plan",
        ),
    ),
    HookTarget(
        _SRT + "speculative.base_spec_worker.EagleDraftWorkerBase._rebuild_topk1_chain_buffers",
        (),
    ),
    HookTarget(_SRT + "model_executor.model_runner.ModelRunner.init_decode_cuda_graph", ()),
    HookTarget(_SRT + "managers.overlap_utils.decide_needs_cpu_seq_lens", ("attn_backends",)),
    HookTarget(
        _SRT + "speculative.adaptive_runtime_state.AdaptiveController.__init__",
        ("worker", "policy"),
    ),
    HookTarget(
        _SRT + "speculative.adaptive_runtime_state.AdaptiveController.register",
        ("state", "steps"),
    ),
    HookTarget(
        _SRT + "speculative.adaptive_runtime_state.AdaptiveController.init_states",
        ("cuda_graph_bs",),
    ),
    HookTarget(
        _SRT + "speculative.adaptive_runtime_state.AdaptiveController.activate_step_by_batch",
        ("batch_size",),
    ),
    HookTarget(
        _SRT + "speculative.eagle_utils.organize_draft_results",
        ("score_list", "token_list", "parents_list", "num_draft_token"),
    ),
)


# Restated by the worker, which leaves a few lines of it out.
RUNTIME_STATE = _SRT + "speculative.adaptive_runtime_state.SpecRuntimeState"
RUNTIME_STATE_FIELDS = (
    "speculative_num_steps",
    "speculative_num_draft_tokens",
    "draft_attn_backend",
    "cuda_graph_runner",
    "target_attn_backend",
    "target_graph_runner",
    "draft_extend_attn_backend",
    "cuda_graph_runner_for_draft_extend",
)
APPLY_STATE = _SRT + "speculative.eagle_worker_v2.EAGLEWorkerV2.apply_runtime_state"
APPLY_STATE_SOURCES = (
    "d5da95f0ed32c661635228599f63e6e07e3dd5d616b2faabb53d3487cc885694",
    "43be7030bac32ab05b9097264aac8d19570b8e53a61ab77061143e700b53f356",
)
"""SHA-256 of its text: as released, and with ``patches/0003-quiet-tier-switches.patch``."""


def installed_version() -> str:
    return importlib.metadata.version("sglang")


def check_version() -> None:
    """Raise :class:`ConfigError` unless the SGLang this package was checked against is here."""
    found = installed_version()
    if found != SGLANG_VERSION:
        raise ConfigError(
            f"sglang {found} is installed but SpecKV is made for sglang {SGLANG_VERSION}; "
            f"install it with: pip install sglang=={SGLANG_VERSION}"
        )


def check_signatures(targets: Iterable[HookTarget]) -> None:
    """Raise :class:`ConfigError` at the first target that is missing or has other parameters."""
    for target in targets:
        try:
            function = inspect.unwrap(pkgutil.resolve_name(target.path))
            found = tuple(inspect.signature(function).parameters)
            found = tuple(name for name in found if name not in ("self", "cls"))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"SGLang has no {target.path} ({error}); reinstall sglang=={SGLANG_VERSION}"
            ) from error
        if found != target.parameters:
            raise ConfigError(
                f"SGLang's {target.path} takes {found}, not {target.parameters}; "
                f"reinstall sglang=={SGLANG_VERSION}"
            )


def check_applied(targets: Iterable[HookTarget]) -> None:
    """Raise :class:`ConfigError` at the first hook that SGLang did not apply."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    for target in targets:
        if target.path not in HookRegistry._patched:
            raise ConfigError(
                f"the SpecKV hook on {target.path} did not apply; see the error logged above, "
                "and check that SGLANG_PLUGINS, if set, names speckv"
            )


def check_restated() -> None:
    """Raise :class:`ConfigError` where SGLang switches depths otherwise than the worker does."""
    state = pkgutil.resolve_name(RUNTIME_STATE)
    found = tuple(field.name for field in dataclasses.fields(state))
    if found != RUNTIME_STATE_FIELDS:
        raise ConfigError(
            f"SGLang's {RUNTIME_STATE} has the fields {found}, not {RUNTIME_STATE_FIELDS}; "
            f"reinstall sglang=={SGLANG_VERSION}"
        )
    source = inspect.getsource(inspect.unwrap(pkgutil.resolve_name(APPLY_STATE)))
    if hashlib.sha256(source.encode()).hexdigest() not in APPLY_STATE_SOURCES:
        raise ConfigError(
            f"SGLang's {APPLY_STATE} is not the one that SpecKV restates; "
            f"reinstall sglang=={SGLANG_VERSION}"
        )


def loaded_hooks() -> tuple[HookTarget, ...]:
    """What has to be hooked in this process once SGLang's plugins are loaded."""
    return (*LAUNCHER_HOOKS, *CPU_HOOKS) if cpu.enabled() else LAUNCHER_HOOKS


def check_installation() -> None:
    """The whole self-check of the launcher: version, signatures, applied hooks."""
    check_version()
    check_signatures((*loaded_hooks(), *SCHEDULER_HOOKS, *EXACT_HOOKS, *WORKER_SEAMS))
    check_restated()
    check_applied(loaded_hooks())
