"""``examples/replay_table.py``, and what it committed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.replay_table import SHOWN, rows_of
from sglang_speckv.offline.records import trace_hashes
from sglang_speckv.replay.positions import write_positions
from sglang_speckv.replay.run import ReplayOptions
from tests.unit.replay.answers import positions

ROOT = Path(__file__).parents[2]
RECOMPUTED = (16,)


def test_the_script(tmp_path: Path) -> None:
    made, file, out = positions(requests=20), tmp_path / "p.safetensors", tmp_path / "table.json"
    write_positions(file, made.source, [20] * 20, made.start, made.correct, made.signals)
    command = [
        sys.executable,
        str(ROOT / "examples" / "replay_table.py"),
        str(file),
        *("--draft-cost", "0.1", "--seeds", "1", "--passes", "1", "--out", str(out)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    written = json.loads(out.read_text())
    assert written["rows"] == rows and written["positions"] == trace_hashes([file])
    loads = [(row["requests"], row["traffic"]) for row in rows]
    assert loads == [*((n, "mixed") for n in (1, 2, 4, 16)), (4, "phases"), (16, "phases")]
    for row in rows:
        low, high = row["arms"]["throughput"]["interval"]
        assert low <= row["arms"]["throughput"]["vs_best_fixed"] <= high
        assert row["arms"]["oracle"]["of_oracle"] == 1 and set(SHOWN) <= set(row["arms"])
        assert row["arms"][row["best_fixed"]]["vs_best_fixed"] is None


@pytest.mark.parametrize("draft", ["eagle3", "standalone"])
def test_the_committed_table_is_what_this_code_computes(draft: str) -> None:
    """Where it is not, run examples/replay_table.py --out again, and the table in docs/offline.md
    with it. Another processor may round a time otherwise and so move a figure by a thousandth."""
    examples = ROOT / "examples"
    told = json.loads((examples / "results" / f"replay-{draft}.json").read_text())
    path, cost = examples / "positions" / f"{draft}.safetensors", examples / "traces" / draft
    assert told["positions"] == trace_hashes([path]) and told["cost"] == trace_hashes([cost])
    committed = {
        row["requests"]: row
        for row in told["rows"]
        if row["draft_cost"] is None and row["traffic"] == "mixed"
    }
    options = ReplayOptions(
        (path,),
        ("throughput", "ema"),
        cost=cost,
        requests=RECOMPUTED,
        seeds=told["seeds"],
        passes=told["passes"],
    )
    for new in rows_of(options):
        old = committed[new["requests"]]
        assert new["best_fixed"] == old["best_fixed"]
        for arm, now in new["arms"].items():
            then = old["arms"][arm]
            assert now["vs_best_fixed"] == pytest.approx(then["vs_best_fixed"], abs=2e-3), arm
            assert now["interval"] == pytest.approx(then["interval"], abs=2e-3), arm
            assert now["of_oracle"] == pytest.approx(then["of_oracle"], abs=2e-3), arm
