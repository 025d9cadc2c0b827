"""What a round's own drafts may change while it runs: how many it makes and how many it verifies.

After each draft but the first the host reads what it said and asks the policy whether to make
another one. After the last it asks how many of each request's drafts to verify; the target runs
over those only. Both are free on a CPU. On a GPU either would be a wait within the round, and ranks
would have to agree. There the draft graph decides by itself how many drafts it makes
(:mod:`srt.graph_stop`), and the target verifies them all.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_speckv.config import SpecKVConfig, without_switches
from sglang_speckv.srt.graph_stop import no_nodes, node_fails

LENGTHS = "speckv_lengths"
"""Attribute of a verification's ``spec_info``: how many tokens of each request it is over, [bs].
(SGLang runs over a copy of the batch, which has the same ``spec_info``.)"""


def why_not(
    config: SpecKVConfig,
    device: str,
    tp_size: int,
    overlap: bool,
    captured: bool = False,
    rejection_sampling: bool = False,
    no_nodes: str | None = None,
) -> tuple[str | None, str | None]:
    """The reasons why rounds do not stop here and do not cut widths, in a few words; None where
    they do. ``captured``: the draft loop is, with conditional nodes unless ``no_nodes`` says why
    not. Where the host is asked, the first look is after two drafts, for one is made before the
    round begins."""
    depths = sum(steps > 1 for steps in config.candidate_steps)
    simulated = bool(os.environ.get("SGLANG_SIMULATE_ACC_LEN"))
    policy, _, _ = without_switches(config.policy)
    by_host = (
        (device != "cpu", f"the host would wait for the {device} device within each round"),
        (tp_size > 1, "the tensor-parallel ranks would have to agree within each round"),
        (overlap, "the overlap scheduler launches a round before the last one's signals are there"),
    )
    by_graph = (
        (policy != "throughput", f"the server was started with --speckv-policy {config.policy}"),
        (tp_size > 1, "tensor-parallel ranks communicate in the draft graphs"),
        (rejection_sampling, "rejection sampling draws tokens in the draft graphs"),
        (_probes_logits(), "SGLang is told to look for NaN in logits, those not made included"),
        (simulated, "SGLANG_SIMULATE_ACC_LEN accepts what was not drafted"),
        (no_nodes is not None, str(no_nodes)),
    )
    trees = config.trees, "trees are drafted and verified whole"
    stops = (
        trees,
        (config.stop == "off", "--speckv-stop off"),
        (captured and depths < 1, "there is no depth above 1"),
        (not captured and depths < 2, "there are no two depths above 1"),
        *(by_graph if captured else by_host),
    )
    widths = (
        trees,
        (config.width == "off", "--speckv-width off"),
        (max(config.candidate_steps) == 0, "nothing is drafted"),
        (simulated, "SGLANG_SIMULATE_ACC_LEN accepts what was not verified"),
        *by_host,
        (captured, "the target's graphs verify whole depths"),
    )
    return _first(stops), _first(widths)


def planned(config: SpecKVConfig, cfg: Any) -> tuple[str | None, str | None]:
    """:func:`why_not` of the resolved server arguments ``cfg``."""
    from sglang.srt.model_executor.cuda_graph_config import Backend

    return why_not(
        config,
        cfg.device,
        cfg.tp_size,
        not cfg.disable_overlap_schedule,
        cfg.device != "cpu" and cfg.cuda_graph_config.decode.backend == Backend.FULL,
        cfg.speculative_use_rejection_sampling,
        no_nodes(),
    )


def found(config: SpecKVConfig, device: str, captured: bool) -> tuple[str | None, str | None]:
    """:func:`why_not` in a process that serves; looks whether conditional nodes work."""
    from sglang.srt.runtime_context import get_parallel, get_schedule, get_spec

    no_stops, no_widths = why_not(
        config,
        device,
        get_parallel().tp_size,
        not get_schedule().disable_overlap_schedule,
        captured,
        get_spec().speculative_use_rejection_sampling,
        no_nodes(),
    )
    if no_stops is None and captured:
        no_stops = node_fails(device)
    return no_stops, no_widths


def _probes_logits() -> bool:
    names = "SGLANG_ENABLE_NAN_LOGITS_CHECK", "SGLANG_ENABLE_ASYNC_ASSERT"
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "y") for name in names)


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
        for name in ("next_token_logits", "hidden_states", "last_hidden_states"):
            rows = getattr(output, name, None)
            if rows is not None:
                setattr(output, name, rows[row])
        return result

    runner.forward = forward


def _cut(batch: Any, widths: Tensor) -> tuple[Any, Tensor]:
    """``batch`` [bs * tokens] with the first ``widths`` [bs] drafts of each request, and for each
    row of the whole batch the row of the cut one that it is a copy of. The logits of a draft that
    was cut are those of its request's first row; nothing reads them, for acceptance ends before."""
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
    if batch.mrope_positions is not None:
        kept.mrope_positions = batch.mrope_positions[:, keep]
    setattr(spec, LENGTHS, lengths)
    spec.retrieve_next_token = links
    return kept, row
