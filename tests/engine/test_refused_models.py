"""Models that SpecKV does not serve, and heads under the wrong algorithm: one sentence from the
launcher and from doctor. Only configs are read, so the weights need not fit them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sglang_speckv.srt.serve import diagnose

pytestmark = pytest.mark.engine

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 16}
GRANITE = ("GraniteMoeHybridForCausalLM", "granitemoehybrid", MAMBA | {"mamba_expand": 2})
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gated delta net": (
        "Qwen3NextForCausalLM",
        "qwen3_next",
        {"num_experts": 4, "num_experts_per_tok": 2, "full_attention_interval": 2},
    ),
    "mamba": (
        "Mamba2ForCausalLM",
        "mamba2",
        {"num_heads": 4, "head_dim": 64, "expand": 2, "n_groups": 1, "state_size": 16},
    ),
    "mamba and attention": (
        *GRANITE[:2],
        GRANITE[2] | {"layer_types": ["mamba", "attention"]},
    ),
    "mamba beside attention": ("FalconH1ForCausalLM", "falcon_h1", MAMBA | {"mamba_d_ssm": 256}),
    "convolution": ("Lfm2ForCausalLM", "lfm2", {"layer_types": ["conv", "full_attention"]}),
}
ATTENTION_ONLY = (*GRANITE[:2], GRANITE[2] | {"layer_types": ["attention"] * 2})


def of_kind(model: str, folder: Path, kind: tuple[str, str, dict[str, Any]]) -> str:
    """``model`` with another config."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    architecture, model_type, more = kind
    config |= {"architectures": [architecture], "model_type": model_type, **more}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def problem(target: str, algorithm: str, draft: str) -> str | None:
    asked = ["--model-path", target, "--speculative-algorithm", algorithm]
    report = diagnose([*asked, "--speculative-draft-model-path", draft, "--speckv"])
    assert report["adaptive"] is (report["problem"] is None)
    return report["problem"]


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_state(kind: str, models: dict[str, str], tmp_path: Path) -> None:
    folder = of_kind(models["alike"], tmp_path / "recurrent", KINDS[kind])
    for target, draft, role in (
        (folder, models["alike"], "target"),
        (models["target"], folder, "draft"),
    ):
        found = problem(target, "STANDALONE", draft)
        assert found is not None
        assert found.startswith(f"SpecKV cannot serve {role} '{folder}': {KINDS[kind][0][:7]}")
        assert "recurrent state" in found and "\n" not in found


def test_a_hybrid_family_without_recurrent_layers_is_served(
    models: dict[str, str], tmp_path: Path
) -> None:
    folder = of_kind(models["alike"], tmp_path / "attention", ATTENTION_ONLY)
    assert problem(models["target"], "STANDALONE", folder) is None
    assert problem(folder, "STANDALONE", models["alike"]) is None


@pytest.mark.parametrize(
    ("algorithm", "draft", "instead"),
    [
        ("EAGLE", "eagle3", "EAGLE3"),
        ("NEXTN", "eagle3", "EAGLE3"),
        ("STANDALONE", "eagle3", "EAGLE3"),
        ("EAGLE3", "eagle2", "EAGLE"),
        ("STANDALONE", "eagle2", "EAGLE"),
        ("EAGLE3", "alike", "STANDALONE"),
    ],
)
def test_a_draft_under_the_wrong_algorithm(
    algorithm: str, draft: str, instead: str, models: dict[str, str]
) -> None:
    found = problem(models["target"], algorithm, models[draft])
    assert found is not None
    assert models[draft] in found and f"which {algorithm} cannot use" in found
    assert f"set --speculative-algorithm {instead} or" in found


@pytest.mark.parametrize("algorithm", ["EAGLE3", "STANDALONE"])
def test_a_head_whose_config_names_a_whole_model(
    algorithm: str, models: dict[str, str], tmp_path: Path
) -> None:
    """SGLang's scheduler would stop while loading it."""
    folder = of_kind(models["eagle3"], tmp_path / "head", ("LlamaForCausalLM", "llama", {}))
    found = problem(models["target"], algorithm, folder)
    assert found is not None and "write LlamaForCausalLMEagle3 there" in found


@pytest.mark.parametrize(
    ("algorithm", "draft"), [("EAGLE3", "eagle3"), ("EAGLE", "eagle2"), ("NEXTN", "eagle2")]
)
def test_a_head_under_its_algorithm(algorithm: str, draft: str, models: dict[str, str]) -> None:
    assert problem(models["target"], algorithm, models[draft]) is None
