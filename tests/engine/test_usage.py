"""A round accepts more than an answer has room for: its reasoning tokens are those delivered."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from sglang_speckv.srt.usage import bound_reasoning

pytestmark = pytest.mark.engine
THINK_END = [99]


def answered(output: list[int], **sampling: Any) -> Any:
    """A request whose last round accepted ``output``, as SGLang counts it."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams(**sampling)
    params.normalize(None)
    req = Req("one", "", array("q", [1, 2]), params, vocab_size=320)
    req.output_ids.extend(output)
    req.update_reasoning_tokens(output, THINK_END)
    req.update_finish_state(len(output))
    return req


@pytest.mark.parametrize(
    ("output", "sampling", "stock", "right"),
    [
        ([5, 6, 7, 8, 9, 10], {"max_new_tokens": 4}, 6, 4),
        ([5, 6, 99, 8, 9, 10], {"max_new_tokens": 4}, 3, 3),
        ([5, 6, 7, 8, 9, 99], {"max_new_tokens": 4}, 6, 4),
        ([5, 6, 7, 8], {"max_new_tokens": 8, "stop_token_ids": [6]}, 4, 2),
        ([5, 6, 7, 8], {"max_new_tokens": 8}, 4, 4),
    ],
)
def test_what_is_counted(
    output: list[int], sampling: dict[str, Any], stock: int, right: int
) -> None:
    req = answered(output, **sampling)
    assert req.reasoning_tokens == stock
    bound_reasoning(None, req, len(output))
    assert req.reasoning_tokens == right <= len(req.output_ids_through_stop)
