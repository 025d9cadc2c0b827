"""Top-k and top-p in verification, as SGLang's plain sampler applies them.

The plain sampler looks for both cuts in the same probabilities (``filter_apply_order="joint"``);
verification rescales what top-k keeps and cuts that by top-p, which keeps fewer tokens. Either cut
keeps the likeliest tokens, so that both together keep the shorter list of the two. Top-k after
top-p gives just that, and is what the functions here make of SGLang's calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Cut = Callable[[Tensor, Tensor], Tensor]


class JointCut:
    """``by_k`` and ``by_p`` are SGLang's: they cut probabilities [rows, vocabulary] by a limit
    [rows] and rescale them."""

    def __init__(self, by_k: Cut, by_p: Cut) -> None:
        self._by_k = by_k
        self._by_p = by_p
        self._top_k: Tensor | None = None
        self._both = False

    def sample(
        self, original: Callable[..., Any], verify_input: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """AROUND ``eagle_sample``."""
        info = batch.sampling_info
        self._both = info.need_top_k_sampling and info.need_top_p_sampling
        try:
            return original(verify_input, batch, *args, **kwargs)
        finally:
            self._both, self._top_k = False, None

    def top_k(self, probs: Tensor, top_k: Tensor) -> Tensor:
        if not self._both:
            return self._by_k(probs, top_k)
        self._top_k = top_k
        return probs

    def top_p(self, probs: Tensor, top_p: Tensor) -> Tensor:
        kept = self._by_p(probs, top_p)
        return kept if self._top_k is None else self._by_k(kept, self._top_k)


def install() -> JointCut:
    """In a scheduler: verification calls these two by name, the first before the second."""
    from sglang.srt.speculative import eagle_utils

    cut = JointCut(eagle_utils.top_k_renorm_prob, eagle_utils.top_p_renorm_prob)
    eagle_utils.top_k_renorm_prob, eagle_utils.top_p_renorm_prob = cut.top_k, cut.top_p
    return cut
