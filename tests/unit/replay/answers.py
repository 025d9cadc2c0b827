"""Positions of answers that nobody gave: calibrated drafts, some classes easier than others."""

from __future__ import annotations

import numpy as np

from sglang_speckv.replay.positions import Positions, Source

KINDS = ("code", "talk")


def positions(
    requests: int = 12,
    length: int = 40,
    depth: int = 7,
    seed: int = 0,
    algorithm: str = "EAGLE3",
    walked: bool = True,
) -> Positions:
    """Each token of an answer is easy or hard for the draft, whatever the chain it is drafted in:
    a run of right drafts is seen from each of its positions."""
    rng = np.random.default_rng(seed)
    names, start, correct, probs = [], [0], [], []
    for i in range(requests):
        kind = KINDS[i % len(KINDS)]
        names.append((kind, f"p{i}"))
        ease = rng.normal(1.5 if kind == "code" else 0.0, 1.5, length + depth)
        chance = 1 / (1 + np.exp(-ease))
        right = rng.random(length + depth) < chance
        right[length:] = False
        windows = np.lib.stride_tricks.sliding_window_view(right, depth)[:length]
        correct.append(np.cumprod(windows, axis=1).sum(axis=1))
        probs.append(np.lib.stride_tricks.sliding_window_view(chance, depth)[:length])
        start.append(start[-1] + length)
    signals = np.stack([np.concatenate(probs), 1 - np.concatenate(probs)], axis=-1)
    return Positions(
        Source("target", "draft", algorithm, tuple(names)),
        walked,
        np.array(start),
        np.concatenate(correct),
        np.tile(np.arange(length), requests) + 20,
        signals.astype(np.float32),
    )
