"""What of a block counts: SGLang's own window, and where there is none."""

import numpy as np
import pytest

from sglang_speckv.ab.request import Completion, Prompt
from sglang_speckv.ab.traffic import Block, Condition, Segment
from sglang_speckv.ab.window import counted


def answer(sent_s: float, rate: float, tokens: int = 10, ttft_s: float = 0.0) -> Completion:
    """``tokens`` at ``rate`` per second after the first."""
    arrived = tuple((ttft_s + i / rate, i) for i in range(tokens + 1))
    return Completion(
        (0,) * tokens,
        tokens=tokens,
        e2e_s=ttft_s + tokens / rate,
        ttft_s=ttft_s,
        sent_s=sent_s,
        arrived=arrived,
    )


def block(*levels: tuple[int, int], rate: float | None = None) -> Block:
    segments = tuple(
        Segment(slots, tuple(Prompt(str(i), "class", "text") for i in range(count)))
        for slots, count in levels
    )
    return Block(0, Condition("mixed", None if rate else levels[0][0], rate), segments)


def test_it_ends_when_the_first_is_done() -> None:
    # the fast one is done after 1 s; the slow one has 5 of its 10 tokens by then
    (part,) = counted(block((2, 2)), [answer(0, 10), answer(0, 5)])
    assert part.whole and part.seconds == pytest.approx(1.0)
    assert part.tokens == pytest.approx([10, 5])
    assert part.own_s == pytest.approx([1.0, 1.0])


def test_it_begins_when_all_have_their_first_token() -> None:
    (part,) = counted(block((2, 2)), [answer(0, 10), answer(0, 10, ttft_s=0.4)])
    assert part.seconds == pytest.approx(0.6)
    assert part.tokens == pytest.approx([6, 6]), "4 tokens of the first one came before"


def test_without_a_window_the_whole_counts_and_is_marked() -> None:
    late = answer(0, 10, ttft_s=2.0)
    (part,) = counted(block((2, 2)), [answer(0, 10), late])
    assert not part.whole
    assert part.seconds == pytest.approx(1.0) and part.tokens == pytest.approx([10, 0])


def test_a_slot_that_takes_the_next_request_is_busy() -> None:
    done = [answer(0, 10), answer(0, 5), answer(1, 10)]  # the third follows the first
    (part,) = counted(block((2, 3)), done)
    assert part.seconds == pytest.approx(2.0)
    assert part.tokens.sum() == pytest.approx(30)


def test_each_segment_has_a_window_of_its_own() -> None:
    done = [answer(0, 10), answer(1, 10), answer(1, 5)]
    one, two = counted(block((1, 1), (2, 2)), done)
    assert (one.load, two.load) == (1, 2)
    assert one.seconds == two.seconds == pytest.approx(1.0)
    assert two.tokens == pytest.approx([10, 5])


def test_fewer_requests_than_slots() -> None:
    (part,) = counted(block((8, 2)), [answer(0, 10), answer(0, 5)])
    assert part.seconds == pytest.approx(1.0)


def test_an_open_loop_counts_the_time_of_its_requests() -> None:
    (part,) = counted(block((2, 2), rate=1.5), [answer(0, 10), answer(5, 5)])
    assert (part.load, part.seconds, part.tokens.sum()) == (1.5, pytest.approx(3.0), 20)


def test_a_requests_share_of_the_seconds() -> None:
    (part,) = counted(block((2, 2)), [answer(0, 10), answer(0.5, 10)])
    assert part.own_s == pytest.approx([0.5, 0.5]) and part.shares.sum() == part.seconds
    (still,) = counted(block((1, 1)), [Completion((), tokens=1, arrived=((0.0, 1),))])
    assert still.shares.tolist() == [0.0]


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
            e2e_s = float(len(steps))
            done.append(Completion((), tokens=64, e2e_s=e2e_s, ttft_s=1.0, arrived=arrived))
        (part,) = counted(block((8, 8)), done)
        tokens, seconds = tokens + part.tokens.sum(), seconds + part.seconds
    assert tokens / seconds == pytest.approx(8 * 3.0, rel=0.01)
