"""``speckv`` with SGLang's own CUDA backends on a CPU: ``python -m tests.rehearsal.serve``.

SGLang's backends, FlashInfer's wrappers and plans, and the Triton kernels that lay out their
indices (interpreted) are those of a GPU. FlashInfer's compiled kernels are
:mod:`tests.rehearsal.kernels`, FlashAttention 3 is :mod:`tests.rehearsal.fa3`.
Decoding is captured and replayed (:mod:`tests.rehearsal.graphs`); prefill runs eagerly. The overlap
scheduler stays on (:mod:`tests.rehearsal.overlap`), and what it copies to the host is poison until
its event (:mod:`tests.rehearsal.poison`).
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from importlib import reload
from typing import Any
from unittest.mock import patch

from tests.rehearsal.tree import with_prefix

_AS_LONG_AS_IT_RUNS = ExitStack()
COMMAND = (sys.executable, "-m", "tests.rehearsal.serve", "serve")
GRAPH_SIZES = (1, 2, 4, 8) if os.environ.get("SPECKV_REHEARSE") == "all" else (1, 4)
"""What is between two of them is padded; what is beyond is decoded eagerly."""
EAGER = ("--cuda-graph-backend-decode", "disabled")
"""After :data:`FLAGS`: no graphs."""
FLAGS = (
    *("--cuda-graph-backend-prefill", "disabled", "--cuda-graph-backend-decode", "full"),
    *("--cuda-graph-bs-decode", *map(str, GRAPH_SIZES)),
)
WORKSPACE_MIB = 1


def rehearse() -> None:
    """Once in every process, before SGLang imports a backend."""
    from tests import operators
    from tests.rehearsal import fa3, graphs, inventory, kernels, poison, triton_attention
    from tests.rehearsal.device import CpuForCuda, interpret_triton
    from tests.rehearsal.overlap import keep_overlap

    keep_overlap()
    poison.install()
    _AS_LONG_AS_IT_RUNS.enter_context(kernels.installed())
    _AS_LONG_AS_IT_RUNS.enter_context(CpuForCuda())
    _offer_flashinfer()
    fa3.install()
    triton_attention.install()
    _mask_the_prefix_too()
    graphs.capture_on_cpu()
    inventory.take_stock()
    operators.count_rounds()
    operators.count_graphs()
    interpret_triton()


def _offer_flashinfer() -> None:
    """To the attention backend alone: nothing else of SGLang's has CPU code that asks for it."""
    from sglang.srt import utils
    from sglang.srt.layers.attention import attention_registry, flashinfer_backend

    with patch.object(utils, "is_flashinfer_available", lambda: True):
        reload(flashinfer_backend)

    def create(runner: Any) -> Any:
        return flashinfer_backend.FlashInferAttnBackend(
            runner, init_new_workspace=runner.init_new_workspace
        )

    attention_registry.ATTENTION_BACKENDS["flashinfer"] = create


def _mask_the_prefix_too() -> None:
    """SGLang's CPU backend wants a mask of the drafted tokens alone."""
    from sglang.kernels.ops.speculative.spec_tree import TreeMaskMode
    from sglang.srt.layers.attention import verify_mask
    from sglang.srt.speculative import eagle_utils, eagle_worker_v2, standalone_worker_v2

    eagle_utils.build_tree_kernel_efficient_func = partial(
        with_prefix, eagle_utils.build_tree_kernel_efficient_func, TreeMaskMode.QLEN_ONLY
    )
    for module in (eagle_utils, eagle_worker_v2, standalone_worker_v2, verify_mask):
        module.default_tree_mask_mode = lambda: TreeMaskMode.FULL_MASK


if __name__ in ("__main__", "__mp_main__"):
    os.environ["SGLANG_FLASHINFER_WORKSPACE_SIZE"] = str(WORKSPACE_MIB << 20)
    from sglang_speckv.cli import main
    from sglang_speckv.srt.engine import prepare

    prepare()
    rehearse()
    if __name__ == "__main__":
        main()
