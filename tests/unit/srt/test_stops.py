"""Where rounds may stop by what their drafts say, and the sentence where they may not."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt.stops import why_not

HERE: dict[str, Any] = {"device": "cpu", "tp_size": 1, "overlap": False}


def test_on_a_cpu() -> None:
    assert why_not(SpecKVConfig(), **HERE) is None


@pytest.mark.parametrize(
    ("config", "there", "word"),
    [
        (SpecKVConfig(stop="off"), {}, "--speckv-stop off"),
        (SpecKVConfig(candidate_steps=(0, 3)), {}, "only one depth"),
        (SpecKVConfig(), {"device": "cuda"}, "cuda"),
        (SpecKVConfig(), {"tp_size": 2}, "ranks"),
        (SpecKVConfig(), {"overlap": True}, "overlap"),
    ],
)
def test_a_reason_for_every_place_where_they_may_not(
    config: SpecKVConfig, there: dict[str, Any], word: str
) -> None:
    assert word in str(why_not(config, **(HERE | there)))
