"""Did an arm answer what the target alone answers? Token by token, ties told from losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.results import BlockResult
from sglang_speckv.bench.run import Tokenize

TIE_GAP = 1e-3
"""Two tokens this close in log-probability may swap with the shape of a float32 batch."""
_MAX_CHECKS = 200


@dataclass(frozen=True)
class Divergence:
    """The first position where an answer left the reference."""

    prompt: Prompt
    reference: tuple[int, ...]
    position: int


@dataclass(frozen=True)
class Verdict:
    """``gaps`` are the target's top-2 gaps at the first divergence of each differing answer."""

    answers: int
    gaps: tuple[float, ...] = ()

    @property
    def ties(self) -> int:
        return sum(gap < TIE_GAP for gap in self.gaps)

    @property
    def lossless(self) -> bool:
        return self.ties == len(self.gaps)


class TwoBest(Protocol):
    async def top2_gap(self, input_ids: Sequence[int]) -> float:
        """Log-probability between the two likeliest next tokens."""


def divergences(
    blocks: Sequence[BlockResult], reference: Sequence[BlockResult]
) -> list[Divergence]:
    """Answers of ``blocks`` that differ from the reference's answers to the same blocks."""
    found = []
    for ours, theirs in zip(blocks, reference, strict=True):
        assert ours.block == theirs.block, "blocks are not paired"
        for prompt, answer, expected in zip(
            ours.block.prompts, ours.completions, theirs.completions, strict=True
        ):
            position = first_difference(answer.output_ids, expected.output_ids)
            if position is not None:
                found.append(Divergence(prompt, expected.output_ids, position))
    return found


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs))
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)


@dataclass
class GapMeter:
    """Asks the server without drafting how close its two best tokens were; remembers."""

    client: TwoBest
    tokenize: Tokenize
    _known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    async def gaps(self, found: Iterable[Divergence]) -> tuple[float, ...]:
        """In the order of ``found``; beyond a bounded number of questions, infinite."""
        return tuple([await self._gap(divergence) for divergence in found])

    async def _gap(self, divergence: Divergence) -> float:
        prefix = divergence.reference[: divergence.position]
        key = (divergence.prompt.id, prefix)
        if key not in self._known:
            if len(self._known) >= _MAX_CHECKS:
                return float("inf")
            prompt = self.tokenize(divergence.prompt)
            self._known[key] = await self.client.top2_gap([*prompt, *prefix])
        return self._known[key]


async def judge(
    blocks: Sequence[BlockResult], reference: Sequence[BlockResult], meter: GapMeter
) -> Verdict:
    """Answers of paired blocks against the reference's."""
    answers = sum(len(result.completions) for result in blocks)
    return Verdict(answers, await meter.gaps(divergences(blocks, reference)))
