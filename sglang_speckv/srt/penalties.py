"""Penalties outlive a retraction.

SGLang counts the tokens of an answer batch by batch and starts at nothing where a retracted request
is prefilled again, so its text depends on when the KV cache was full. Speculation needs more of it
than plain decoding and retracts at other times; here the count goes on.
"""

from __future__ import annotations

from typing import Any

import torch


class _Alone:
    """A batch of one request, as far as SGLang's penalizers look at one."""

    def __init__(self, req: Any, device: Any) -> None:
        self.reqs, self.device = [req], device


def go_on_counting(result: Any, cls: type, batch: Any, vocab_size: int) -> None:
    """AFTER ``SamplingBatchInfo.from_schedule_batch``."""
    whole = result.penalizer_orchestrator
    retracted = any(req.retraction_count and req.output_ids for req in batch.reqs)
    if not retracted or not whole.is_required:
        return
    make, kinds = type(whole), set(whole.penalizers)
    single = [_Alone(req, batch.device) for req in batch.reqs]
    first, *others = [make(vocab_size, alone, kinds) for alone in single]
    for alone, counts in zip(single, (first, *others), strict=True):
        _count(alone.reqs[0], counts, batch)
    for counts in others:
        first.merge(counts)
    first.batch = batch
    result.penalizer_orchestrator = first


def _count(req: Any, counts: Any, batch: Any) -> None:
    """What ``req`` has said; before a decode round SGLang counts the newest token that it knows,
    which is the last of these where the result of the prefill will not be known by then."""
    if not req.retraction_count or not counts.is_required:
        return
    late = batch.enable_overlap or batch.forward_mode.is_prebuilt()
    said = torch.tensor(req.output_ids[: len(req.output_ids) - late], dtype=torch.int64)
    for token in said.to(batch.device):
        counts.cumulate_output_tokens(token[None])
