"""Did an arm answer greedily what the target alone answers?

An answer that equals the one of ``none`` to the same prompt needs no question. Every other one is
teacher-forced: the server without drafting reads the prompt and the answer in one prefill. It says
of each token by how much its log-probability is below that of the likeliest token at its place. A
gap of 0 is the target's own choice. A small gap is a tie, which the shape of a batch may decide
either way. Anything larger is a loss. ``none#2`` is checked like any arm, so the baseline's own
divergence is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_speckv.ab.client import Client
from sglang_speckv.ab.request import Prompt, Tokenize


def tie_gap(dtype: str) -> float:
    """Up to which gap two tokens may swap: in float32 by the order of sums alone; in 16 bits two
    logits of 20 are an eighth apart at the least."""
    return 1e-3 if dtype == "float32" else 0.25


@dataclass(frozen=True)
class Verdict:
    """``identical`` of the ``answers`` equal the reference's. ``gaps`` has the largest gap of each
    other one; ``allowed`` is what a tie may have. An answer without tokens is unchecked."""

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
        """False once one answer is lost, True only where every answer was checked, else None."""
        if self.lost:
            return False
        return True if self.answers and not self.unchecked else None

    def __str__(self) -> str:
        text = f"{self.identical} of {self.answers} identical"
        for count, name in (
            (self.ties, "ties"),
            (self.lost, "LOST"),
            (self.unchecked, "unchecked"),
        ):
            text += f", {count} {name}" if count else ""
        return text + (f", gap up to {self.largest_gap:.2g}" if self.lost else "")


@dataclass
class TextCheck:
    """Asks the server without drafting, about the same answer once."""

    client: Client
    tokenize: Tokenize
    allowed: float
    _known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    async def verdict(
        self, answers: Sequence[tuple[Prompt, tuple[int, ...], tuple[int, ...]]]
    ) -> Verdict:
        """Of (prompt, tokens answered, tokens of the reference)."""
        identical, gaps = 0, []
        for prompt, answer, expected in answers:
            if answer and answer == expected:
                identical += 1
            elif answer:
                gaps.append(await self._largest_gap(prompt, answer))
        return Verdict(len(answers), identical, tuple(gaps), self.allowed)

    async def _largest_gap(self, prompt: Prompt, answer: tuple[int, ...]) -> float:
        key = (prompt.id, answer)
        if key not in self._known:
            self._known[key] = max(await self.client.gaps(self.tokenize(prompt), answer))
        return self._known[key]
