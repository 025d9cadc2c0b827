"""The fuse: loud at start-up, quiet while serving, and it swallows faults only."""

import logging

import pytest

from sglang_speckv.srt.fuse import Fuse


@pytest.fixture
def blown() -> list[int]:
    return []


@pytest.fixture
def fuse(blown: list[int]) -> Fuse:
    return Fuse(lambda: blown.append(1))


def fail(fuse: Fuse, seam: str, error: BaseException, holds: bool = True) -> None:
    with fuse.guard(seam, holds):
        raise error


def test_at_start_up_a_fault_is_loud(fuse: Fuse, blown: list[int]) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(fuse, "a", ZeroDivisionError())
    assert fuse.failures == {} and blown == []


def test_while_serving_it_is_counted_and_logged_once_per_seam(
    fuse: Fuse, blown: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    fuse.armed = True
    with caplog.at_level(logging.ERROR):
        for seam in ("a", "a", "b", "a"):
            fail(fuse, seam, RuntimeError("broken"))
    assert fuse.failures == {"a": 3, "b": 1}
    assert len(blown) == 4
    assert ["a failed" in caplog.messages[0], "b failed" in caplog.messages[1]] == [True, True]
    assert len(caplog.messages) == 2


def test_an_observers_fault_leaves_the_depth_alone(fuse: Fuse, blown: list[int]) -> None:
    fuse.armed = True
    fail(fuse, "metrics", RuntimeError(), holds=False)
    assert fuse.failures == {"metrics": 1} and blown == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_passes(fuse: Fuse, error: type[BaseException]) -> None:
    fuse.armed = True
    with pytest.raises(error):
        fail(fuse, "a", error())


def test_guards_nest(fuse: Fuse) -> None:
    fuse.armed = True
    reached = []
    with fuse.guard("outer"):
        fail(fuse, "inner", RuntimeError())
        reached.append(1)
        with fuse.guard("outer"):
            raise RuntimeError
    assert reached == [1] and fuse.failures == {"inner": 1, "outer": 1}
