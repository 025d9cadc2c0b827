"""The launcher's part on a GPU: SGLang's whole resolution of arguments on a pretended H100, of what
a user writes and of every server that ``examples/gpu``, its YAML files and ``tests/gpu`` start."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.gpu import attention, cost_curves, smoke
from sglang_speckv.ab.arms import Draft
from sglang_speckv.ab.comparison import server_flags
from sglang_speckv.ab.options import options_from, read_options
from tests.engine.conftest import PAIRS, flags
from tests.engine.pretend_h100 import H100_MIB
from tests.gpu import conftest as gpu

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
SPARSE = ["1", "2", "4", "8", "16", "24", "32", "48"]


@pytest.fixture(scope="module")
def facts(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every server, by name."""
    folder = tmp_path_factory.mktemp("h100")
    lines = {**user_lines(models, folder), **script_lines(models, folder)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.pretend_h100"],
        input=json.dumps(list(lines.values())),
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(lines, json.loads(done.stdout), strict=True))


def another_target(target: str, folder: Path, kind: str, **more: Any) -> str:
    """``target`` with the config of another ``kind`` of model."""
    shutil.copytree(target, folder / kind)
    config = json.loads((folder / kind / "config.json").read_text())
    config |= {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(), **more}
    (folder / kind / "config.json").write_text(json.dumps(config))
    return str(folder / kind)


def user_lines(models: dict[str, str], folder: Path) -> dict[str, list[str]]:
    """``folder``: where other targets can be put."""
    head = ["--model-path", models["target"], "--speculative-algorithm", "EAGLE3"]
    head += ["--speculative-draft-model-path", models["eagle3"]]
    window = another_target(models["target"], folder, "Mistral", sliding_window=512)
    qwen = another_target(models["target"], folder, "Qwen3")
    exact = [*head, "--speckv", "--enable-deterministic-inference"]
    return {
        "window": ["--model-path", window, *head[2:], "--speckv"],
        "qwen": ["--model-path", qwen, *head[2:], "--speckv"],
        "exact": exact,
        "exact-flashinfer": [*exact, "--attention-backend", "flashinfer"],
        "alone": head,
        "speckv": [*head, "--speckv"],
        "sparse": [*head, "--speckv", "--cuda-graph-bs-decode", *SPARSE],
        "fewer": [*head, "--speckv-candidate-steps", "1,3"],
        "fa3": [*head, "--speckv", "--attention-backend", "fa3"],
        "eager": [*head, "--speckv", "--cuda-graph-backend-decode", "disabled"],
        "fraction": [*head, "--speckv", "--mem-fraction-static", "0.8"],
        "full": [*head, "--speckv", "--cuda-graph-backend-prefill", "full"],
    }


def script_lines(models: dict[str, str], folder: Path) -> dict[str, list[str]]:
    plan = cost_curves.scaled(
        cost_curves.Plan(attention_backend="flashinfer"), layers=2, hidden=512, vocab=1024
    )
    shapes = cost_curves.write_models(plan, folder)
    lines = {
        f"cost.{draft}.{compression}": cost_curves.server_flags(plan, shapes, draft, compression)
        for draft in (cost_curves.OFF, *cost_curves.DRAFTS)
        for compression in cost_curves.COMPRESSIONS
    }
    pair = Draft("d", models["eagle3"], "EAGLE3")
    lines["smoke"] = smoke.flags_for(models["target"], pair, folder / "trace", [])
    lines |= {
        f"attention.{name}": [*flags(models, *PAIRS["eagle3"]), *more]
        for name, more in attention.arms(attention.BACKENDS, 3).items()
    }
    for config in sorted((ROOT / "examples" / "ab").glob("gpu-demo*.yaml")):
        options = options_from(read_options(config), config.name)
        more = [*server_flags(64, "bfloat16"), *options.server_flags]
        lines[config.name] = [*flags(models, *PAIRS["eagle3"]), "--speckv", *more]
    lines |= {
        str(kind): gpu.server_flags(models, kind, folder / "t", rehearsal=False)
        for kind in gpu.DEVICE_KINDS
    }
    return lines


def test_every_server_resolves(facts: dict[str, Any]) -> None:
    problems = {name: fact["problem"] for name, fact in facts.items() if "problem" in fact}
    assert list(problems) == ["full"]
    assert "full CUDA graphs for prefill" in problems["full"]
    drafting = {name for name, fact in facts.items() if fact.get("adaptive")}
    stock = {"alone", *(f"attention.{backend}" for backend in attention.BACKENDS)}
    assert {name for name in facts if ".off." not in name} - drafting == {*stock, "full"}


def test_flashinfer_unless_another_is_named(facts: dict[str, Any]) -> None:
    expected = {"alone": "fa3", "speckv": "flashinfer", "fa3": "fa3", "window": "fa3"}
    expected |= {f"attention.{backend}": backend for backend in attention.BACKENDS}
    expected |= {"qwen": "flashinfer", "exact": "fa3", "exact-flashinfer": "flashinfer"}
    assert {name: facts[name]["attention_backend"] for name in expected} == expected


def test_it_is_said_what_rounds_may_change(facts: dict[str, Any]) -> None:
    """Whatever the attention backend is, rounds stop in the draft graphs and widths are off."""
    for name in ("speckv", "fa3", "exact", "window", "smoke", "gpu-demo.yaml"):
        assert facts[name]["stops"] == "on"
        assert facts[name]["widths"].startswith("off: the host would wait for the cuda device")
    assert facts["eager"]["stops"].startswith("off: the host would wait for the cuda device")
    assert "--speckv-policy static:3" in facts["attention.fa3 with SpecKV"]["stops"]
    assert facts["alone"]["stops"] is None


def test_further_depths_are_reserved(facts: dict[str, Any]) -> None:
    told = "memory_of_further_depths_gib"
    gib = {name: fact[told] or 0 for name, fact in facts.items() if name != "full"}
    assert gib["speckv"] == pytest.approx(7.2, abs=0.2)
    assert gib["fewer"] < 1.1 and gib["sparse"] < 4.5
    assert gib["fa3"] == gib["alone"] == 0
    assert gib["exact"] == 0
    further = 5  # of the six default candidates
    assert gib["qwen"] - gib["speckv"] == pytest.approx(further * (512 - 384) / 1024, abs=0.02)
    assert gib["exact-flashinfer"] - gib["speckv"] == pytest.approx(
        further * (2048 - 384) / 1024, abs=0.02
    )
    pinned = {
        name: fact["pinned_host_memory_gib_per_rank"]
        for name, fact in facts.items()
        if name != "full"
    }
    assert pinned["speckv"] == pytest.approx(649 * 8 / 1024, abs=0.01)
    assert pinned["sparse"] < 2.5 and pinned["fa3"] is pinned["alone"] is None
    assert facts["fraction"]["mem_fraction_static"] == 0.8
    less = facts["alone"]["mem_fraction_static"] - facts["speckv"]["mem_fraction_static"]
    assert less * H100_MIB / 1024 == pytest.approx(gib["speckv"], abs=0.1)


def test_cost_curves_capture_what_they_measure(facts: dict[str, Any]) -> None:
    sizes = list(cost_curves.Plan().batch_sizes)
    assert facts["cost.eagle3.plain"]["graph_sizes"] == sizes
    assert facts["cost.off.fp8"]["graph_sizes"] == sizes
