"""SGLang's CUDA graph runners on a CPU, with tapes for graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from tests.rehearsal.tape import Tape, graph, launch


def capture_on_cpu() -> None:
    """Once in every process, after SGLang is imported and before a model is loaded."""
    from sglang.srt.distributed import parallel_state

    torch.get_device_module = partial(_module, torch.get_device_module)
    torch.cuda.CUDAGraph = Tape
    torch.cpu.graph = graph
    torch.cpu.graph_pool_handle = object
    torch.cpu.is_current_stream_capturing = lambda: Tape.capturing is not None
    torch.distributed.all_reduce = partial(_collective, torch.distributed.all_reduce)
    parallel_state.all_gather_single = partial(_collective, parallel_state.all_gather_single)
    _as_a_platform_of_its_own()
    _decode_graphs()


def _module(original: Callable[..., Any], device: Any = None) -> Any:
    """The build of torch would name CUDA where nobody names a device."""
    return original(device or "cpu")


def _collective(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Whole in a replay: as an operator it would return before it is done."""
    if Tape.capturing is None:
        return original(*args, **kwargs)
    launch(partial(original, *args, **kwargs))


def _as_a_platform_of_its_own() -> None:
    """The way in which other platforms name their runners; here they are CUDA's."""
    from sglang.srt.model_executor.model_runner_components import weight_updater
    from sglang.srt.model_executor.runner import DecodeCudaGraphRunner
    from sglang.srt.platforms import current_platform
    from sglang.srt.speculative import eagle_worker_common, eagle_worker_v2
    from sglang.srt.speculative.eagle_draft_cuda_graph_runner import EAGLEDraftCudaGraphRunner
    from sglang.srt.speculative.eagle_draft_extend_cuda_graph_runner import (
        EAGLEDraftExtendCudaGraphRunner,
    )

    drafting = {
        "draft_decode": EAGLEDraftCudaGraphRunner,
        "draft_extend": EAGLEDraftExtendCudaGraphRunner,
    }

    def of_platform(*, builtin_runner_cls: Any, oot_runner_cls: Any) -> type:
        return oot_runner_cls()

    eagle_worker_v2._is_cpu = False
    eagle_worker_common._is_cpu = False  # a round's writes are planned when it is drafted
    eagle_worker_v2._select_spec_graph_runner_cls = of_platform
    current_platform.get_graph_runner_cls = lambda: DecodeCudaGraphRunner
    current_platform.get_speculative_graph_runner_cls = lambda algorithm, phase: drafting[phase]
    weight_updater.current_platform = SimpleNamespace(
        is_out_of_tree=lambda: True, capabilities=SimpleNamespace(graph_capture=True)
    )  # captures again where it is asked to


def _decode_graphs() -> None:
    """SGLang captures on a CPU what it compiles, and plain decoding only."""
    from sglang.srt.model_executor.cuda_graph_config import (
        Backend,
        Phase,
        check_cuda_graph_backend,
    )
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.model_executor.model_runner_components import cuda_graph_setup

    def compiles() -> SimpleNamespace:
        asked = not check_cuda_graph_backend(Phase.DECODE, Backend.DISABLED)
        return SimpleNamespace(capture=SimpleNamespace(enable_torch_compile=asked))

    cuda_graph_setup.get_flags = compiles
    ForwardMode.is_cpu_graph = ForwardMode.is_cuda_graph
