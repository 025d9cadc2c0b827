"""The README's figures are those of the committed result."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "results"


def test_the_table_is_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("readme_table", RESULTS / "readme_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = json.loads((RESULTS / "demo-cpu.json").read_text())
    assert module.table(result) in (ROOT / "README.md").read_text()
