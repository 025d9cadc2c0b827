"""Counts of an answer that are no more than what was delivered of it."""

from __future__ import annotations

from typing import Any


def bound_reasoning(result: None, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Req.update_finish_state``. SGLang counts reasoning tokens of all that a round
    accepted; an answer may end before that. They are its first tokens."""
    if self.finished_len is not None and self.reasoning_tokens > self.finished_len:
        self.reasoning_tokens = self.finished_len
