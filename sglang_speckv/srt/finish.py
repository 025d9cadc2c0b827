"""Where an answer ends: after the token at which plain decoding ends it.

SGLang looks at an accepted run as a whole, stop strings first, so that a string wins over a stop
token before it; and it ends a constrained answer with the token that completes its grammar, which
plain decoding notices one token later. Here every token of a run is looked at by itself, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COMPLETE = "speckv_grammar_complete"
"""Attribute of a request: its grammar was complete before the tokens that come now."""


def update_finish_state(
    original: Callable[..., None], self: Any, new_accepted_len: int = 1
) -> None:
    """AROUND ``Req.update_finish_state``: token by token."""
    if new_accepted_len < 1 or (new_accepted_len == 1 and self.grammar is None):
        original(self, new_accepted_len)
        return
    grammar, run = self.grammar, self.output_ids[len(self.output_ids) - new_accepted_len :]
    del self.output_ids[len(self.output_ids) - new_accepted_len :]
    if not getattr(self, COMPLETE, False):
        self.grammar = None  # it has read the run already
    looked_at = 0
    try:
        while looked_at < len(run) and not self.finished():
            self.output_ids.append(run[looked_at])
            looked_at += 1
            original(self, 1)
    finally:
        self.output_ids.extend(run[looked_at:])
        self.grammar = grammar
    if grammar is not None and grammar.is_terminated():
        setattr(self, COMPLETE, True)
