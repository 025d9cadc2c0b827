"""On CUDA FlashInfer is the default where user and model leave it open and the model fits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt import carrier
from sglang_speckv.srt.arguments import default_attention
from sglang_speckv.srt.engine import prepare

pytestmark = pytest.mark.engine


def chosen(config_path: str | None, device: str = "cuda", mla: bool = False, **model: Any) -> str:
    prepare()
    from sglang.srt.runtime_context import override_platform
    from sglang.srt.server_args import ServerArgs

    record = ServerArgs(model_path="dummy", device=device, speculative_adaptive_config=config_path)
    facts = SimpleNamespace(**{"has_attention_sinks": False, "head_dim": 128, **model})
    with override_platform(has_flashinfer=True):
        return default_attention(lambda *_: "fa3", record, mla, facts)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    return carrier.write(SpecKVConfig())


def test_flashinfer_where_it_fits(asked: str) -> None:
    assert chosen(asked) == "flashinfer"


@pytest.mark.parametrize(
    "facts",
    [{"has_attention_sinks": True}, {"head_dim": 96}, {"mla": True}, {"device": "cpu"}],
    ids=str,
)
def test_sglangs_choice_where_it_does_not(asked: str, facts: dict[str, Any]) -> None:
    assert chosen(asked, **facts) == "fa3"


def test_sglangs_choice_where_speckv_was_not_asked_for() -> None:
    assert chosen(None) == "fa3"
