"""The figures in README and docs are those of the committed results."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import ablation
from examples.replay_table import ONE_DEPTH
from examples.results import readme_table
from sglang_speckv.ab.tables import markdown, tables
from sglang_speckv.provenance import code_digest
from sglang_speckv.replay.report import of_best

ROOT = Path(__file__).parents[2]
COMPUTED_AGAIN = {
    *("signals.json", "paper.json", "coverage.json", "ablation.json"),
    "ablation-constants.json",
    *("replay-eagle3.json", "replay-standalone.json"),
}
"""By a test of their own, from what is committed or by the digest of what decides."""
RESULTS = ROOT / "examples" / "results"


@pytest.mark.parametrize("result", ["demo-cpu.json", "signals.json"])
def test_the_tables_are_the_committed_results(result: str) -> None:
    drawn = readme_table.tables(json.loads((RESULTS / result).read_text()))
    page = (ROOT / "docs" / "results.md").read_text()
    assert drawn and all(table in page for table in drawn)


def test_the_summary_is_of_the_committed_results() -> None:
    assert readme_table.summary(RESULTS) in (ROOT / "README.md").read_text()


def test_the_sweep_is_the_committed_result() -> None:
    """Over all loads on one page, load by load on another."""
    whole, page = ((ROOT / "docs" / name).read_text() for name in ("results.md", "sweep.md"))
    drawn = list(tables(json.loads((RESULTS / "ab-cpu-sweep.json").read_text())))
    assert len(drawn) == 8
    for title, columns, records in drawn:
        assert markdown(columns, records) in (whole if title.endswith("all loads") else page)


def test_the_sweep_on_held_out_prompts_is_the_committed_result() -> None:
    page = (ROOT / "docs" / "sweep.md").read_text()
    found = json.loads((RESULTS / "ab-cpu-held-out.json").read_text())
    drawn = [markdown(columns, records) for _, columns, records in tables(found)]
    assert len(drawn) == 8 and all(table in page for table in drawn)
    assert all(answer in page for answer in found["answers"])


@pytest.mark.parametrize("result", ["demo-cpu.json", "ab-cpu-sweep.json"])
def test_the_answers_are_the_committed_results(result: str) -> None:
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    for answer in json.loads((RESULTS / result).read_text())["answers"]:
        assert answer in page


def test_figures_of_code_that_has_moved_on_are_marked() -> None:
    """A measured figure is of the code that its file records; where policy or engine side have
    changed since, the page of results says so beside the file's name."""
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    pages = (ROOT / "README.md").read_text() + page
    for path in RESULTS.glob("*.json"):
        provenance = json.loads(path.read_text())["provenance"]
        now = {room: code_digest(room) for room in provenance.get("code", {})}
        shown = f"examples/results/{path.name}" in pages and path.name not in COMPUTED_AGAIN
        if shown and now != provenance.get("code"):
            assert f"`{path.stem}` ({(provenance['git'] or 'unknown')[:7]})" in page, path.name


def test_the_papers_figures() -> None:
    """They need records that are not committed, so what can be seen here is whether the code that
    they are of has moved on: then run examples/reproduce_paper.py --output again."""
    found = json.loads((RESULTS / "paper.json").read_text())
    assert found["provenance"]["code"]["policy"] == code_digest("policy")
    told = ", ".join(f"{v:+.1f}" for v in found["throughput_vs_best_static_pct"].values())
    assert f"cross-fitted by prompt: {told} % at" in (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_provenance_is_a_readers(path: Path) -> None:
    """No path of the machine that it was made on, and what makes it could be typed again."""
    command = json.loads(path.read_text())["provenance"]["command"]
    assert not [word for word in command if re.match(r"(.*=)?(/|~/(?!\.cache/sglang))", word)]


def test_the_coverage_of_intervals() -> None:
    found = json.loads((RESULTS / "coverage.json").read_text())
    shares = [100 * row["covered"] for row in found["coverage"]]
    text = (ROOT / "docs" / "ab.md").read_text()
    assert f"in {min(shares):.1f} to {max(shares):.1f} % of runs" in text
    assert "fewer than one run in a thousand" in text
    assert max(row["overstated"] for row in found["lower_bound"]) < 1e-3


@pytest.mark.parametrize("draft", ["eagle3", "standalone"])
def test_the_replayed_table(draft: str) -> None:
    lines = (ROOT / "docs" / "offline.md").read_text().splitlines()
    rows = json.loads((RESULTS / f"replay-{draft}.json").read_text())["rows"]
    measured = [row for row in rows if row["draft_cost"] is None]
    assert len(measured) == sum(line.startswith(f"| {draft} | ") for line in lines) > 0
    for row in measured:
        best = row["best_fixed"].removeprefix("static:")
        others = (ONE_DEPTH, "throughput_aware", "ema", "confidence", "oracle")
        ratios = " | ".join(f"{row['arms'][arm]['vs_best_fixed']:.3f}" for arm in others)
        start = f"| {draft} | {row['requests']} | {row['traffic']} | {best} | "
        assert f"{start}{of_best(row['arms']['throughput'])} | {ratios} |" in lines


@pytest.mark.parametrize("draft", ["eagle3", "standalone"])
def test_the_table_of_captured_rounds(draft: str) -> None:
    """Of the policy as it is: else run the command again that the file records."""
    lines = (ROOT / "docs" / "offline.md").read_text().splitlines()
    found = json.loads((RESULTS / f"replay-captured-{draft}.json").read_text())
    assert found["provenance"]["code"]["policy"] == code_digest("policy")
    for cell in found["cells"]:
        arms = {arm["arm"]: arm for arm in cell["arms"]}
        told = [of_best(arms[name]) for name in ("throughput", "throughput,stop=off")]
        best = cell["best_fixed"].removeprefix("static:")
        assert f"| {draft}, captured | {cell['requests']} | {best} | {' | '.join(told)} |" in lines


@pytest.mark.parametrize(("result", "parts"), [("ablation", 24), ("ablation-constants", 13)])
def test_the_ablation_tables(result: str, parts: int) -> None:
    found = json.loads((RESULTS / f"{result}.json").read_text())
    text = (ROOT / "docs" / "experiments.md").read_text()
    rows = [row for row in ablation.table(found).splitlines() if row[2].islower()]
    assert len(rows) == parts + 1  # and the heading
    assert [row for row in rows if row not in text] == []


def test_what_trees_gain() -> None:
    """Over the best fixed chain at one request, as the README and the page of results say it."""
    cells = json.loads((RESULTS / "ab-cpu-trees.json").read_text())["cells"]
    alone = {cell["arm"]: cell for cell in cells if cell["concurrency"] == 1}
    chains = [arm for arm in alone if arm.startswith("static:")]
    best = max(chains, key=lambda arm: alone[arm]["tok_per_s"])
    over = alone["speckv:topk4"]["over"][best]
    low, high = over["interval"]
    told = f"{over['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    for page in ("README.md", "docs/results.md"):
        assert told in (ROOT / page).read_text(), page
