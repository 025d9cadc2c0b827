"""``examples/signals_report.py`` finds on synthetic traces what was put into them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.offline.synthetic import Traffic, write_trace

SCRIPT = Path(__file__).parents[2] / "examples" / "signals_report.py"


def report(*traces: Path) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), *map(str, traces)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "accepted length" in done.stdout, "which every trace has"
    return json.loads(done.stdout.splitlines()[-1])


def test_each_signal_by_lag_and_draft(tmp_path: Path) -> None:
    told = write_trace(tmp_path / "a.jsonl.gz", Traffic(requests=40, depths=(7, 7, 3)).records())
    silent = Traffic(requests=8, signal=False, depths=(3,))
    mute = write_trace(tmp_path / "b.jsonl.gz", silent.records())
    first, second = report(told, mute)["drafts"]
    assert first["depth"] == 7 and first["rounds"] == pytest.approx(40 * 40 * 2 / 3, rel=0.01)
    rows = {(row["signal"], row["lag"]): row for row in first["rows"]}
    fresh = rows["first-token probability", 0]
    assert fresh["auc"] > 0.7 and fresh["r"] > 0.3
    assert rows["first-token entropy", 0]["r"] == pytest.approx(-fresh["r"], abs=1e-3)
    assert rows["first-token probability", 1]["auc"] < fresh["auc"], "one round on it is worth less"
    assert ("accepted length", 0) not in rows and ("accepted length", 1) in rows
    assert {row["signal"] for row in second["rows"]} == {"accepted length"}


def test_the_committed_figures_are_what_this_code_computes() -> None:
    """Where they are not, run examples/signals_report.py again, and the README's table with it."""
    root = SCRIPT.parents[1]
    committed = json.loads((root / "examples" / "results" / "signals.json").read_text())["drafts"]
    traces = root / "examples" / "traces"
    for old, new in zip(
        committed, report(traces / "eagle3", traces / "standalone")["drafts"], strict=True
    ):
        for told, now in zip(old["rows"], new["rows"], strict=True):
            assert (now["signal"], now["lag"]) == (told["signal"], told["lag"])
            assert (now["r"], now["auc"]) == pytest.approx((told["r"], told["auc"]), abs=2e-3)
