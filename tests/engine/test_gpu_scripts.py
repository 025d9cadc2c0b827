"""The scripts of ``examples/gpu``, run whole on the CPU engine with tiny models."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import call

pytestmark = pytest.mark.engine
FOLDER = Path(__file__).parents[2] / "examples" / "gpu"
at_length = pytest.mark.skipif(
    os.environ.get("SPECKV_REHEARSE") == "1", reason="make rehearse runs it"
)
SHORT = ["--server-flag=--speckv-profile", "--server-flag=2"]
FEWER = ["--server-flag=--speckv-candidate-steps", "--server-flag=0,1,3"]
TINY = "--layers 2 --hidden 256 --vocab 1024 --dtype float32 --draft standalone --compression plain"


@pytest.fixture
def told_by(
    forked_servers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """The JSON object that a script ends with."""

    def told(script: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(FOLDER / script), run_name="__main__")
        assert not end.value.code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return told


@pytest.fixture
def forked_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`speckv doctor`, which a script starts as a process."""
    run = subprocess.run

    def run_forked(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if command[1:3] != ["-m", "sglang_speckv"]:
            return run(command, **options)
        code, said = call(command[2], tmp_path / "log", *command[3:], timeout_s=options["timeout"])
        return subprocess.CompletedProcess(command, code, said, "")

    monkeypatch.setattr(subprocess, "run", run_forked)


@at_length
def test_smoke(models: dict[str, str], told_by: Callable[..., Any], forked_doctor: None) -> None:
    pair = ["--target", models["target"], "--draft", f"EAGLE3={models['eagle3']}"]
    told = told_by("smoke.py", *pair, *SHORT, *FEWER)
    (draft,) = told["drafts"].values()
    assert told["ok"] and all(draft["checks"].values())
    assert draft["switches"] > 0 and draft["signal_ages"]


@at_length
def test_overhead(models: dict[str, str], told_by: Callable[..., Any]) -> None:
    pair = ["--target", models["target"], "--draft", f"STANDALONE={models['alike']}"]
    told = told_by("overhead.py", *pair, *SHORT, "--batch-size", "1", "--tokens", "64")
    (row,) = told["tap"]
    assert 0 < row["host_share"] < 1 and told["switch_microseconds"] > 0


@at_length
def test_cost_curves(tmp_path: Path, told_by: Callable[..., Any]) -> None:
    cells = ["--batch-size", "2", "--context", "32", "--steps", "0,1", "--rounds", "8"]
    told = told_by("cost_curves.py", *TINY.split(), *cells, "--out", str(tmp_path / "cost.json"))
    off, draft = told["servers"]
    assert [cell["num_steps"] for cell in off["cells"]] == [-1]
    found = [(cell["num_steps"], cell["asleep"]) for cell in draft["cells"]]
    assert found == [(0, False), (1, False), (0, True)]
    (table,) = tmp_path.glob("cost.standalone.plain.32.json")
    rows = json.loads(table.read_text())["rows"]
    assert [row["num_steps"] for row in rows] == [-1, 0, 1]
