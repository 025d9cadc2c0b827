"""``examples/replay_table.py`` on the committed trace of a real pair."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
