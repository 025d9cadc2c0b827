"""One depth for every round: the arms that an adaptive policy has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_speckv.policy.base import Batch, Decision, Round


class StaticPolicy:
    """``static:K`` drafts K tokens whatever happens, ``static:SxT`` a tree of that shape."""

    def __init__(self, name: str, candidate_steps: Sequence[int], pinned: int):
        assert pinned in candidate_steps, (name, candidate_steps)
        self.name = name
        self.candidate_steps = tuple(candidate_steps)
        self._decision = Decision(pinned, "pinned")

    def decide(self, batch: Batch) -> Decision:
        return self._decision

    def observe(self, outcome: Round) -> None:
        pass

    def snapshot(self) -> dict[str, object]:
        return {"num_steps": self._decision.num_steps}
