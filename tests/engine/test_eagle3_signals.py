"""What the tap reports of an EAGLE-3 head is what the head says: the trainer's own forward, from
the text alone, gives the same numbers at every draft position of every round."""

import pytest
import torch

from tests.engine.conftest import PROMPTS, Serving, on_pairs
from tests.engine.reference import HeadReference
from tests.engine.test_signals import DEPTHS, records_of, shuffle

pytestmark = [pytest.mark.engine, on_pairs("eagle3")]


def test_signals_are_the_heads_own(server: Serving, models: dict[str, str]) -> None:
    answers = shuffle(server, each=5)
    _, records = records_of(server)
    reference = HeadReference(models["eagle3"], models["target"])
    compared = 0
    for rid, answer in answers.items():
        mine = [r for r in records if r.request == rid]
        text = reference.target.ids(PROMPTS[int(rid.split(":")[1])]) + answer
        drafts = reference.drafts(text, [r.context_len for r in mine], max(DEPTHS))
        top1_probs = drafts.amax(-1).tolist()
        entropies = torch.special.entr(drafts).sum(-1).tolist()
        for r, top1_prob, entropy in zip(mine, top1_probs, entropies, strict=True):
            assert r.first_prob == pytest.approx(top1_prob[0], abs=1e-3)
            assert r.top1_prob == pytest.approx(top1_prob[: r.num_steps], abs=1e-3)
            assert r.entropy == pytest.approx(entropy[: r.num_steps], abs=1e-2)
            compared += r.num_steps
    assert compared > 200
