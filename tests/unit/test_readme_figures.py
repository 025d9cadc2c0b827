"""The README's figures are those of the committed results."""

import importlib.util
import json
from pathlib import Path

import pytest

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
