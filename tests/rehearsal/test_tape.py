"""A replay is what a device's would be: the same memory, no Python, nothing read on the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.rehearsal.device import Interpreted
from tests.rehearsal.tape import CaptureError, Tape, graph, launch


def captured(forward: Callable[[], Tensor]) -> tuple[Tape, Tensor]:
    tape = Tape()
    with torch.inference_mode(), graph(tape):
        out = forward()
    return tape, out


def test_a_replay_reads_and_writes_where_the_capture_did() -> None:
    x, weight, total = torch.ones(2, 3), torch.full((3, 4), 2.0), torch.zeros(4)
    calls = []

    def forward() -> Tensor:
        calls.append(1)
        y = (x @ weight).relu()
        total.add_(y.sum(0))
        return y.view(4, 2)[1:].transpose(0, 1)

    tape, out = captured(forward)
    total.zero_()
    for value in (-1.0, 3.0, 0.5):
        x.fill_(value)
        tape.replay()
        expected = (x @ weight).relu()
        assert torch.equal(out, expected.view(4, 2)[1:].T)
    assert torch.equal(total, torch.full((4,), 2 * 3 * 2.0 * (3.0 + 0.5)))
    assert calls == [1]


def test_an_input_that_was_bound_anew_is_not_seen() -> None:
    inputs = {"x": torch.ones(2)}
    tape, out = captured(lambda: inputs["x"] + 1)
    inputs["x"] = torch.full((2,), 9.0)
    tape.replay()
    assert out.tolist() == [2, 2]


def test_a_list_that_changes_later_is_kept_as_it_was() -> None:
    x, y = torch.ones(1), torch.ones(1)
    rows = [x, y]
    tape, out = captured(lambda: torch.cat(rows))
    rows.clear()
    x.fill_(5)
    tape.replay()
    assert out.tolist() == [5, 1]


def test_what_a_graph_does_not_write_is_poison() -> None:
    x = torch.ones(2)

    def forward() -> Tensor:
        out = torch.empty(4)
        out[:2] = x
        return out

    tape, out = captured(forward)
    tape.replay()
    assert out[:2].tolist() == [1, 1] and out[2:].isnan().all()


READS: list[Callable[[Tensor], object]] = [
    lambda x: x.sum().item(),
    lambda x: x.tolist(),
    lambda x: x.numpy(),
    lambda x: bool(x.any()),
    lambda x: int(x[0]),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: torch.equal(x, x),
]


@pytest.mark.parametrize("read", READS)
def test_nothing_is_read_on_the_host(read: Callable[[Tensor], object]) -> None:
    x = torch.ones(3)
    read(x)
    with pytest.raises(CaptureError):
        captured(lambda: read(x))  # type: ignore[arg-type, return-value]
    assert Tape.capturing is None


def test_a_condition_is_looked_at_in_the_replay() -> None:
    x, counts = torch.ones(()), torch.zeros(3)

    def forward() -> Tensor:
        tape = Tape.get_currently_capturing_graph()
        assert tape is not None
        for depth in range(3):
            tape.begin_capture_to_if_node(x > depth)
            counts[depth] += 1
        for _ in range(3):
            tape.end_capture_to_conditional_node()
        return counts + 0

    tape, out = captured(forward)
    for value, expected in ((0, [0, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])):
        counts.zero_()
        x.fill_(value)
        tape.replay()
        assert out.tolist() == counts.tolist() == expected


def test_memory_of_a_node_that_does_not_run_is_poison() -> None:
    going, x = torch.ones((), dtype=torch.bool), torch.ones(2)

    def forward() -> Tensor:
        tape = Tape.get_currently_capturing_graph()
        assert tape is not None
        tape.begin_capture_to_if_node(going)
        out = x + 1
        tape.end_capture_to_conditional_node()
        return out

    tape, out = captured(forward)
    tape.replay()
    assert out.tolist() == [2, 2]
    going.fill_(False)
    tape.replay()
    assert out.isnan().all() and x.tolist() == [1, 1]


def test_an_operator_of_ours_is_one_step() -> None:
    """Its own reads are the device's, and so are the kernels that it launches."""

    @torch.library.custom_op("rehearsal::add_first", mutates_args=("out",))
    def add_first(x: Tensor, out: Tensor) -> None:
        launch(lambda: out.add_(x.tolist()[0]))

    x, out = torch.ones(1), torch.zeros(2)

    def forward() -> Tensor:
        add_first(x, out)
        return out

    tape, _ = captured(forward)
    out.zero_()
    x.fill_(7)
    tape.replay()
    assert out.tolist() == [7, 7]


@triton.jit
def double(x, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    tl.store(out + at, 2 * tl.load(x + at))


def test_an_interpreted_kernel_is_one_step() -> None:
    kernel = Interpreted(double.fn)
    x, out = torch.ones(4), torch.zeros(4)

    def forward() -> Tensor:
        kernel[(1,)](x, out, SIZE=4)
        return out + 1

    tape, shown = captured(forward)
    x.fill_(3)
    tape.replay()
    assert out.tolist() == [6] * 4 and shown.tolist() == [7] * 4
