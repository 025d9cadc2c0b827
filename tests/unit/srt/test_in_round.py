"""Where rounds may change while they run, the sentence where they may not, and what is verified."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.in_round import LENGTHS, verify_by_width, why_not

HERE: dict[str, Any] = {"device": "cpu", "tp_size": 1, "overlap": False}
CUDA: dict[str, Any] = {"device": "cuda", "tp_size": 1, "overlap": True, "captured": True}


def test_on_a_cpu() -> None:
    assert why_not(SpecKVConfig(), **HERE) == (None, None)


@pytest.mark.parametrize(
    ("config", "there", "stops", "widths"),
    [
        (SpecKVConfig(stop="off"), {}, "--speckv-stop off", None),
        (SpecKVConfig(width="off"), {}, None, "--speckv-width off"),
        (SpecKVConfig(candidate_steps=(0, 1, 3)), {}, "no two depths above 1", None),
        (SpecKVConfig(candidate_steps=(0,)), {}, "no two depths above 1", "nothing is drafted"),
        (SpecKVConfig(), {"device": "cuda"}, "cuda", "cuda"),
        (SpecKVConfig(), {"tp_size": 2}, "ranks", "ranks"),
        (SpecKVConfig(), {"overlap": True}, "overlap", "overlap"),
        (SpecKVConfig(), CUDA, None, "cuda"),
        (SpecKVConfig(candidate_steps=(0, 1, 3)), CUDA, None, "cuda"),
        (SpecKVConfig(candidate_steps=(0, 1)), CUDA, "no depth above 1", "cuda"),
        (SpecKVConfig(stop="off"), CUDA, "--speckv-stop off", "cuda"),
        (SpecKVConfig(policy="ema"), CUDA, "--speckv-policy ema", "cuda"),
        (SpecKVConfig(policy="throughput_aware"), CUDA, "throughput_aware", "cuda"),
        (SpecKVConfig(), CUDA | {"captured": False}, "cuda", "cuda"),
        (SpecKVConfig(), CUDA | {"tp_size": 2}, "ranks", "cuda"),
        (SpecKVConfig(), CUDA | {"rejection_sampling": True}, "rejection sampling", "cuda"),
        (SpecKVConfig(), CUDA | {"no_nodes": "an old torch"}, "an old torch", "cuda"),
        (SpecKVConfig(), HERE | {"captured": True}, None, "whole depths"),
    ],
)
def test_a_reason_for_every_place_where_they_may_not(
    config: SpecKVConfig, there: dict[str, Any], stops: str | None, widths: str | None
) -> None:
    for reason, word in zip(why_not(config, **(HERE | there)), (stops, widths), strict=True):
        assert (reason is None) if word is None else (word in str(reason))


@pytest.mark.parametrize(
    ("variable", "value", "stops", "widths"),
    [
        ("SGLANG_SIMULATE_ACC_LEN", "2.5", "SIMULATE_ACC_LEN", "SIMULATE_ACC_LEN"),
        ("SGLANG_ENABLE_ASYNC_ASSERT", "1", "NaN", "cuda"),
        ("SGLANG_ENABLE_NAN_LOGITS_CHECK", "true", "NaN", "cuda"),
        ("SGLANG_ENABLE_NAN_LOGITS_CHECK", "0", None, "cuda"),
    ],
)
def test_what_looks_at_every_draft_goes_with_whole_rounds(
    variable: str,
    value: str,
    stops: str | None,
    widths: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    test_a_reason_for_every_place_where_they_may_not(SpecKVConfig(), CUDA, stops, widths)
    monkeypatch.delenv(variable)
    test_a_reason_for_every_place_where_they_may_not(SpecKVConfig(), CUDA, None, "cuda")


VOCAB, HIDDEN = 7, 4


def runner(seen: list[Any]) -> Any:
    """Its logits and states tell the token that each row was run with."""

    def forward(batch: Any) -> Any:
        seen.append(batch)
        ids = batch.input_ids.float()[:, None]
        output = SimpleNamespace(
            next_token_logits=ids.expand(-1, VOCAB), hidden_states=ids.expand(-1, HIDDEN)
        )
        return SimpleNamespace(logits_output=output)

    return SimpleNamespace(forward=forward)


@dataclass
class Verification:
    """What SGLang copies, field by field, before it runs."""

    batch_size: int
    forward_mode: Any
    input_ids: torch.Tensor
    positions: torch.Tensor
    mrope_positions: torch.Tensor
    out_cache_loc: torch.Tensor
    spec_info: Any


def batch(requests: int = 3, tokens: int = 4, verify: bool = True) -> Verification:
    ids = torch.arange(requests * tokens) + 100
    links = torch.tensor([[1, 2, 3, -1]]).expand(requests, -1)
    return Verification(
        batch_size=requests,
        forward_mode=SimpleNamespace(is_target_verify=lambda: verify),
        input_ids=ids,
        positions=ids + 1,
        mrope_positions=ids.expand(3, -1),
        out_cache_loc=ids + 2,
        spec_info=SimpleNamespace(draft_token_num=tokens, retrieve_next_token=links),
    )


def test_the_target_runs_over_the_drafts_that_are_kept() -> None:
    seen: list[Any] = []
    noted: list[np.ndarray] = []
    target, widths = runner(seen), np.array([3, 0, 2])
    verify_by_width(target, lambda size: widths, noted.append, nullcontext)
    whole = batch()
    links = whole.spec_info.retrieve_next_token.clone()
    output = target.forward(whole).logits_output
    (kept,) = seen
    assert kept.input_ids.tolist() == [100, 101, 102, 103, 104, 108, 109, 110]
    assert torch.equal(kept.positions, kept.input_ids + 1)
    assert torch.equal(kept.out_cache_loc, kept.input_ids + 2)
    assert getattr(replace(kept).spec_info, LENGTHS).tolist() == [4, 1, 3]
    assert kept.mrope_positions.tolist() == [kept.input_ids.tolist()] * 3
    rows = [100, 101, 102, 103, 104, 104, 104, 104, 108, 109, 110, 108]
    assert output.next_token_logits[:, 0].tolist() == rows
    assert output.hidden_states[:, 0].tolist() == rows
    assert whole.spec_info.retrieve_next_token.tolist() == [
        [1, 2, 3, -1],
        [-1, 2, 3, -1],
        [1, 2, -1, -1],
    ]
    assert torch.equal(links, batch().spec_info.retrieve_next_token), "others may share them"
    assert noted == [widths]


@pytest.mark.parametrize("verify", [True, False])
def test_nothing_else_is_touched(verify: bool) -> None:
    seen: list[Any] = []
    target, noted = runner(seen), list[np.ndarray]()
    widths = None if verify else np.array([0, 0, 0])
    verify_by_width(target, lambda size: widths, noted.append, nullcontext)
    whole = batch(verify=verify)
    target.forward(whole)
    assert seen == [whole] and not noted


def test_a_choice_that_fails_costs_the_cut_and_not_the_round() -> None:
    fuse = Fuse(lambda: None)
    fuse.armed = True
    seen: list[Any] = []
    target, noted = runner(seen), list[np.ndarray]()
    verify_by_width(target, lambda size: 1 / 0, noted.append, lambda: fuse.guard("widths"))  # type: ignore[arg-type, return-value]
    whole = batch()
    target.forward(whole)
    assert seen == [whole] and not noted and fuse.failures == {"widths": 1}
