"""Reasoning tokens are those delivered; drafts are those that were verified."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang_speckv.config import Shape
from sglang_speckv.srt.usage import bound_reasoning, count_verified, ended, say_verified

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


def served(finished: bool = False, retracted: bool = False, **counts: int) -> Any:
    found = {"spec_num_cap_tokens": 0, "spec_num_correct_drafts": 0, **counts}
    return SimpleNamespace(is_retracted=retracted, finished=lambda: finished, **found)


@pytest.mark.parametrize(
    ("made", "widths", "exact", "verified"),
    [
        (None, None, (), [3, 3]),
        (2, None, (), [2, 2]),
        (None, np.array([1, 0, 3, 3]), (), [1, 0]),
        (None, None, ("min_p", None, None, None), [0, 3]),
    ],
)
def test_drafts_that_were_verified(
    made: int | None, widths: np.ndarray | None, exact: tuple[str | None, ...], verified: list[int]
) -> None:
    """Of live requests: the last two are none."""
    reqs = [served(), served(), served(finished=True), served(retracted=True)]
    launch: Any = SimpleNamespace(
        shape=Shape(3, 4), made=made, widths=widths, exact=exact, reqs=reqs
    )
    count_verified(launch)
    assert [req.spec_num_cap_tokens for req in reqs] == [*verified, 0, 0]


def test_an_answer_that_ended_is_told_of_once() -> None:
    counts = {"spec_num_cap_tokens": 8, "spec_num_correct_drafts": 6}
    missed = {"spec_num_cap_tokens": 2, "spec_num_correct_drafts": 6}
    reqs = [served(True, **counts), served(**counts), served(True), served(True, **missed)]
    assert list(ended(reqs)) == [0.75]
    assert list(ended(reqs)) == []


def said(active: bool = True, **counts: list[int]) -> dict[str, Any]:
    stock = {"spec_num_proposed_drafts": 15, "spec_cap_length": 1.6, "spec_accept_rate": 0.2}
    found = {
        **{"spec_verify_ct": [5], "spec_num_correct_drafts": [3], "completion_tokens": [9]},
        **{"spec_num_cap_tokens": [8], **counts},
    }
    server_args = SimpleNamespace(_speckv_active=active)
    say_verified(None, SimpleNamespace(server_args=server_args), stock, SimpleNamespace(**found), 0)
    return stock


def test_an_answer_says_what_was_verified() -> None:
    assert said() == {
        "spec_accept_rate": 3 / 8,
        "spec_accept_length": 9 / 5,
        "spec_num_correct_drafts": 3,
        "spec_num_proposed_drafts": 8,
        "spec_verify_ct": 5,
    }
    without = said(spec_num_correct_drafts=[0], spec_num_cap_tokens=[0])
    assert (without["spec_accept_rate"], without["spec_num_proposed_drafts"]) == (0, 0)


@pytest.mark.parametrize(
    "counts", [{"active": False}, {"spec_num_cap_tokens": []}, {"spec_num_cap_tokens": [2]}]
)
def test_an_answer_says_what_sglang_says(counts: dict[str, Any]) -> None:
    """Without SpecKV, and where its counts are missing or too low."""
    assert said(**counts)["spec_num_proposed_drafts"] == 15
