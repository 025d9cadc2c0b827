"""What further depths take, counted as SGLang allocates it."""

import ast

import pytest

from sglang_speckv.config import Shape
from sglang_speckv.srt import memory
from sglang_speckv.srt.memory import tier_mib, workspace_mib, wrappers
from sglang_speckv.srt.patches_present import installed_package

DEFAULT_STEPS = (0, 1, 2, 3, 5, 7)
SGLANG_SIZES = [*range(1, 9), *range(10, 33, 2), 40, 44, 48]
"""What SGLang captures for up to 48 requests."""


def gib(backend: str, sizes: list[int], context_len: int, steps: tuple[int, ...]) -> float:
    return sum(tier_mib(backend, Shape(k, k + 1), 1, sizes, context_len, 384) for k in steps) / 1024


def test_flashinfer() -> None:
    assert gib("flashinfer", SGLANG_SIZES, 8192, DEFAULT_STEPS) == pytest.approx(8.7, abs=0.1)
    assert gib("flashinfer", SGLANG_SIZES, 131072, DEFAULT_STEPS) == pytest.approx(10.4, abs=0.1)
    assert gib("flashinfer", SGLANG_SIZES, 131072, (3,)) == pytest.approx(1.7, abs=0.1)


def test_fewer_sizes_take_less() -> None:
    sparse = [1, 2, 4, 8, 16, 24, 32, 48]
    assert gib("flashinfer", sparse, 8192, DEFAULT_STEPS) < 5.1
    assert gib("flashinfer", [], 8192, (3,)) * 1024 == 384 + 10 * (2 * 4 + 2 * 2)


def test_other_backends() -> None:
    """Triton has no wrappers; FA3 keeps page tables; TRT-LLM's wrappers are never captured."""
    assert 0 < gib("triton", SGLANG_SIZES, 8192, DEFAULT_STEPS) < 0.5
    assert gib("triton", [], 8192, (3,)) == gib("fa3", SGLANG_SIZES, 8192, (3,)) == 0
    assert gib("trtllm_mha", SGLANG_SIZES, 8192, (3,)) * 1024 == 10 * (2 * 4 + 2 * 2)


def test_a_tree_takes_room_for_its_tokens_and_branches() -> None:
    def mib(backend: str, shape: Shape, topk: int) -> float:
        return tier_mib(backend, shape, topk, SGLANG_SIZES, 8192, 384)

    for backend in ("flashinfer", "triton"):
        chain = mib(backend, Shape(3, 4), 1)
        assert chain < mib(backend, Shape(3, 4), 4) < mib(backend, Shape(3, 16), 4)


def test_every_wrapper_pins_memory_of_the_host() -> None:
    """Two wrappers per graph size at depth 0, one more for every further draft step."""
    counts = [wrappers("flashinfer", k, SGLANG_SIZES) for k in DEFAULT_STEPS]
    assert counts == [54, 54, 79, 104, 154, 204]
    assert wrappers("fa3", 3, SGLANG_SIZES) == wrappers("triton", 3, SGLANG_SIZES) == 0


@pytest.mark.parametrize(
    ("architectures", "deterministic", "mib"),
    [
        (["LlamaForCausalLM", "LlamaForCausalLMEagle3"], False, 384),
        (["Qwen3ForCausalLM", "LlamaForCausalLMEagle3"], False, 512),
        (["LlamaForCausalLM", "Qwen2ForCausalLM"], False, 512),
        (["Qwen3ForCausalLM"], True, 2048),
        (["LlamaForCausalLM"], True, 2048),
    ],
)
def test_workspaces(architectures: list[str], deterministic: bool, mib: float) -> None:
    assert workspace_mib(architectures, deterministic, asked_mib=384) == mib


def test_sglang_sets_the_workspaces_that_we_count() -> None:
    """Read in its source: importing the backend takes FlashInfer, which takes CUDA."""
    source = (installed_package() / "srt/layers/attention/flashinfer_backend.py").read_text()
    set_by: dict[int, set[str]] = {}
    for branch in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]:
        for statement in branch.body:
            text = ast.unparse(statement)
            if text.startswith("envs.SGLANG_FLASHINFER_WORKSPACE_SIZE.set("):
                size = eval(text.split("(", 1)[1].removesuffix(")"))
                names = [n.value for n in ast.walk(branch.test) if isinstance(n, ast.Constant)]
                set_by[size >> 20] = set(names) or {ast.unparse(branch.test)}
    assert set_by == {
        memory.LARGE_WORKSPACE_MIB: set(memory.LARGE_WORKSPACE_FOR),
        memory.DETERMINISTIC_WORKSPACE_MIB: {"self.enable_deterministic"},
    }
    assert source.count("envs.SGLANG_FLASHINFER_WORKSPACE_SIZE.set(") == len(set_by)
