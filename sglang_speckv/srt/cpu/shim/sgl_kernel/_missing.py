"""Names of ``sgl_kernel`` that are not supplied: importable, and clear about it when called."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, NoReturn

PARTS = ("elementwise", "flash_attn", "mamba", "quantization", "speculative", "utils")
"""The submodules that SGLang 0.5.23 imports without asking for the platform."""


def attribute_of(module: str) -> Callable[[str], Callable[..., NoReturn]]:
    """A module-level ``__getattr__`` that answers with ops which refuse to run."""

    def op(name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(f"{module}.{name} is not supplied by the CPU engine")

        missing.__name__ = name
        return missing

    return op


def install(package: str) -> None:
    """Put a module for each of :data:`PARTS` where ``import`` finds it."""
    for part in PARTS:
        name = f"{package}.{part}"
        spec = importlib.machinery.ModuleSpec(name, loader=None)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__getattr__"] = attribute_of(name)
        sys.modules[name] = module
