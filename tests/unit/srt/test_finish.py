"""An answer ends where its tokens, looked at one by one, end it."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from sglang_speckv.srt.finish import update_finish_state


class Grammar:
    def __init__(self, complete: bool) -> None:
        self.complete = complete

    def is_terminated(self) -> bool:
        return self.complete


class Req:
    """Ends at token 9, or where its grammar is complete."""

    def __init__(self, said: list[int], grammar: Grammar | None = None) -> None:
        self.output_ids = array("q", said)
        self.grammar = grammar
        self.finished_len: int | None = None
        self.looks: list[tuple[list[int], int]] = []

    def finished(self) -> bool:
        return self.finished_len is not None

    def update_finish_state(self, new: int = 1) -> None:
        self.looks.append((self.output_ids.tolist(), new))
        run = self.output_ids[-new:]
        if 9 in run:
            self.finished_len = len(self.output_ids) - len(run) + run.index(9) + 1
        elif self.grammar is not None and self.grammar.is_terminated():
            self.finished_len = len(self.output_ids)


def finish(req: Any, new: int) -> None:
    update_finish_state(type(req).update_finish_state, req, new)


def test_each_token_of_a_run_is_seen_as_the_last_one() -> None:
    req = Req([1, 2, 3, 9, 5])
    finish(req, 4)
    assert req.looks == [([1, 2], 1), ([1, 2, 3], 1), ([1, 2, 3, 9], 1)]
    assert req.output_ids.tolist() == [1, 2, 3, 9, 5] and req.finished_len == 4


@pytest.mark.parametrize("new", [0, 1])
def test_a_single_token_is_left_to_sglang(new: int) -> None:
    req = Req([1, 2])
    finish(req, new)
    assert req.looks == [([1, 2], new)]


def test_a_grammar_ends_an_answer_one_token_after_it_was_completed() -> None:
    """As where SGLang decodes one token at a time: it reads a token after it looked at it."""
    grammar = Grammar(complete=True)
    req = Req([1, 2, 3], grammar)
    finish(req, 2)
    assert not req.finished() and req.grammar is grammar
    req.output_ids.append(4)
    finish(req, 1)
    assert req.finished_len == 4


def test_a_fault_leaves_the_request_whole() -> None:
    req = Req([1, 2, 3], grammar=Grammar(False))
    with pytest.raises(ZeroDivisionError):
        update_finish_state(lambda *_: 1 / 0, req, 2)  # type: ignore[arg-type, return-value]
    assert req.output_ids.tolist() == [1, 2, 3] and req.grammar is not None
