"""A depth per batch size from a fixed table, whatever the text says.

Source: vLLM's dynamic speculative decoding (vllm-project/vllm pull request 32374,
``num_speculative_tokens_per_batch_size``) and TensorRT-LLM's ``draft_len_schedule``: a table that
the user writes, batch-size range to draft length.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

from sglang_speckv.config import ConfigError
from sglang_speckv.policy.base import Batch, Decision, Round


class BatchTablePolicy:
    """``table``: smallest batch size of a range -> num_steps; smaller batches use the first."""

    name = "batch_table"

    def __init__(self, candidate_steps: Sequence[int], table: Mapping[int, int]):
        self.candidate_steps = tuple(candidate_steps)
        foreign = sorted(set(table.values()) - set(self.candidate_steps))
        if foreign or not table:
            raise ConfigError(
                f"the batch table {dict(table)} has step {foreign[0]}, which is not a candidate"
                if foreign
                else "the batch table is empty; it needs a step count for at least one batch size"
            )
        self._sizes = sorted(table)
        self._decisions = [Decision(table[size], "table") for size in self._sizes]

    def decide(self, batch: Batch) -> Decision:
        return self._decisions[max(0, bisect.bisect_right(self._sizes, batch.size) - 1)]

    def observe(self, outcome: Round) -> None:
        pass

    def snapshot(self) -> dict[str, object]:
        steps = [decision.num_steps for decision in self._decisions]
        return {"table": {str(s): k for s, k in zip(self._sizes, steps, strict=True)}}
