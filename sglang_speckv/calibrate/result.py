"""What the trace and the blocks say: survival, tokens per round, the best depth under each load.

A draft counts when all before it were right, so the survival S(j) is how often the first j drafts
of a round are right. A round of depth k brings E(k) = 1 + S(1) + ... + S(k) tokens, and B requests
earn B E(k) / T(B, k) tokens per second, where T is the time of a round. Beside each forecast stands
what was measured at that depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from sglang_speckv.ab.answer import Record
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.verdict import judge
from sglang_speckv.calibrate.answer import answer
from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import Columns
from sglang_speckv.offline.records import trace_files
from sglang_speckv.offline.round_cost import measure_cost
from sglang_speckv.policy.prior import OFF, CostPrior
from sglang_speckv.provenance import shown_path

SCHEMA_VERSION = 1


def described(
    wanted: Comparison, outcome: Outcome, columns: Columns, artifact: str | None, seconds: float
) -> Record:
    """All of a calibration as JSON builtins. ``artifact`` is the file to serve with, if any."""
    _, *arms = wanted.arms
    (draft,) = wanted.drafts
    rows = counted(columns)
    depths = [int(arm.base.partition(":")[2]) for arm in arms]
    survival = survival_by_class(rows, max(depths))
    tokens = tokens_by_depth(rows, depths, survival[0]["survival"])
    cost = None if np.isnan(columns.seconds).all() else measure_cost(columns)
    cells = judge(arms, wanted.traffic, outcome)["cells"]
    levels = sorted({cell["concurrency"] for cell in cells})
    expected = {row["num_steps"]: row["expected"] for row in tokens}
    record = {
        "schema": SCHEMA_VERSION,
        "target": shown_path(wanted.target),
        "draft": {
            "name": draft.name,
            "algorithm": draft.algorithm,
            "path": shown_path(draft.path),
        },
        "survival": survival,
        "tokens": tokens,
        "loads": [
            load_of([cell for cell in cells if cell["concurrency"] == level], expected, cost)
            for level in levels
        ],
        "artifact": artifact,
        "provenance": outcome.provenance,
        "options": msgspec.to_builtins(wanted.options),
        "dtype": wanted.dtype,
        "server_flags": [shown_path(flag) for flag in wanted.server_flags],
        "server": next(iter(outcome.facts.values())).settings if outcome.facts else {},
        "seconds": round(seconds, 1),
    }
    return {"answer": answer(record), **record}


def traces_in(folder: Path) -> list[Path]:
    """The trace's files, without those that a server left empty because it ended at once."""
    return [file for file in trace_files(folder) if file.stat().st_size]


def counted(columns: Columns) -> Columns:
    """Rounds of our prompts whose drafts were all made and verified, each place of a text once per
    depth: answers are greedy, so a prompt that was answered twice has the same rounds twice."""
    ours = np.array([label != "" for label in columns.labels])[columns.label]  # not health checks
    whole = (columns.num_verified == columns.num_steps) & ~columns.stopped
    rows = np.flatnonzero(ours & whole)
    places = np.stack([columns.num_steps, columns.prompt, columns.context_len])[:, rows]
    return columns.only(rows[np.unique(places, axis=1, return_index=True)[1]])


def survival_by_class(rows: Columns, deepest: int) -> list[Record]:
    """S(1..deepest) over all rounds of the deepest depth, then by class, most rounds first.

    Raises:
        ConfigError: the trace has no such round.
    """
    deep = rows.only(rows.num_steps == deepest)
    if not len(deep):
        raise ConfigError(f"the trace has no round of depth {deepest}; run the same command again")
    found = [_survival("all", deep.num_correct_drafts, deepest)]
    classes = [
        _survival(label, deep.num_correct_drafts[deep.label == number], deepest)
        for number, label in enumerate(deep.labels)
    ]
    known = sorted((row for row in classes if row["rounds"]), key=lambda row: -row["rounds"])
    return found + (known if len(known) > 1 else [])


def _survival(name: str, correct: np.ndarray, deepest: int) -> Record:
    shares = [(correct >= j).mean() if len(correct) else 0.0 for j in range(1, deepest + 1)]
    return {
        "class": name,
        "rounds": len(correct),
        "survival": [round(float(share), 4) for share in shares],
    }


def tokens_by_depth(
    rows: Columns, depths: Sequence[int], survival: Sequence[float]
) -> list[Record]:
    """Tokens of a round: ``expected`` by the survival, ``measured`` in rounds of that depth."""
    found = []
    for depth in depths:
        correct = rows.num_correct_drafts[rows.num_steps == depth]
        found.append(
            {
                "num_steps": depth,
                "expected": round(1 + sum(survival[:depth]), 4),
                "measured": round(1 + float(correct.mean()), 4) if len(correct) else None,
                "rounds": len(correct),
            }
        )
    return found


def load_of(cells: Sequence[Record], expected: dict[int, float], cost: CostPrior | None) -> Record:
    """One load: every depth, the fastest one, and what drafting brings over depth 0.

    Args:
        cells: Those of ``speckv ab`` under this load, one for each depth.
        expected: Tokens of a round by depth.
        cost: Seconds of a round; None where none was timed.
    """
    requests = cells[0]["concurrency"]
    rows = []
    for cell in cells:
        depth = _depth(cell["arm"])
        seconds, rounds, asleep = round_time(cost, requests, depth)
        forecast = requests * expected[depth] / seconds if seconds else None
        rows.append(
            {
                "num_steps": depth,
                "tok_per_s": cell["tok_per_s"],
                "of_best": cell["vs_best_fixed"],
                "interval": cell["interval"],
                "blocks": cell["blocks"],
                "predicted_tok_per_s": forecast and round(forecast, 2),
                "round_s": seconds and round(seconds, 6),
                "rounds": rounds,
                "asleep": asleep,
            }
        )
    best = _depth(cells[0]["best_fixed"])
    drafting = [row for row in rows if row["num_steps"] > 0]
    # the best one has no ratio to itself
    fastest = max(drafting, key=lambda row: row["of_best"] or float(row["num_steps"] == best))
    over = next(c["over"] for c in cells if _depth(c["arm"]) == fastest["num_steps"])
    forecasts = {row["num_steps"]: row["predicted_tok_per_s"] for row in rows}
    known = {depth: rate for depth, rate in forecasts.items() if rate}
    return {
        "concurrency": requests,
        "best": best,
        "level": [r["num_steps"] for r in rows if r["interval"] and r["interval"][1] >= 1],
        "predicted_best": max(known, key=lambda k: known[k]) if len(known) == len(rows) else None,
        "over_depth_0": over.get("static:0"),
        "depths": rows,
    }


def round_time(
    cost: CostPrior | None, batch_size: int, depth: int
) -> tuple[float | None, int, bool | None]:
    """Seconds of a round, of how many rounds, and whether the draft slept through them; None where
    there was no such round."""
    if cost is not None:
        kinds = (depth, OFF) if depth == 0 else (depth,)
        at = (cost.batch_size == batch_size) & np.isin(cost.num_steps, kinds)
        if at.any():
            row = max(np.flatnonzero(at), key=lambda i: cost.rounds[i])
            asleep = bool(cost.num_steps[row] == OFF)
            return float(cost.seconds[row]), int(cost.rounds[row]), asleep
    return None, 0, None


def _depth(arm: str) -> int:
    return int(arm.partition(":")[2])
