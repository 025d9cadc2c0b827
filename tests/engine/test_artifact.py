"""What a person does: record a trace, train an artifact from it, serve with that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sglang_speckv.cli import app
from tests.engine.conftest import (
    PAIRS,
    PROFILE_S,
    PROMPTS,
    STEPS,
    Serving,
    flags,
    on_pairs,
    serving,
)
from tests.engine.test_signals import records_of
from tests.forked import call

pytestmark = [pytest.mark.engine, on_pairs("eagle3")]


@pytest.fixture(scope="module")
def artifact(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> Path:
    server.pin(max(STEPS))
    for number, prompt in enumerate(PROMPTS):
        sampling = {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True}
        asked = {"text": prompt, "rid": f"any:{number}:0", "sampling_params": sampling}
        server.post("/generate", asked)
    server.pin(-1)
    records_of(server)  # waits until all is on disk
    out = tmp_path_factory.mktemp("trained") / "artifact.safetensors"
    done = CliRunner().invoke(app, ["train", str(server.trace), "-o", str(out)])
    assert done.exit_code == 0, done.output
    return out


def test_it_is_served(
    artifact: Path,
    models: dict[str, str],
    plain_answers: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also once it is deleted, and the file of settings with it."""
    mine = Path(shutil.copy(artifact, tmp_path))
    asked = ["--speckv", str(mine), "--speckv-candidate-steps", ",".join(map(str, STEPS))]
    asked += ["--speckv-profile", PROFILE_S]
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path / "cache"))
    with serving(tmp_path, *flags(models, *PAIRS["eagle3"]), *asked) as running:
        before = running.speckv()["policy_state"]
        assert before["labels"][0] > before["rounds"] + 20  # SGLang's warm-up is served already
        assert before["timed_rounds"] > before["rounds"]
        (settings,) = (tmp_path / "cache" / "configs").iterdir()
        for file in (mine, settings):
            file.unlink()
        for policy in ("throughput", "paper", "throughput#2", "paper:throughput"):
            running.select(policy)
            assert running.tokens(PROMPTS) == plain_answers["batch"]
        after = running.speckv()
        assert after["fallbacks"] == 0 and after["failures"] == {}


def test_another_pair_refuses_it(artifact: Path, models: dict[str, str], tmp_path: Path) -> None:
    asked = [*flags(models, "STANDALONE", "alike"), "--speckv", str(artifact)]
    _, said = call("sglang_speckv", tmp_path / "log", "doctor", "--json", *asked)
    report = json.loads(said.splitlines()[-1])
    assert "draft 'eagle3' (here 'alike')" in report["problem"]
