"""Entry point of group ``sglang.srt.plugins``: runs in every SGLang process before it starts.

Only light modules are hooked here, because applying a hook imports its module everywhere. What a
scheduler needs is hooked by :mod:`sglang_speckv.srt.worker` when it creates its worker.
Installed but not asked for, every hook hands through to SGLang.
"""

from __future__ import annotations

import sys


def register() -> None:
    """Install the launcher's hooks; called by SGLang's ``load_plugins()``."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_speckv.srt import arguments, compat, cpu, detokenizer, memory
    from sglang_speckv.srt.worker import create_worker

    cpu.apply_if_enabled()
    for target, hook, kind in (
        (compat.ADD_CLI_ARGS, arguments.add_flags, HookType.AFTER),
        (compat.FROM_CLI_ARGS, arguments.from_cli_args, HookType.AROUND),
        (compat.MODEL_ADJUSTMENTS, arguments.check_target, HookType.AROUND),
        (compat.RESOLVE_SPECULATIVE, arguments.resolve, HookType.AROUND),
        (compat.UNSUPPORTED_REASON, arguments.unsupported_reason, HookType.AROUND),
        (compat.DEFAULT_ATTENTION, arguments.default_attention, HookType.AROUND),
        (compat.RESERVE_MEMORY, memory.reserve, HookType.AROUND),
        (compat.CHECK_ARGS, arguments.check_resolved, HookType.AFTER),
        (compat.CREATE_WORKER, create_worker, HookType.AROUND),
    ):
        HookRegistry.register(target.path, hook, kind)
    if "sglang.srt.managers.detokenizer_manager" in sys.modules:
        detokenizer.hook()  # it loads this plugin itself
    if "sglang.srt.entrypoints.http_server" in sys.modules:
        arguments.hook_warm_up()  # a server process whose arguments were resolved in its parent
