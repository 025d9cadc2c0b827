"""What a round's own drafts may change while it runs: how many it makes and how many it verifies.

After each draft the host reads what it said and asks the policy whether to make another one. After
the last it asks how many of each request's drafts to verify; the target runs over those only. Both
are free on a CPU. On a GPU the first would be one wait more per draft, and a captured draft graph
does not ask at all; ranks would have to agree. There every round is what was decided before it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_speckv.config import SpecKVConfig

LENGTHS = "speckv_lengths"
"""Attribute of a forward batch: how many tokens of each request it verifies, [bs]."""


def why_not(
    config: SpecKVConfig, device: str, tp_size: int, overlap: bool
) -> tuple[str | None, str | None]:
    """The reasons why rounds do not stop here and do not cut widths, in a few words; None where
    they do."""
    depths = sum(steps > 0 for steps in config.candidate_steps)
    everywhere = (
        (device != "cpu", f"the host would wait for the {device} device within each round"),
        (tp_size > 1, "the tensor-parallel ranks would have to agree within each round"),
        (overlap, "the overlap scheduler launches a round before the last one's signals are there"),
    )
    stops = ((config.stop == "off", "--speckv-stop off"), (depths < 2, "there is only one depth"))
    widths = ((config.width == "off", "--speckv-width off"), (depths < 1, "nothing is drafted"))
    return _first((*stops, *everywhere)), _first((*widths, *everywhere))


def _first(reasons: tuple[tuple[bool, str], ...]) -> str | None:
    return next((reason for applies, reason in reasons if applies), None)


def stop_here(worker: Any, drafts: int) -> None:
    """Let the draft loop end after ``drafts``: it reads the depth again before every forward."""
    worker.apply_runtime_state(worker.adaptive_controller._states[drafts])


def verify_by_width(
    runner: Any,
    choose: Callable[[int], np.ndarray | None],
    note: Callable[[np.ndarray], None],
    guard: Callable[[], Any],
) -> None:
    """Let the target verify the first drafts of each request only. ``runner`` is its model runner;
    ``choose`` says for a batch of so many requests how many drafts of each, None for all of them;
    ``note`` is told what was done."""
    original = runner.forward

    def forward(batch: Any, *args: Any, **kwargs: Any) -> Any:
        cut: tuple[Any, Tensor] | None = None
        if batch.forward_mode.is_target_verify():
            with guard():
                widths = choose(batch.batch_size)
                if widths is not None:
                    cut = _cut(batch, torch.from_numpy(widths))
                    note(widths)
        if cut is None:
            return original(batch, *args, **kwargs)
        kept, row = cut
        result = original(kept, *args, **kwargs)
        output = result.logits_output
        output.next_token_logits = output.next_token_logits[row]
        if output.hidden_states is not None:
            output.hidden_states = output.hidden_states[row]
        return result

    runner.forward = forward


def _cut(batch: Any, widths: Tensor) -> tuple[Any, Tensor]:
    """``batch`` [bs * tokens] with the first ``widths`` [bs] drafts of each request, and for each
    row of the whole one the row to read now: a draft that was cut reads its request's first, and is
    never accepted."""
    spec, lengths = batch.spec_info, widths + 1
    tokens = spec.draft_token_num
    column = torch.arange(tokens)
    keep = (column < lengths[:, None]).flatten()
    start = (lengths.cumsum(0) - lengths)[:, None]
    row = (start + torch.where(column < lengths[:, None], column, 0)).flatten()
    links = spec.retrieve_next_token.clone()
    short = (lengths < tokens).nonzero().flatten()
    links[short, widths[short]] = -1
    kept = copy.copy(batch)
    kept.input_ids, kept.positions = batch.input_ids[keep], batch.positions[keep]
    kept.out_cache_loc = batch.out_cache_loc[keep]
    setattr(kept, LENGTHS, lengths)
    spec.retrieve_next_token = links
    return kept, row
