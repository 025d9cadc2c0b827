"""Where a round may stop drafting by what its own drafts say, and how the worker does it.

After each draft the host reads what it said and asks the policy. That is free on a CPU. On a GPU it
would be one wait more per draft, and a captured draft graph does not ask at all; ranks would have
to agree after each draft. There every round makes the drafts that were decided before it.
"""

from __future__ import annotations

from typing import Any

from sglang_speckv.config import SpecKVConfig


def why_not(config: SpecKVConfig, device: str, tp_size: int, overlap: bool) -> str | None:
    """The reason why rounds do not stop here, in a few words; None where they do."""
    several = sum(steps > 0 for steps in config.candidate_steps) > 1
    reasons = (
        (config.stop == "off", "--speckv-stop off"),
        (not several, "there is only one depth"),
        (device != "cpu", f"after each draft the host would wait for the {device} device"),
        (tp_size > 1, "each of the tensor-parallel ranks would have to agree after each draft"),
        (overlap, "the overlap scheduler decides a round before the last one's signals are there"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def stop_here(worker: Any, drafts: int) -> None:
    """Let the draft loop end after ``drafts``: it reads the depth again before every forward."""
    worker.apply_runtime_state(worker.adaptive_controller._states[drafts])
