"""``sglang_speckv.Engine`` and ``Runtime``, and stock classes with the JSON key.

The engine is also where NEXTN is served: SGLang's other name for EAGLE, with the same head.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sglang_speckv.offline.records import read_trace
from tests.engine.conftest import ALL, PROMPTS, TOKENS
from tests.forked import call

pytestmark = pytest.mark.engine
MAX_CONTEXT = 40
"""Some prompts are longer from the beginning, some answers come to be."""


def run(
    kind: str, speckv: dict[str, Any], arguments: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """What :mod:`tests.engine.in_python` prints at last. ``Runtime`` is forked; ``Engine`` spawns
    every process, as it does for a user."""
    asked = [str(folder), kind, *map(json.dumps, (speckv, arguments, PROMPTS, TOKENS))]
    log = folder / "log"
    if kind == "Runtime":
        code, said = call("tests.engine.in_python", log, *asked)
    else:
        command = [sys.executable, str(Path(__file__).with_name("in_python.py")), *asked]
        with log.open("wb") as file:
            code = subprocess.call(command, stdout=file, stderr=file, timeout=300)
        said = log.read_text()
    assert code == 0, said[-3000:]
    return json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))


def arguments(models: dict[str, str], algorithm: str, draft: str) -> dict[str, Any]:
    return {
        "model_path": models["target"],
        "speculative_algorithm": algorithm,
        "speculative_draft_model_path": models[draft],
        "max_total_tokens": 4096,
    }


@pytest.mark.parametrize(
    ("kind", "algorithm", "draft"),
    [
        pytest.param(
            *("Engine", "NEXTN", "eagle2"),
            marks=pytest.mark.skipif(not ALL, reason="spawns for a minute: make exact"),
        ),
        ("Runtime", "STANDALONE", "alike"),
    ],
)
def test_serves_losslessly(
    kind: str,
    algorithm: str,
    draft: str,
    models: dict[str, str],
    plain_answers: dict[str, Any],
    tmp_path: Any,
) -> None:
    asked = arguments(models, algorithm, draft)
    settings = {"candidate_steps": [0, 2], "policy": "static:2"}
    settings |= {"profile_seconds": 1, "trace": "new/trace", "max_context": MAX_CONTEXT}
    shown = run(kind, settings, asked, tmp_path)
    speckv = shown["state"]["speckv"]
    assert shown["tokens"] == plain_answers["batch"]
    assert speckv["candidate_steps"] == [0, 2]
    assert speckv["profile"] and speckv["rounds"]["2"] > 0
    assert 0 < speckv["correct_drafts"] < speckv["proposed_drafts"]
    (trace,) = (tmp_path / "new" / "trace").iterdir()
    _, records = read_trace(trace)
    verified = [
        (record.context_len, record.num_steps if (n := record.num_verified) is None else n)
        for record in records
    ]
    assert {drafts for _, drafts in verified} == {0, 2}
    assert all((drafts == 0) == (length > MAX_CONTEXT) for length, drafts in verified)
