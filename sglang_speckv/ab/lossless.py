"""Did an arm answer greedily what the target alone answers?

An answer that equals the one of ``none`` to the same prompt needs no question. Every other one is
teacher-forced: the server without drafting reads the prompt and the answer in one prefill and says
of each token by how much its log-probability is below that of the likeliest token at its place. A
gap of 0 is the target's own choice, a small one a tie, which the shape of a batch may decide either
way; anything larger is a loss. ``none#2`` is judged like any arm, so the baseline's own divergence
is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sglang_speckv.ab.journal import BlockResult
from sglang_speckv.ab.prompts import Prompt, Tokenize

MAX_ASKED = 1000
"""Distinct answers that one server is asked about; those beyond are counted as unchecked."""


def tie_gap(dtype: str) -> float:
    """Up to which gap two tokens may swap: in float32 by the order of sums alone; in 16 bits two
    logits of 20 are an eighth apart at the least."""
    return 1e-3 if dtype == "float32" else 0.25


@dataclass(frozen=True)
class Verdict:
    """Of ``answers``, ``identical`` equal the reference's; ``gaps`` are the largest gap of each
    other one that was asked about, ``allowed`` is what a tie may have."""

    answers: int
    identical: int
    gaps: tuple[float, ...]
    allowed: float

    @property
    def lost(self) -> int:
        return sum(not gap <= self.allowed for gap in self.gaps)

    @property
    def ties(self) -> int:
        return len(self.gaps) - self.lost

    @property
    def unchecked(self) -> int:
        return self.answers - self.identical - len(self.gaps)

    @property
    def largest_gap(self) -> float | None:
        return max(self.gaps, default=None)

    @property
    def lossless(self) -> bool | None:
        """None where no answer could be looked at."""
        if self.lost:
            return False
        return True if self.identical + self.ties else None

    def __str__(self) -> str:
        text = f"{self.identical} of {self.answers} identical"
        for count, name in (
            (self.ties, "ties"),
            (self.lost, "LOST"),
            (self.unchecked, "unchecked"),
        ):
            text += f", {count} {name}" if count else ""
        return text + (f", gap up to {self.largest_gap:.2g}" if self.lost else "")


class TeacherForced(Protocol):
    async def gaps(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """How far each token of ``answer`` is below the likeliest one, in log-probability."""


@dataclass
class Judge:
    """Asks the server without drafting; remembers what it was told."""

    client: TeacherForced
    tokenize: Tokenize
    allowed: float
    _known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    async def verdict(
        self, blocks: Sequence[BlockResult], reference: Sequence[BlockResult]
    ) -> Verdict:
        """Of the answers of ``blocks``, paired with those of the reference to the same prompts."""
        answers, identical, gaps = 0, 0, []
        for prompt, answer, expected in _answers(blocks, reference):
            answers += 1
            if answer == expected:
                identical += 1
            elif (gap := await self._largest_gap(prompt, answer)) is not None:
                gaps.append(gap)
        return Verdict(answers, identical, tuple(gaps), self.allowed)

    async def _largest_gap(self, prompt: Prompt, answer: tuple[int, ...]) -> float | None:
        key = (prompt.id, answer)
        if key not in self._known:
            if len(self._known) >= MAX_ASKED:
                return None
            self._known[key] = max(await self.client.gaps(self.tokenize(prompt), answer))
        return self._known[key]


def _answers(
    blocks: Sequence[BlockResult], reference: Sequence[BlockResult]
) -> Iterator[tuple[Prompt, tuple[int, ...], tuple[int, ...]]]:
    for ours, theirs in zip(blocks, reference, strict=True):
        assert ours.block == theirs.block, "blocks are not paired"
        for prompt, answer, expected in zip(
            ours.block.prompts, ours.completions, theirs.completions, strict=True
        ):
            yield prompt, answer.output_ids, expected.output_ids
