"""A CPU in the place of a CUDA device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from tests.rehearsal.tape import launch


class CpuForCuda(TorchFunctionMode):
    """Tensors that are asked of a CUDA device, or to be pinned, are a CPU's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        asked = {key: _here(value) for key, value in (kwargs or {}).items() if key != "pin_memory"}
        return func(*map(_here, args), **asked)


def _here(value: Any) -> Any:
    named = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return "cpu" if named else value


class Interpreted(InterpretedFunction):
    """A Triton kernel on a CPU. Triton's own switch is read when a kernel is defined, which a
    forked process comes too late for."""

    def run(self, *args: Any, **options: Any) -> None:
        launch(partial(super().run, *args, **options))


def interpret_triton() -> None:
    """Every Triton kernel that is imported so far, and those that are defined from now on."""
    knobs.runtime.interpret = True
    found: dict[int, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(("sglang.", "triton.language", "sglang_speckv.")):
            for key, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    setattr(module, key, found.setdefault(id(value), Interpreted(value.fn)))
