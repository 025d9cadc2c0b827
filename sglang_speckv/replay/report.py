"""A replay for people (a table for each load) and for machines (one JSON object)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from sglang_speckv.ab.answer import Record
from sglang_speckv.ab.tables import Column, rich_table, value
from sglang_speckv.offline.records import trace_hashes
from sglang_speckv.offline.round_cost import MeasuredCost
from sglang_speckv.provenance import shown_path
from sglang_speckv.replay.arms import IN_ROUND, ORACLE
from sglang_speckv.replay.run import Arm, Cell, Replay

_ERRATIC = 0.1
"""Misfit of a cost table from which its figures are warned of."""


def _steps(record: Record) -> str:
    return "  ".join(f"{k}: {share:.0%}" for k, share in record["steps"].items())


def of_best(arm: Record) -> str:
    """``1.024 [1.012, 1.035]``: a policy's gain is a matter of a percent or two."""
    ratio, interval = arm["vs_best_fixed"], arm["interval"]
    if ratio is None:
        return "best"
    return f"{ratio:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _columns(unit: str) -> Sequence[Column]:
    return (
        Column("arm", lambda record: record["arm"] + " *" * record["hindsight"], left=True),
        Column(unit, value("rate", ".4g")),
        Column("of the best fixed [95 %]", of_best),
        Column("of the oracle", value("of_oracle", ".1%")),
        Column("accept length", value("accept_length", ".2f")),
        Column("expected, too much by", value("bias", "+.3f")),
        Column("rounds by depth", _steps, left=True),
    )


def print_report(replay: Replay, console: Console) -> None:
    result = to_json(replay)
    source = result["source"]
    console.print(
        f"{source['algorithm']} {source['draft']} -> {source['target']}, {source['requests']:,} "
        f"requests, {source['traffic']}; round times: {result['cost']['source']}",
        highlight=False,
    )
    for cell in result["cells"]:
        title = f"{cell['requests']} at a time"
        console.print(rich_table(title, _columns(result["cost"]["unit"]), cell["arms"]))
    for line in result["notes"]:
        console.print(line, style="dim", highlight=False, markup=False)


def notes(replay: Replay) -> list[str]:
    """What a reader has to know to believe the figures."""
    at, options = replay.setting, replay.options
    lines = [
        "* knows the future: the oracle what the coming round brings at every depth, in-round arms "
        "what its drafts will say. The best fixed depth is known with hindsight. Intervals: "
        "bootstrap over requests, the best fixed depth picked anew in each resample.",
    ]
    if not at.positions.walked:
        lines.append(
            "Rounds as recorded: another depth would have moved all later ones. That flatters arms "
            "that adapt, by up to twice their gain. For figures without it record positions with "
            "examples/record_positions.py."
        )
    if options.artifact is not None:
        lines.append(
            "An artifact that was trained on answers to these prompts knows what a server would "
            "not know of new ones."
        )
    if isinstance(at.cost, MeasuredCost):
        if at.cost.misfit > _ERRATIC:
            lines.append(
                f"Measured round times scatter by {at.cost.misfit:.0%} around a smooth fit: the "
                "machine was busy, and these rates are not to be believed. Give --cost from a "
                "quiet one, or --draft-cost."
            )
        guessed = [
            f"{size} at a time at depth {', '.join(map(str, missing))}"
            for size in options.requests
            if (missing := [k for k in at.tiers if not at.cost.measured(size, k)])
        ]
        if guessed:
            lines.append(f"Round times that were not measured but fitted: {'; '.join(guessed)}.")
    return lines


def to_json(replay: Replay) -> dict[str, Any]:
    at, options = replay.setting, replay.options
    source = at.positions.source
    return {
        "source": {
            "target": source.target,
            "draft": source.draft,
            "algorithm": source.algorithm,
            "requests": len(source.requests),
            "positions": len(at.positions),
            "walked": at.positions.walked,
            "traffic": options.traffic,
            "seeds": options.seeds,
            "passes": options.passes,
            "lag": options.lag,
            "captured": options.captured,
            "artifact": options.artifact and shown_path(str(options.artifact)),
            "profiled": options.profiled,
            "files": trace_hashes(options.paths),
        },
        "cost": {
            "source": at.cost.source,
            "unit": at.cost.unit,
            "table": [
                {"batch_size": size, "seconds": at.price(size).seconds, "off": at.off(size)}
                for size in options.requests
            ],
        },
        "candidate_steps": list(at.tiers),
        "cells": [
            {
                "requests": cell.requests,
                "best_fixed": cell.best_static,
                "arms": [arm_json(cell, name, arm) for name, arm in cell.arms.items()],
            }
            for cell in replay.cells
        ],
        "notes": notes(replay),
    }


def arm_json(cell: Cell, name: str, arm: Arm) -> Record:
    ratio = cell.ratios[name]
    steps = np.concatenate([played.num_steps for played in arm.walks])
    tokens = np.concatenate([played.tokens for played in arm.walks])
    depths, counts = np.unique(steps, return_counts=True)
    return {
        "arm": name,
        "load": f"{cell.requests} at a time",
        "rate": round(arm.earned.rate, 5),
        "best_fixed": cell.best_static,
        "vs_best_fixed": None if name == cell.best_static else round(ratio.value, 5),
        "interval": rounded(ratio.interval) if name != cell.best_static else None,
        "of_oracle": round(arm.earned.rate / cell.arms[ORACLE].earned.rate, 5),
        "accept_length": round(float(tokens.mean()), 4),
        "bias": _bias(arm),
        "steps": {
            str(k): round(n / len(steps), 4)
            for k, n in zip(depths.tolist(), counts.tolist(), strict=True)
        },
        "hindsight": name == ORACLE or name.endswith(IN_ROUND),
        "rounds": len(steps),
        "cpu_s": round(arm.cpu, 3),
    }


def rounded(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [round(end, 5) for end in interval]


def _bias(arm: Arm) -> float | None:
    """Accept length that was expected, less the one that came, over rounds that expected one."""
    gaps = []
    for played in arm.walks:
        came = played.tokens.reshape(len(played.num_steps), -1).mean(axis=1)
        gaps.append(played.expected - came)
    found = np.concatenate(gaps)
    found = found[~np.isnan(found)]
    return round(float(found.mean()), 4) if len(found) else None
