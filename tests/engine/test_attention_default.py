"""On CUDA FlashInfer is the default where user and model leave it open and the model fits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt import arguments, carrier
from sglang_speckv.srt.engine import prepare
from sglang_speckv.srt.serve import parse
from tests.engine.conftest import PAIRS, flags

pytestmark = pytest.mark.engine


def chosen(
    config_path: str | None,
    device: str = "cuda",
    mla: bool = False,
    draft: dict[str, Any] | None = None,
    **model: Any,
) -> str:
    prepare()
    from sglang.srt.runtime_context import override_platform
    from sglang.srt.server_args import ServerArgs

    record = ServerArgs(
        model_path="dummy",
        device=device,
        speculative_adaptive_config=config_path,
    )
    drafts = None if draft is None else facts(**draft)
    with (
        override_platform(has_flashinfer=True),
        mock.patch.object(arguments, "draft_model_config", return_value=drafts),
    ):
        return arguments.default_attention(lambda *_: "fa3", record, mla, facts(**model))


def facts(**model: Any) -> Any:
    """Of a model config, what the choice reads."""
    text = {
        key: model.pop(key) for key in ("sliding_window", "attention_chunk_size") & model.keys()
    }
    known = {
        "has_attention_sinks": False,
        "head_dim": 128,
        "hf_text_config": SimpleNamespace(**text),
    }
    return SimpleNamespace(**{**known, **model})


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    return carrier.write(SpecKVConfig())


@pytest.mark.parametrize(
    "model", [{}, {"sliding_window": None}, {"draft": {"head_dim": 64}}], ids=str
)
def test_flashinfer_where_it_fits(asked: str, model: dict[str, Any]) -> None:
    assert chosen(asked, **model) == "flashinfer"


@pytest.mark.parametrize(
    "model",
    [
        {"has_attention_sinks": True},
        {"head_dim": 96},
        {"sliding_window": 4096},
        {"attention_chunk_size": 8192},
        {"draft": {"head_dim": 80}},
        {"draft": {"sliding_window": 512}},
        {"mla": True},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_sglangs_choice_where_it_does_not(asked: str, model: dict[str, Any]) -> None:
    assert chosen(asked, **model) == "fa3"


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_the_drafts_own_config_is_read(models: dict[str, str], pair: tuple[str, str]) -> None:
    """As early as SGLang asks: before anything of the arguments is resolved."""
    record = parse(flags(models, *pair))
    config = arguments.following_draft(record)
    assert config.head_dim == 64 and not config.has_attention_sinks
    record = parse([*flags(models, *pair), "--speculative-draft-attention-backend", "triton"])
    assert arguments.following_draft(record) is None


def test_sglangs_choice_where_speckv_was_not_asked_for() -> None:
    assert chosen(None) == "fa3"
