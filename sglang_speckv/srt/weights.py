"""New weights while serving: whose they are, and what was derived from the old ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_speckv.srt import cpu


def draft_has_its_own(server_args: Any) -> bool:
    """Whether the draft comes from another checkpoint than the target (MTP layers do not)."""
    from sglang.srt.arg_groups.overrides import resolving_view

    cfg = resolving_view(server_args)
    return cfg.speculative_draft_model_path not in (None, cfg.model_path)


def select_runners(original: Callable[..., Any], self: Any, selector: str = "all") -> Any:
    """AROUND ``SchedulerWeightUpdaterManager._select_runners``, which every update goes through.

    Where nobody names a runner SGLang loads the target's weights into the draft too: a STANDALONE
    draft turns into a mixture of both models, an EAGLE-3 head is of another shape and the update
    fails. A draft of its own checkpoint changes only where it is named.
    """
    if cpu.enabled():
        from sglang_speckv.srt.cpu.kernels import linear

        linear.forget_packed()
    if selector == "all" and getattr(self.draft_worker, "draft_weights_are_its_own", False):
        selector = "target"
    return original(self, selector)
