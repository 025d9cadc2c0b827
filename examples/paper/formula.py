"""The expected-tokens formula for one acceptance rate, and where it is wrong.

    1 + a + ... + a^g = (1 - a^(g+1)) / (1 - a)

holds where every draft is accepted with the same probability whatever came before. Requests and
moments differ, so those that got far are the easy ones: in the records acceptance rises with the
position, and no single rate fits two depths.
"""

from __future__ import annotations

import numpy as np

from .records import Records

ARTICLE_RATES = {
    "FP16": {4: 0.74, 8: 0.65},
    "INT8": {4: 0.66, 8: 0.54},
    "NF4": {4: 0.55, 8: 0.40},
}
"""Acceptance rates that an article about the paper assumes (effloow.com, lab run
"speculative-decoding-adaptive-gamma-speckv-guide-2026"). They are not in the paper's records,
where acceptance hardly changes with the compression."""


def expected_tokens(rate: float, gamma: int) -> float:
    return gamma + 1.0 if rate >= 1.0 else (1.0 - rate ** (gamma + 1)) / (1.0 - rate)


def survival(records: Records, compression: str, gamma: int = 8) -> np.ndarray:
    """[gamma]: share of the steps whose first i drafts were all accepted."""
    accepted = records.accepted[(records.compression == compression) & (records.gamma == gamma)]
    return (accepted[:, None] >= np.arange(1, gamma + 1)).mean(axis=0)


def one_rate(survives: np.ndarray) -> float:
    """The rate that the censored records give if it is taken to be the same everywhere."""
    accepted = survives.sum()
    tried = 1.0 + survives[:-1].sum()
    return float(accepted / tried)
