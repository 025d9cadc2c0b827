"""``examples/record_traces.py`` parses, and the depths it records are the default ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "record_traces.py"


def test_help_and_a_draft_that_is_none() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--draft" in shown.stdout and "--out" in shown.stdout
    missing = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert missing.returncode == 2 and "--draft" in missing.stderr
