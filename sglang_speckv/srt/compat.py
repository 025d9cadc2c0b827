"""Every place where this package touches SGLang, in one table that is checked before it is used.

SGLang swallows the exceptions of plugins and hooks, so a hook that no longer fits would leave a
stock server that looks healthy. The launcher therefore verifies the version, every signature and
that the hooks really applied, before anything is spawned.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass

from sglang_speckv.config import ConfigError

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
    RESOLVE_SPECULATIVE,
    UNSUPPORTED_REASON,
    DEFAULT_ATTENTION,
    RESERVE_MEMORY,
    CHECK_ARGS,
    CREATE_WORKER,
)

# Hooked in a scheduler process that serves with SpecKV, when its worker is created.
RESOLVE_TOKENS = HookTarget(
    _SRT + "managers.scheduler_components.batch_result_processor."
    "SchedulerBatchResultProcessor._resolve_spec_v2_tokens",
    ("result", "batch"),
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
SCHEDULER_HOOKS = (
    RESOLVE_TOKENS,
    RESULT_PREFILL,
    COPY_TO_CPU,
    ADD_SPECULATIVE,
    UPDATE_HANDLERS,
    VALIDATE_LENGTH,
    SELECT_RUNNERS,
)

# Hooked in the launcher of an HTTP server, once SpecKV was accepted.
WARM_UP = HookTarget(
    _SRT + "entrypoints.http_server._wait_and_warmup",
    ("server_args", "launch_callback", "execute_warmup_func", "post_warmup_callback"),
)

# Hooked in a launcher that serves with SpecKV or on the CPU engine.
TOKENIZED_REQUEST = HookTarget(
    _SRT + "managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
    ("obj", "input_text", "input_ids", "input_embeds", "mm_inputs", "token_type_ids"),
)
MEMORY_CALLS = tuple(
    HookTarget(
        _SRT + f"managers.tokenizer_control_mixin.TokenizerControlMixin.{name}_memory_occupation",
        ("obj", "request"),
    )
    for name in ("release", "resume")
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
    HookTarget(_SRT + "managers.overlap_utils.decide_needs_cpu_seq_lens", ("attn_backends",)),
    HookTarget(
        _SRT + "speculative.adaptive_runtime_state.AdaptiveController.__init__",
        ("worker", "policy"),
    ),
)


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


def check_installation() -> None:
    """The whole self-check of the launcher: version, signatures, applied hooks."""
    check_version()
    check_signatures((*LAUNCHER_HOOKS, *SCHEDULER_HOOKS, *WORKER_SEAMS))
    check_applied(LAUNCHER_HOOKS)
