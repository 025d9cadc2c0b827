"""In which order arms and blocks run: most valuable first, no arm favoured by its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import TypeVar

from sglang_speckv.bench.arms import Arm
from sglang_speckv.bench.traffic import Block, Condition, Workload

_T = TypeVar("_T")


def balanced(items: Sequence[_T], turn: int) -> list[_T]:
    """The order of one turn. Over any 2n turns of n items each item is twice in every place and
    twice right after every other one (Williams 1949), and a turn of odd number is the one before
    it backwards. Fewer turns than that favour some places."""
    zigzag = [(i + 1) // 2 if i % 2 else -i // 2 for i in range(len(items))]
    order = [items[(turn // 2 + step) % len(items)] for step in zigzag]
    return order[::-1] if turn % 2 else order


def order_of(arms: Sequence[Arm], condition_number: int, index: int) -> list[Arm]:
    """The arms' order in block ``index`` of the ``condition_number``-th condition."""
    return balanced(arms, condition_number + index)


def tasks(
    workload: Workload, traffic: Sequence[Sequence[Condition]], rounds: int | None
) -> Iterator[tuple[int, Block]]:
    """(number of the condition, block): a balanced set of blocks of the first kind of traffic,
    then of the next, and again, ``rounds`` blocks per condition or without end."""
    numbers = {condition: n for n, condition in enumerate(chain(*traffic))}
    size = workload.balanced_blocks
    for cycle in count():
        first = cycle * size
        last = first + size if rounds is None else min(first + size, rounds)
        if first >= last:
            return
        for conditions in traffic:
            for index in range(first, last):
                for condition in conditions:
                    yield numbers[condition], workload.block(index, condition)
