"""SGLang's own plan of GPU memory, with the depths in it; no GPU is asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt import carrier
from sglang_speckv.srt.engine import prepare

pytestmark = pytest.mark.engine
H100_MIB = 80 * 1024


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    return carrier.write(SpecKVConfig())


def mem_fraction(config_path: str | None, **named: Any) -> float:
    """What SGLang plans for these arguments on an H100."""
    prepare()
    from sglang.srt.arg_groups import memory_hook, overrides
    from sglang.srt.arg_groups.cuda_graph_hook import parse_cuda_graph_config
    from sglang.srt.server_args import ServerArgs

    record = ServerArgs(
        model_path="dummy",
        device="cuda",
        speculative_algorithm="EAGLE3",
        speculative_adaptive_config=config_path,
        **{"attention_backend": "flashinfer", **named},
    )
    parse_cuda_graph_config(record)
    model = SimpleNamespace(context_len=8192, is_multimodal=False, hf_config=SimpleNamespace())
    with (
        mock.patch.object(memory_hook, "get_device_memory_capacity", return_value=H100_MIB),
        mock.patch.object(memory_hook, "model_config_of", return_value=model),
        mock.patch.object(overrides, "model_config_of", return_value=model),
        mock.patch.object(memory_hook, "use_mla_backend", return_value=False),
        mock.patch.object(overrides, "use_mla_backend", return_value=False),
    ):
        memory_hook.handle_gpu_memory_settings(record)
    return float(overrides.resolving_view(record).mem_fraction_static)


def test_further_depths_are_reserved(asked: str) -> None:
    """About 7.3 GiB with the default candidates, 48 requests and FlashInfer."""
    less = mem_fraction(None) - mem_fraction(asked)
    assert less * H100_MIB / 1024 == pytest.approx(7.3, abs=0.2)


def test_fewer_graphs_reserve_less(asked: str) -> None:
    sizes = [1, 2, 4, 8, 16, 24, 32, 48]
    assert mem_fraction(asked, cuda_graph_bs_decode=sizes) > mem_fraction(asked) + 0.02


@pytest.mark.parametrize("named", [{"mem_fraction_static": 0.8}, {"attention_backend": "fa3"}])
def test_what_the_user_names_stays(asked: str, named: dict[str, Any]) -> None:
    assert mem_fraction(asked, **named) == mem_fraction(None, **named)
