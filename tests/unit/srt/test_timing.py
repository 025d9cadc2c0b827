"""Round times: which are a round's own, and whose clock counts under tensor parallelism."""

import math

import torch

from sglang_speckv.srt.timing import RoundTimer, SharedRoundTimer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class OtherRank:
    """A broadcast that brings rank 0's value in place of one's own."""

    def __init__(self, value: float) -> None:
        self.value = value

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        tensor.fill_(self.value)


class OnlyRank:
    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        pass


def test_time_between_results_is_the_rounds_own() -> None:
    clock = Clock()
    timer = RoundTimer(clock)
    timer.prefilled()
    first, second = timer.launched(3), None
    clock.now = 1.0
    assert timer.finished(first, 2, [0, 1])[0].seconds is None  # a prefill came before
    second = timer.launched(5)
    clock.now = 1.25
    (outcome,) = timer.finished(second, 2, [5, 1])
    assert (outcome.num_steps, outcome.batch_size, outcome.seconds) == (5, 2, 0.25)


def test_under_overlap_a_prefill_spoils_the_round_launched_after_it() -> None:
    clock = Clock()
    timer = RoundTimer(clock)
    warm = timer.launched(1)
    ahead = timer.launched(1)  # launched before the result of `warm` is here
    timer.prefilled()
    late = timer.launched(1)
    clock.now = 1.0
    timer.finished(warm, 1, [0])
    clock.now = 1.5
    assert timer.finished(ahead, 1, [0])[0].seconds == 0.5
    clock.now = 9.0
    assert timer.finished(late, 1, [0])[0].seconds is None


def test_every_rank_learns_rank_zeros_time_with_the_round_it_belongs_to() -> None:
    clock = Clock()
    timer = SharedRoundTimer(OtherRank(0.125), "cpu", clock)
    outcomes = []
    for num_steps in (3, 5, 1):
        launch = timer.launched(num_steps)
        clock.now += 0.5
        outcomes += timer.finished(launch, 1, [num_steps])
    assert [(o.num_steps, o.seconds) for o in outcomes] == [(3, 0.125), (5, 0.125)]


def test_ranks_would_differ_without_the_broadcast() -> None:
    clocks, outcomes = (Clock(), Clock()), []
    for rank, clock in enumerate(clocks):
        timer = SharedRoundTimer(OnlyRank(), "cpu", clock)
        for _ in range(3):
            launch = timer.launched(1)
            clock.now += 0.5 + rank
            got = timer.finished(launch, 1, [1])
        outcomes.append(got[0].seconds)
    assert not math.isclose(*outcomes)


def test_a_round_without_an_own_time_stays_without_one() -> None:
    clock = Clock()
    timer = SharedRoundTimer(OnlyRank(), "cpu", clock)
    timer.prefilled()
    launch = timer.launched(3)
    assert timer.finished(launch, 1, [0]) == []
    (outcome,) = timer.finished(timer.launched(3), 1, [0])
    assert outcome.seconds is None
