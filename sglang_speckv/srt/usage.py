"""What an answer says of itself: counts of what was delivered, and of the drafts that it had.

SGLang carries ``spec_num_cap_tokens`` of every request from its scheduler to the answer. Only a
kind of speculation that SpecKV refuses fills it. Here it holds the drafts that were verified.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_speckv.srt.rounds import DecodeLaunch

logger = logging.getLogger(__name__)

_COUNTED = "speckv_answer_counted"
"""Attribute of a request: its acceptance was counted."""
_failed = False


def bound_reasoning(result: None, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Req.update_finish_state``. SGLang counts reasoning tokens of all that a round
    accepted; an answer may end before that. They are its first tokens."""
    if self.finished_len is not None and self.reasoning_tokens > self.finished_len:
        self.reasoning_tokens = self.finished_len


def count_verified(launch: DecodeLaunch) -> None:
    """Of a round whose result is here and was not handed to its requests yet: the drafts of each
    live one that the target verified."""
    drafts = launch.shape.drafts if launch.made is None else launch.made
    widths = [drafts] * len(launch.reqs) if launch.widths is None else launch.widths.tolist()
    exact = launch.exact or [None] * len(launch.reqs)
    for req, width, name in zip(launch.reqs, widths, exact, strict=True):
        if name is None and not (req.is_retracted or req.finished()):
            req.spec_num_cap_tokens += width


def ended(reqs: Sequence[Any]) -> Iterator[float]:
    """The share of its verified drafts that was accepted, of each request that has ended and is
    told of for the first time; none of one that had no drafts, or where a count was missed."""
    for req in reqs:
        if req.finished() and not hasattr(req, _COUNTED):
            setattr(req, _COUNTED, True)
            if req.spec_num_cap_tokens >= max(req.spec_num_correct_drafts, 1):
                yield req.spec_num_correct_drafts / req.spec_num_cap_tokens


def say_verified(result: None, self: Any, meta_info: dict[str, Any], recv_obj: Any, i: int) -> None:
    """AFTER ``TokenizerManager._calculate_spec_decoding_metrics``, which takes every round to have
    been as deep as the launch depth. It runs in a loop that serves all requests, so nothing leaves
    here."""
    from sglang_speckv.srt import arguments

    global _failed
    try:
        if arguments.is_active(self.server_args) and recv_obj.spec_verify_ct[i] > 0:
            meta_info.pop("spec_cap_length", None)
            if recv_obj.spec_num_correct_drafts[i] <= recv_obj.spec_num_cap_tokens[i]:
                meta_info.update(_counts(recv_obj, i))
    except Exception as error:
        if not _failed:
            _failed = True
            logger.error("SpecKV: an answer's counts of drafts are SGLang's own (%r)", error)


def _counts(recv_obj: Any, i: int) -> dict[str, Any]:
    rounds, correct = recv_obj.spec_verify_ct[i], recv_obj.spec_num_correct_drafts[i]
    verified = recv_obj.spec_num_cap_tokens[i]
    return {
        "spec_accept_rate": correct / verified if verified else 0.0,
        "spec_accept_length": recv_obj.completion_tokens[i] / rounds,
        "spec_num_correct_drafts": correct,
        "spec_num_proposed_drafts": verified,
        "spec_verify_ct": rounds,
    }
