"""CUDA graphs as tapes: a replay does the captured operators again, on the same memory.

:class:`Tape` stands for ``torch.cuda.CUDAGraph``. As on a device, a replay runs no Python of the
caller's, reads its inputs where they were at capture, and leaves its results where they were then.
What a device refuses under capture is refused here: reading a number on the host. Memory that is
allocated in a graph is poison until the replay has written it.

A device records operators without running them. A tape runs them, so that later ones have inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tests.rehearsal.poison import poisoned

aten = torch.ops.aten
Step = Callable[[], object]

ALLOCATIONS = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
}
HOST_READS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.item,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_consecutive,
}
"""Operators that wait for the device: they return a number, or a shape that depends on numbers."""
HOST_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__}
"""On a CPU these read memory without an operator."""


class CaptureError(RuntimeError):
    """The host would have read from a stream that is capturing."""


class Body(list[Step]):
    """Of a conditional node. ``memory`` is what it allocates: poison after a replay without it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[Tensor | None] = []


class Tape:
    """Steps that a replay runs in order; a conditional node is a step with steps of its own."""

    capturing: Tape | None = None

    def __init__(self, keep_graph: bool = False) -> None:
        self._steps = Body()
        self._open = [self._steps]

    def add(self, step: Step, new: Iterable[Tensor | None] = ()) -> None:
        for body in self._open:
            body.memory.extend(new)
        self._open[-1].append(step)

    def replay(self) -> None:
        with torch.inference_mode():
            _run(self._steps)

    def reset(self) -> None:
        self._steps.clear()

    @contextmanager
    def recording(self) -> Iterator[None]:
        assert Tape.capturing is None, "one capture at a time"
        Tape.capturing = self
        try:
            with _Host(), _Operators(self):
                yield
        finally:
            Tape.capturing = None

    @staticmethod
    def get_currently_capturing_graph() -> Tape | None:
        return Tape.capturing

    def begin_capture_to_if_node(self, scalar_cuda_pred_tensor: Tensor) -> None:
        """What follows runs in a replay in which the tensor is true then."""
        body = Body()
        self.add(partial(_run_if, scalar_cuda_pred_tensor, body))
        self._open.append(body)

    def end_capture_to_conditional_node(self) -> None:
        self._open.pop()


def _run(steps: list[Step]) -> None:
    for step in steps:
        step()


def _run_if(condition: Tensor, body: Body) -> None:
    if condition.numpy():  # by no operator: a device sees it without the host
        _run(body)
    else:
        _spoil(body.memory)


@contextmanager
def graph(cuda_graph: Tape, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    with cuda_graph.recording():
        yield


def launch(kernel: Step) -> None:
    """A kernel that is no operator of torch's, such as one of Triton's."""
    if Tape.capturing is None:
        kernel()
        return
    Tape.capturing.add(kernel)
    with _disable_current_modes(), DisableTorchFunction():
        kernel()


class _Host(TorchFunctionMode):
    """Nobody reads a number."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in HOST_METHODS:
            raise CaptureError(f"{func.__name__} while a graph is captured")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in HOST_READS or _indexes_by_mask(func, args):
            raise CaptureError(f"{func} while a graph is captured")
        kwargs = kwargs or {}
        Tape.capturing = None  # what an operator does inside is its own
        try:
            with DisableTorchFunction():  # what it reads, a device reads
                results = func(*args, **kwargs)
        finally:
            Tape.capturing = self._tape
        # Lists are the caller's, who may change them.
        call = partial(func, *tree_map(_same, args), **tree_map(_same, kwargs))
        new = _new_memory(results, (args, kwargs))
        step = _step(func, call, new)
        if step is not None:
            self._tape.add(step, new)
        return results


def _same(value: Any) -> Any:
    return value


def _indexes_by_mask(func: Any, args: Any) -> bool:
    if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def _step(func: Any, call: Callable[[], Any], new: list[Tensor | None]) -> Step | None:
    """What a replay does in the place of an operator; ``new``: its results, None for those that
    are other memory's views."""
    if func.overloadpacket in ALLOCATIONS:
        return partial(_spoil, new)
    if func._schema.is_mutable or any(result is not None for result in new):
        return partial(_again, call, new)
    return None


def _new_memory(results: Any, inputs: Any) -> list[Tensor | None]:
    known = {_storage(each) for each in tree_leaves(inputs) if isinstance(each, Tensor)}
    return [
        each if isinstance(each, Tensor) and _storage(each) not in known else None
        for each in tree_leaves(results)
    ]


def _storage(tensor: Tensor) -> int:
    packed = tensor.is_mkldnn  # a weight of oneDNN's, which has no storage of torch's
    return id(tensor) if packed else tensor.untyped_storage()._cdata


def _spoil(new: Iterable[Tensor | None]) -> None:
    for tensor in new:
        if tensor is not None:
            tensor.copy_(poisoned(tensor))


def _again(call: Callable[[], Any], new: list[Tensor | None]) -> None:
    for kept, result in zip(new, tree_leaves(call()), strict=True):
        if kept is not None:
            kept.copy_(result)
