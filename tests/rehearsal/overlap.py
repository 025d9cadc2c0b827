"""SGLang's overlap scheduler on a CPU.

SGLang turns overlap off for speculation on a CPU. Here it stays on: the scheduler's loop that
launches a round before it looks at the last one's result, and what SGLang hands from launch to
launch, are those of a GPU. A CPU computes at the launch, so nothing is ever in flight, and a
device's races do not show.
"""

from __future__ import annotations

import torch


def keep_overlap() -> None:
    from sglang.srt.arg_groups import speculative_hook
    from sglang.srt.managers import overlap_utils

    speculative_hook._disable_overlap_schedule_for_cpu = lambda server_args: None
    overlap_utils.gather_spec_extras = gather_rows


def gather_rows(indices: torch.Tensor, *buffers: torch.Tensor | None) -> tuple:
    """SGLang has this in Triton only."""
    return tuple(None if buffer is None else buffer[indices] for buffer in buffers)
