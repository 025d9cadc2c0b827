"""``examples/replay_table.py`` on the committed trace of a real pair."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.replay_table import GROUPINGS, _row

ROOT = Path(__file__).parents[2]


def test_the_committed_trace_replays(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    command = [
        sys.executable,
        str(ROOT / "examples" / "replay_table.py"),
        str(ROOT / "examples" / "traces" / "eagle3"),
        *("--draft-cost", "0.1", "--out", str(out)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert json.loads(out.read_text())["rows"] == rows
    assert [(row["batch"], row["traffic"]) for row in rows[:2]] == [(1, "mixed"), (4, "mixed")]
    for row in rows:
        value, low, high = row["arms"]["throughput"]["of_best_static"]
        assert 0.95 < low <= value <= high
        assert row["arms"]["oracle"]["regret"] == 0


@pytest.mark.parametrize("draft", ["eagle3", "standalone"])
def test_the_committed_table_is_what_this_code_computes(draft: str) -> None:
    """Where it is not, run examples/replay_table.py --out again, and the table in docs/offline.md
    with it. Another processor may round a time otherwise and so move a figure by a thousandth."""
    results = ROOT / "examples" / "results" / f"replay-{draft}.json"
    committed = [r for r in json.loads(results.read_text())["rows"] if r["draft_cost"] is None]
    traces = (ROOT / "examples" / "traces" / draft,)
    for old, (size, traffic) in zip(committed, GROUPINGS, strict=True):
        new = _row(traces, None, old["verify_width"], size, traffic)
        assert (new["best_static"], new["batch"]) == (old["best_static"], old["batch"])
        for arm, told in old["arms"].items():
            now = new["arms"][arm]["of_best_static"]
            assert now == pytest.approx(told["of_best_static"], abs=2e-3), (arm, size, traffic)
