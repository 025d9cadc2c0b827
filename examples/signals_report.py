"""What the draft's signals say about acceptance, on your own traces.

    speckv serve ... --speckv --speckv-policy static:7 --speckv-trace traces/
    python examples/signals_report.py traces/
    python examples/signals_report.py eagle3-traces/ standalone-traces/ --json

One table per trace: each signal's correlation with the accepted share of the drafts and its AUC
for "at least one draft accepted", in the round it was made in (lag 0; known before drafting for
the first token, only afterwards for the window) and one to three rounds later. Only rounds of the
trace's most common depth count, so that a share is a share of the same. Seconds, no GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sglang_speckv.offline.columns import Columns, read_columns
from sglang_speckv.offline.fit_acceptance import auc

LAGS = (0, 1, 2, 3)

REFERENCE = (
    ("first-token probability", 0, 0.42, 0.77),
    ("first-token entropy", 0, -0.40, 0.75),
    ("mean confidence of the window", 0, 0.36, 0.67),
    ("min confidence of the window", 0, 0.17, 0.57),
    ("max entropy of the window", 0, -0.17, 0.57),
    ("mean entropy of the window", 1, -0.21, 0.60),
    ("accepted length", 1, 0.12, 0.55),
)
"""Signal, lag, r, AUC of a reference pair: SmolLM2-135M-Instruct (bfloat16) and a weak EAGLE-3
head of 9.8 M parameters, windows of 7 drafts, 35,800 rounds of 298 held-out sequences. Of the
entropy one round earlier the size of r was noted; the sign here is that of its own round."""


def report(
    traces: Annotated[list[Path], typer.Argument(help="Traces, one draft each.")],
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line.")] = False,
) -> None:
    """Correlation and AUC of each signal with acceptance, beside a reference pair."""
    import msgspec

    sections = [section(read_columns([trace]), str(trace)) for trace in traces]
    if not json:
        for found in sections:
            show(found)
    print(msgspec.json.encode({"drafts": sections, "reference": REFERENCE}).decode())


def section(columns: Columns, name: str) -> dict[str, Any]:
    """One trace's rows. Records are put in each request's own order first."""
    order = np.lexsort((columns.round, columns.request))
    steps = columns.num_steps[order]
    depth = int(np.bincount(steps[steps > 0]).argmax()) if (steps > 0).any() else 0
    correct = columns.num_correct_drafts[order]
    judged = (steps == depth) & (depth > 0)
    request = columns.request[order]
    rows = [
        {"signal": signal, "lag": lag, **worth(values, lag, request, judged, correct, depth)}
        for signal, values in signals_of(columns, order).items()
        for lag in LAGS
        if lag or signal != "accepted length"
    ]
    return {
        "trace": name,
        "draft": columns.header.draft,
        "algorithm": columns.header.algorithm,
        "depth": depth,
        "rounds": int(judged.sum()),
        "prompts": len(columns.prompts),
        "accept_first": round(float((correct[judged] > 0).mean()), 4) if judged.any() else None,
        "rows": [row for row in rows if row["n"]],
    }


def signals_of(columns: Columns, order: np.ndarray) -> dict[str, np.ndarray]:
    """Each signal per record, NaN where the draft was not tapped."""
    confidence, entropy = columns.signals[order, :, 0], columns.signals[order, :, 1]
    empty = np.isnan(confidence).all(axis=1) | np.isnan(entropy).all(axis=1)
    confidence, entropy = (np.where(empty[:, None], 0.0, of) for of in (confidence, entropy))

    def known(values: np.ndarray) -> np.ndarray:
        return np.where(empty, np.nan, values)

    if not confidence.shape[1]:
        return {"accepted length": columns.num_correct_drafts[order].astype(float)}
    return {
        "first-token probability": known(confidence[:, 0]),
        "first-token entropy": known(entropy[:, 0]),
        "what the decision saw": columns.first_prob[order],
        "mean confidence of the window": known(np.nanmean(confidence, axis=1)),
        "min confidence of the window": known(np.nanmin(confidence, axis=1)),
        "mean entropy of the window": known(np.nanmean(entropy, axis=1)),
        "max entropy of the window": known(np.nanmax(entropy, axis=1)),
        "accepted length": columns.num_correct_drafts[order].astype(float),
    }


def worth(
    values: np.ndarray,
    lag: int,
    request: np.ndarray,
    judged: np.ndarray,
    correct: np.ndarray,
    depth: int,
) -> dict[str, Any]:
    """r with the accepted share and AUC of accepting any, over rounds with the signal known."""
    earlier = np.roll(values, lag).astype(float)
    same = np.roll(request, lag) == request
    same[:lag] = False
    used = judged & same & ~np.isnan(earlier)
    x, share = earlier[used], correct[used] / max(depth, 1)
    if len(x) < 3 or x.std() == 0 or share.std() == 0:
        return {"n": 0}
    r = float(np.corrcoef(x, share)[0, 1])
    area = auc(x if r >= 0 else -x, correct[used] > 0)
    return {"n": 0} if area is None else {"n": len(x), "r": round(r, 4), "auc": area}


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    reference = {signal: f"{r:+.2f} {area:.2f} ({lag})" for signal, lag, r, area in REFERENCE}
    table = Table(
        title=f"{found['algorithm']} {found['draft']}: {found['rounds']:,} rounds of depth "
        f"{found['depth']}, {found['prompts']} prompts; r and AUC by lag in rounds",
        title_style="bold",
    )
    table.add_column("signal")
    for lag in LAGS:
        table.add_column(f"lag {lag}", justify="right")
    table.add_column("reference pair (lag)", justify="right")
    cells = {
        (row["signal"], row["lag"]): f"{row['r']:+.2f} {row['auc']:.2f}" for row in found["rows"]
    }
    for signal in dict.fromkeys(row["signal"] for row in found["rows"]):
        lags = [cells.get((signal, lag), "-") for lag in LAGS]
        table.add_row(signal, *lags, reference.get(signal, "-"))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


if __name__ == "__main__":
    typer.run(report)
