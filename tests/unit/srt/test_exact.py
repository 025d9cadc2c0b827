"""Which requests take no drafts, and what a round does with their rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang_speckv.srt import exact
from sglang_speckv.srt.bounds import Bounds
from sglang_speckv.srt.exact import NOBODY, TABLE, ExactLane, ExactRows, parameter_of
from sglang_speckv.srt.fuse import Fuse

PLAIN: dict[str, Any] = {
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "min_p": 0.0,
    "top_k": 1 << 30,
    "sampling_seed": None,
}


def request(said: int = 0, processor: str | None = None, **params: Any) -> Any:
    return SimpleNamespace(
        sampling_params=SimpleNamespace(**PLAIN | params),
        custom_logit_processor=processor,
        output_ids=[0] * said,
    )


ASKS = {
    "frequency_penalty": request(frequency_penalty=-0.5),
    "presence_penalty": request(presence_penalty=1.5),
    "repetition_penalty": request(repetition_penalty=0.9),
    "min_new_tokens": request(min_new_tokens=3, said=2),
    "min_p": request(min_p=0.1),
    "custom_logit_processor": request(processor="{}"),
    "sampling_seed": request(sampling_seed=7),
}
DOES_NOT = {
    "nothing": request(),
    "min_new_tokens that are reached": request(min_new_tokens=3, said=3),
    "min_p of the likeliest token": request(min_p=0.1, top_k=1),
    "a seed of the likeliest token": request(sampling_seed=7, top_k=1),
}


@pytest.fixture(autouse=True)
def seeds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws_by_seed(req: Any) -> bool:
        return req.sampling_params.sampling_seed is not None and exact._samples(req)

    table = [
        p if p.name != "sampling_seed" else exact.Parameter(p.name, p.why, draws_by_seed)
        for p in TABLE
    ]
    monkeypatch.setattr(exact, "TABLE", tuple(table))


def test_every_parameter_of_the_table_is_tried() -> None:
    assert [parameter.name for parameter in TABLE] == list(ASKS)


@pytest.mark.parametrize("name", ASKS)
def test_a_request_that_takes_no_drafts(name: str) -> None:
    found = parameter_of(ASKS[name])
    assert found is not None and found.name == name


@pytest.mark.parametrize("name", DOES_NOT)
def test_a_request_that_does(name: str) -> None:
    assert parameter_of(DOES_NOT[name]) is None


def test_a_minimum_is_asked_about_before_every_round() -> None:
    req, named = request(min_new_tokens=2), []
    for _ in range(4):
        named.append(parameter_of(req) is not None)
        req.output_ids.append(0)
    assert named == [True, True, False, False]


VOCAB, WIDTH = 6, 3


class Sampler:
    """SGLang's, as far as the lane calls it: the likeliest token."""

    def __init__(self) -> None:
        self.positions: list[int] = []

    def _preprocess_logits(self, logits: Tensor, info: Any) -> Tensor:
        if info.has_custom_logit_processor:
            logits[:, 0] = 100.0
        return logits

    def __call__(self, output: Any, info: Any, *args: Any) -> Tensor:
        assert not info.has_custom_logit_processor
        self.positions = args[-1].tolist()
        return output.next_token_logits.argmax(-1)


class Info:
    """SGLang's sampling parameters of a batch."""

    def __init__(self, penalties: Tensor | None, custom: bool = False) -> None:
        self.penalizer_orchestrator: Any = None
        self.acc_additive_penalties, self.acc_scaling_penalties = penalties, None
        self.has_custom_logit_processor = custom
        self.kept: list[int] = []

    def filter_batch(self, rows: list[int], at: Tensor) -> None:
        self.penalizer_orchestrator.filter(at)
        self.kept = rows

    def apply_logits_bias(self, logits: Tensor) -> None:
        assert self.penalizer_orchestrator is None and len(logits) == len(self.kept)
        if self.acc_additive_penalties is not None:
            logits += self.acc_additive_penalties


def rows_of(names: tuple[str | None, ...], group: Any = None) -> tuple[ExactRows, Sampler]:
    sampler, fuse = Sampler(), Fuse(lambda: None)
    fuse.armed = True
    rows = ExactRows(names, ExactLane(sampler, fuse, group))
    rows._on = lambda device: torch.tensor(rows.rows)  # type: ignore[method-assign]
    return rows, sampler


def verified(names: tuple[str | None, ...], info: Any, logprobs: bool = False) -> Any:
    """A round that accepts everything, with rows that take no drafts: predictions, accept lengths,
    accepted rows, logits, and the sampler."""
    size = len(names)
    logits = torch.zeros(size * WIDTH, VOCAB)
    logits[:, 4] = 1.0  # the likeliest everywhere
    predict = torch.full((size * WIDTH,), 9, dtype=torch.int32)
    accept = torch.arange(size * WIDTH, dtype=torch.int32).reshape(size, WIDTH)
    lens = torch.full((size,), WIDTH, dtype=torch.int32)
    rows, sampler = rows_of(names)
    output = SimpleNamespace(next_token_logits=logits)
    positions = torch.arange(size * WIDTH) + 100
    tree = SimpleNamespace(draft_token_num=WIDTH, positions=positions)
    batch = SimpleNamespace(device="cpu", sampling_info=info, return_logprob=logprobs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_draw", without_sglang(exact._draw))
        done = rows.sample(lambda: (predict, lens, accept), tree, batch, output, None)
    return (*(tensor.tolist() for tensor in done), logits, rows, sampler)


def without_sglang(draw: Callable[..., Any]) -> Callable[..., Any]:
    """``_draw`` with another class for the logits, whose import takes seconds."""

    def drawn(sampler: Any, logits: Tensor, info: Any, positions: Tensor, keeps: bool) -> Any:
        import sys

        fake = SimpleNamespace(LogitsProcessorOutput=SimpleNamespace)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "sglang.srt.layers.logits_processor", fake)
            return draw(sampler, logits, info, positions, keeps)

    return drawn


def test_its_row_takes_one_token_and_the_others_take_theirs() -> None:
    penalties = torch.zeros(3, VOCAB)
    penalties[1, 4] = -5.0  # of the second request: now all others are equally likely
    penalties[1, 2] = 1.0
    predict, lens, accepted, *_, sampler = verified((None, "min_p", None), Info(penalties))
    assert predict == [9, 9, 9, 2, 9, 9, 9, 9, 9]
    assert lens == [3, 1, 3]
    assert accepted == [[0, 1, 2], [3, -1, -1], [6, 7, 8]]
    assert sampler.positions == [103]


def test_a_processor_is_called_once() -> None:
    predict, *_ = verified(("custom_logit_processor",), Info(None, custom=True))
    assert predict[0] == 0


@pytest.mark.parametrize("logprobs", [False, True])
def test_log_probabilities_are_of_the_logits_that_were_drawn_from(logprobs: bool) -> None:
    penalties = torch.full((2, VOCAB), 0.5)
    *_, logits, _, _ = verified((None, "min_p"), Info(penalties), logprobs)
    assert logits[0, 4] == 1.0 and logits[3, 4] == (1.5 if logprobs else 1.0)


def test_a_draw_that_fails_leaves_sglangs_first_token() -> None:
    predict, lens, accepted, _, rows, _ = verified((None, "min_p"), None)
    assert (predict[3], lens, accepted[1]) == (9, [3, 1], [3, -1, -1])
    assert rows._lane.fuse.failures == {"drawing without speculation": 1}


def test_every_rank_takes_what_rank_0_drew() -> None:
    rows, _ = rows_of(("min_p",), SimpleNamespace(broadcast=lambda tokens, src: tokens * 0 + 5))
    done = rows.sample(
        lambda: (torch.zeros(1), torch.ones(1), torch.zeros(1, 1)),
        SimpleNamespace(draft_token_num=1),
        SimpleNamespace(device="cpu"),
        None,
        None,
    )
    assert done[0].tolist() == [5]


def test_what_a_round_sees_of_its_rows() -> None:
    rows, _ = rows_of((None, "min_p", None))
    assert not rows.alone and rows_of(("min_p",))[0].alone
    probs = np.full((3, 2), 0.5)
    bounds = Bounds.of([request(), request(min_p=0.5), request()], rows.rows)
    assert bounds.blanked(probs).tolist() == [[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]
    assert probs.min() == 0.5, "the tap's own"
    widths = bounds.narrowed(None, 2)
    assert widths is not None and widths.tolist() == [2, 0, 2]
    widths = bounds.narrowed(np.array([1, 1, 0]), 2)
    assert widths is not None and widths.tolist() == [1, 0, 0]


def test_nobody_changes_nothing() -> None:
    probs, tree = np.ones((2, 2)), SimpleNamespace()
    bounds = Bounds.of([request(), request()], NOBODY.rows)
    assert bounds.blanked(probs) is probs and bounds.narrowed(None, 2) is None
    NOBODY.mark(tree)
    assert not NOBODY.alone and vars(tree) == {}


def test_the_log_tells_of_every_parameter_once(caplog: pytest.LogCaptureFixture) -> None:
    lane = ExactLane(None, Fuse(lambda: None))
    with caplog.at_level(logging.INFO, exact.__name__):
        assert lane.rows([request(), request()]) is NOBODY
        found = lane.rows([request(), request(min_p=0.5), request(presence_penalty=1.0)])
        lane.rows([request(min_p=0.5)])
    assert found.names == (None, "min_p", "presence_penalty") and found.rows == [1, 2]
    assert len(caplog.records) == 2 and "min_p" in caplog.text
