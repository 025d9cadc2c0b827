import numpy as np
import pytest

from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.steady import counted
from sglang_speckv.bench.traffic import Block, Condition, Segment


def answer(sent_s: float, rate: float, tokens: int = 10) -> Completion:
    """``tokens`` at ``rate`` per second, one at a time."""
    arrived = tuple((i / rate, i) for i in range(1, tokens + 1))
    return Completion(
        (0,) * tokens, tokens=tokens, latency_s=tokens / rate, sent_s=sent_s, arrived=arrived
    )


def block(*levels: tuple[int, int], rate: float | None = None) -> Block:
    segments = tuple(
        Segment(slots, tuple(Prompt(str(i), "class", "text") for i in range(count)))
        for slots, count in levels
    )
    return Block(0, Condition("mixed", None if rate else levels[0][0], rate), segments)


def test_counting_ends_when_a_slot_stays_empty() -> None:
    # the fast one is done after 1 s; the slow one has 5 of its 10 tokens by then
    found = counted(block((2, 2)), [answer(0, 10), answer(0, 5)], wall_s=2.0)
    assert found.cost_s == pytest.approx(1.0)
    assert found.tokens.tolist() == [10, 5]
    assert found.seconds == pytest.approx([1.0, 1.0])


def test_a_request_without_a_token_by_the_end_has_none() -> None:
    found = counted(block((2, 2)), [answer(0, 10), answer(0, 0.9)], wall_s=12.0)
    assert found.tokens.tolist() == [10, 0]


def test_a_round_counts_for_all_of_its_requests() -> None:
    """Their tokens arrive one after the other, and the first to arrive ends the count."""
    rounds = [(1.0, 3), (2.0, 6)]
    first, later = (
        Completion((), tokens=6, latency_s=2.0 + s, arrived=tuple((t + s, n) for t, n in rounds))
        for s in (0.0, 0.001)
    )
    found = counted(block((2, 2)), [first, later], wall_s=2.001)
    assert found.cost_s == 2.0
    assert found.tokens == pytest.approx([6.0, 6.0], rel=0.001)


def test_a_slot_that_takes_the_next_request_is_busy() -> None:
    done = [answer(0, 10), answer(0, 5), answer(1, 10)]  # the third follows the first
    found = counted(block((2, 3)), done, wall_s=2.0)
    assert found.cost_s == pytest.approx(2.0)
    assert found.tokens.sum() == 30


def test_one_at_a_time_counts_everything() -> None:
    found = counted(block((1, 2)), [answer(0, 10), answer(1, 5)], wall_s=3.0)
    assert (found.cost_s, found.tokens.sum()) == (pytest.approx(3.0), 20)


def test_each_segment_has_its_own_stretch() -> None:
    done = [answer(0, 10), answer(1, 10), answer(1, 5)]
    found = counted(block((1, 1), (2, 2)), done, wall_s=3.0)
    assert found.cost_s == pytest.approx(2.0)
    assert found.tokens.tolist() == [10, 10, 5]


def test_fewer_requests_than_slots() -> None:
    found = counted(block((8, 2)), [answer(0, 10), answer(0, 5)], wall_s=2.0)
    assert found.cost_s == pytest.approx(1.0)


def test_an_open_loop_counts_the_time_of_its_requests() -> None:
    found = counted(block((2, 2), rate=1.0), [answer(0, 10), answer(5, 5)], wall_s=7.0)
    assert (found.cost_s, found.tokens.sum()) == (pytest.approx(3.0), 20)


def test_without_arrivals_the_wall_time_counts() -> None:
    done = [Completion((0,) * 4, tokens=4, latency_s=1.0), Completion((0,) * 4, tokens=4)]
    found = counted(block((2, 2)), done, wall_s=2.0)
    assert (found.cost_s, found.tokens.sum()) == (2.0, 8)


def test_the_rate_is_that_of_an_endless_load() -> None:
    """Tokens come in rounds of random size; the ratio of sums over many blocks is the true rate."""
    rng = np.random.default_rng(0)
    tokens = seconds = 0.0
    for _ in range(400):
        done = []
        for _ in range(8):
            steps = np.minimum(np.cumsum(rng.integers(1, 6, size=64)), 64)
            steps = steps[: int(np.argmax(steps == 64)) + 1]
            arrived = tuple((float(i + 1), int(n)) for i, n in enumerate(steps))
            done.append(Completion((), tokens=64, latency_s=float(len(steps)), arrived=arrived))
        found = counted(block((8, 8)), done, wall_s=99.0)
        tokens, seconds = tokens + found.tokens.sum(), seconds + found.cost_s
    assert tokens / seconds == pytest.approx(8 * 3.0, rel=0.01)
