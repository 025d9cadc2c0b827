"""What a run leaves, filled while it runs, so that an interrupted one has what it measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sglang_speckv.ab import sampled
from sglang_speckv.ab.arms import Arm, ServerFacts
from sglang_speckv.ab.journal import BlockResult, Blocks
from sglang_speckv.ab.lossless import Verdict
from sglang_speckv.ab.traffic import Condition
from sglang_speckv.provenance import provenance


@dataclass
class Outcome:
    """``failures`` are servers that are out and why, ``earlier_s`` what the blocks of earlier
    sessions took. ``keep`` gets every finished block.
    ``provenance`` is taken at the start: what is measured is the code of then."""

    blocks: Blocks = field(default_factory=Blocks)
    verdicts: dict[tuple[Arm, Condition], Verdict] = field(default_factory=dict)
    samples: dict[Arm, sampled.Samples] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    facts: dict[str, ServerFacts] = field(default_factory=dict)
    interrupted: bool = False
    earlier_s: float = 0.0
    keep: Callable[[Arm, BlockResult], None] = lambda arm, result: None
    provenance: dict[str, Any] = field(default_factory=provenance)

    def reference_of(self, arm: Arm) -> Arm | None:
        """The ``none`` whose sampled answers ``arm``'s are compared with."""
        nones = (a for a in self.samples if (a.name, a.draft) == ("none", arm.draft))
        return next((none for none in nones if none != arm), None)

    @property
    def p_values(self) -> dict[Arm, float]:
        """Of each arm's sampled answers being drawn from the target's distribution."""
        pairs = {arm: self.reference_of(arm) for arm in self.samples}
        found = {
            arm: sampled.p_value(self.samples[arm], self.samples[none])
            for arm, none in pairs.items()
            if none is not None
        }
        return {arm: value for arm, value in found.items() if value is not None}

    @property
    def is_checked(self) -> bool:
        """Whether an answer of any arm could be compared with the target's."""
        greedy = any(verdict.lossless is not None for verdict in self.verdicts.values())
        return greedy or bool(self.p_values)

    @property
    def lossy(self) -> list[str]:
        """What fails a run: greedy answers with tokens that the target would not choose, and
        sampled ones of another distribution."""
        found = [
            f"{arm.draft} {arm.name} ({condition}): {verdict.lost} of {verdict.answers} answers "
            f"hold a token that the target would not choose (gap {verdict.largest_gap:.2g}, a tie "
            f"has up to {verdict.allowed:g})"
            for (arm, condition), verdict in self.verdicts.items()
            if verdict.lost
        ]
        return found + [
            f"{arm.draft} {arm.name}: sampled answers are not the target's distribution "
            f"(p = {p:.1e})"
            for arm, p in self.p_values.items()
            if p < sampled.LEAST_P
        ]
