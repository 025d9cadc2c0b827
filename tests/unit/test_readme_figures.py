"""The figures in README and docs are those of the committed results."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from sglang_speckv.provenance import code_digest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "results"


@pytest.mark.parametrize(
    ("result", "maker"),
    [
        ("demo-cpu.json", "table"),
        ("ab-cpu-sweep.json", "sweep_table"),
        ("signals.json", "signals_table"),
    ],
)
def test_the_tables_are_the_committed_results(result: str, maker: str) -> None:
    spec = importlib.util.spec_from_file_location("readme_table", RESULTS / "readme_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = json.loads((RESULTS / result).read_text())
    assert getattr(module, maker)(found) in (ROOT / "README.md").read_text()


def test_the_papers_figures() -> None:
    """They need records that are not committed, so what can be seen here is whether the code that
    they are of has moved on: then run examples/reproduce_paper.py --output again."""
    found = json.loads((RESULTS / "paper.json").read_text())
    assert found["provenance"]["code"]["policy"] == code_digest("policy")
    told = ", ".join(f"{v:+.1f}" for v in found["throughput_vs_best_static_pct"].values())
    assert f"cross-fitted by prompt: {told} % at" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_provenance_is_a_readers(path: Path) -> None:
    """No path of the machine that it was made on, and what makes it could be typed again."""
    command = json.loads(path.read_text())["provenance"]["command"]
    assert not [word for word in command if re.match(r"(.*=)?(/|~/(?!\.cache/sglang))", word)]


def test_the_coverage_of_intervals() -> None:
    found = json.loads((RESULTS / "coverage.json").read_text())
    shares = [100 * row["covered"] for row in found["coverage"]]
    text = (ROOT / "docs" / "ab.md").read_text()
    assert f"in {min(shares):.0f} to {max(shares):.0f} % of runs" in text
    assert "fewer than one run in a thousand" in text
    assert max(row["overstated"] for row in found["lower_bound"]) < 1e-3


@pytest.mark.parametrize("draft", ["eagle3", "standalone"])
def test_the_replayed_table(draft: str) -> None:
    lines = (ROOT / "docs" / "offline.md").read_text().splitlines()
    rows = json.loads((RESULTS / f"replay-{draft}.json").read_text())["rows"]
    recorded = [row for row in rows if row["draft_cost"] is None]
    assert len(recorded) == sum(line.startswith(f"| {draft} | ") for line in lines) > 0
    for row in recorded:
        value, low, high = row["arms"]["throughput"]["of_best_static"]
        best = row["best_static"].removeprefix("static:")
        others = ("throughput_aware", "ema", "confidence", "oracle")
        ratios = " | ".join(f"{row['arms'][arm]['of_best_static'][0]:.3f}" for arm in others)
        start = f"| {draft} | {row['batch']} | {row['traffic']} | {best} | "
        assert f"{start}{value:.3f} [{low:.3f}, {high:.3f}] | {ratios} |" in lines
