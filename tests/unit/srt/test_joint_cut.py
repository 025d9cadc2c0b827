"""Top-k and top-p in verification, against both looked for in the same probabilities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_speckv.srt.cpu.kernels.sampling import top_k_renorm_prob, top_p_renorm_prob
from sglang_speckv.srt.joint_cut import JointCut
from sglang_speckv.srt.patches_present import installed_package

PROBS = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.2, 0.06, 0.04]])
TOP_K = torch.tensor([3, 2])
TOP_P = torch.tensor([0.75, 0.95])


@pytest.fixture
def cut() -> JointCut:
    return JointCut(top_k_renorm_prob, top_p_renorm_prob)


def verify(cut: JointCut, k: bool, p: bool, fails: bool = False) -> Tensor:
    """As ``eagle_sample`` calls the two."""

    def original(verify_input: Any, batch: Any) -> Tensor:
        probs = PROBS
        if batch.sampling_info.need_top_k_sampling:
            probs = cut.top_k(probs, TOP_K)
        if fails:
            raise RuntimeError
        if batch.sampling_info.need_top_p_sampling:
            probs = cut.top_p(probs, TOP_P)
        return probs

    info = SimpleNamespace(need_top_k_sampling=k, need_top_p_sampling=p)
    probs: Tensor = cut.sample(original, None, SimpleNamespace(sampling_info=info))
    return probs


def test_both_are_looked_for_in_the_same_probabilities(cut: JointCut) -> None:
    kept = verify(cut, k=True, p=True)
    assert (kept > 0).tolist() == [[True, True, True, False], [True, True, False, False]]
    torch.testing.assert_close(kept.sum(-1), torch.ones(2))
    one_by_one = top_p_renorm_prob(top_k_renorm_prob(PROBS, TOP_K), TOP_P)
    assert (one_by_one > 0).sum().item() == 4, "one fewer: the difference that this is about"


def test_one_alone_is_sglangs(cut: JointCut) -> None:
    assert torch.equal(verify(cut, k=True, p=False), top_k_renorm_prob(PROBS, TOP_K))
    assert torch.equal(verify(cut, k=False, p=True), top_p_renorm_prob(PROBS, TOP_P))
    assert torch.equal(verify(cut, k=False, p=False), PROBS)


def test_a_verification_that_fails_leaves_nothing_behind(cut: JointCut) -> None:
    with pytest.raises(RuntimeError):
        verify(cut, k=True, p=True, fails=True)
    assert torch.equal(verify(cut, k=False, p=True), top_p_renorm_prob(PROBS, TOP_P))


def test_sglang_calls_top_k_first() -> None:
    """The order that :class:`JointCut` turns round."""
    source = (installed_package() / "srt" / "speculative" / "eagle_utils.py").read_text()
    assert source.index("= top_k_renorm_prob(") < source.index("= top_p_renorm_prob(")
