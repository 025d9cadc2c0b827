"""The replay's picture: regret against the oracle, chosen depth over time, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sglang_speckv.replay.arms import HINDSIGHT, NONE
from sglang_speckv.replay.report import knows_too_much
from sglang_speckv.replay.run import Arm, Replay
from sglang_speckv.replay.score import calibration

_OURS, _OTHER, _KNOWS = "#0f766e", "#b8c4cc", "#e2e8ec"
_LINES = ("#0f766e", "#b45309", "#6d28d9", "#be123c", "#1d4ed8", "#4d7c0f")
_POINTS = 100
"""Of the depth over time, each the mean of as many rounds."""


def draw(replay: Replay, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 3, figsize=(15, 4.6), width_ratios=(1.1, 1.5, 1), layout="constrained"
    )
    header = replay.setting.rounds.columns.header
    figure.suptitle(
        f"Replay: {header.algorithm} {Path(header.draft).name} for {Path(header.target).name}, "
        f"{len(replay.setting.rounds):,} rounds",
        fontsize=12,
        x=0.01,
        ha="left",
    )
    _draw_regret(axes[0], replay)
    _draw_depths(axes[1], replay)
    _draw_calibration(axes[2], replay)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def _draw_regret(axes: Any, replay: Replay) -> None:
    arms = [name for name in replay.arms if name != "oracle"]
    arms.sort(key=replay.regret, reverse=True)
    values = [100 * replay.regret(name) for name in arms]
    bars = axes.barh(arms, values, color=[_color(replay, name) for name in arms])
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_title("tokens per second left to the oracle, %", fontsize=10, loc="left")
    axes.set_xlabel("less is better; pale: needs hindsight")
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(x=0.12)
    _tidy(axes)


def _color(replay: Replay, name: str) -> str:
    if name == "throughput":
        return _OURS
    return _KNOWS if knows_too_much(replay, name) else _OTHER


def _draw_depths(axes: Any, replay: Replay) -> None:
    tiers = np.asarray(replay.setting.tiers)
    for color, arm in zip(_LINES, _deciding(replay), strict=False):
        depths = tiers[arm.played.chosen]
        edges = np.unique(np.linspace(0, len(depths), _POINTS + 1).astype(int))
        means = np.add.reduceat(depths, edges[:-1]) / np.diff(edges)
        strong = arm.name == "throughput"
        axes.step(
            edges[:-1],
            means,
            where="post",
            color=color,
            linewidth=1.6 if strong else 0.9,
            alpha=1.0 if strong else 0.7,
            label=arm.name,
        )
    axes.set_title("depth over time (mean of neighbouring rounds)", fontsize=10, loc="left")
    axes.set_xlabel("round")
    axes.set_yticks(replay.setting.tiers)
    axes.grid(axis="y", color="0.93")
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    _tidy(axes)


def _draw_calibration(axes: Any, replay: Replay) -> None:
    at = replay.setting
    high = 1.0
    for color, arm in zip(_LINES, _deciding(replay), strict=False):
        found = calibration(at.rounds, at.table, arm.played)
        if found is None:
            continue
        expected, came, _ = zip(*found["reliability"], strict=True)
        axes.plot(expected, came, "o-", color=color, markersize=4, linewidth=1, label=arm.name)
        high = max(high, *expected, *came)
    axes.plot([1, high], [1, high], color="0.7", linestyle=":", linewidth=1)
    axes.set_title("accept length: expected and realised", fontsize=10, loc="left")
    axes.set_xlabel("expected")
    axes.set_ylabel("realised")
    axes.legend(fontsize=8, frameon=False)
    _tidy(axes)


def _deciding(replay: Replay) -> list[Arm]:
    """Arms that decide round by round without hindsight, the default policy first."""
    arms = [
        arm
        for name, arm in replay.arms.items()
        if name not in (*HINDSIGHT, NONE) and not name.startswith("static:")
    ]
    return sorted(arms, key=lambda arm: arm.name != "throughput")


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
