"""The ops that SGLang calls as ``torch.ops.sgl_kernel.<name>``.

What is not registered raises torch's AttributeError with the name, and SGLang's own probe for
an AMX build (``hasattr(torch.ops.sgl_kernel, "convert_weight_packed")``) stays negative.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.library import Library, infer_schema

NAMESPACE = "sgl_kernel"
WRITTEN = {
    "decode_attention_cpu": ("k_buffer", "v_buffer", "o"),
    "extend_attention_cpu": ("o",),
}
"""Arguments that an op writes into."""

_library: Library | None = None


def register_ops(*ops: Callable) -> None:
    """Make real torch ops of functions, once per process."""
    global _library
    if _library is not None:
        return
    _library = Library(NAMESPACE, "DEF")
    for op in ops:
        name = op.__name__
        _library.define(name + infer_schema(op, mutates_args=WRITTEN.get(name, ())))
        _library.impl(name, op, "CPU")
