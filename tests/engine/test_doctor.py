"""``speckv doctor`` answers whatever it is asked; settings are the same by every way in."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_speckv.cli import app
from sglang_speckv.srt import carrier
from sglang_speckv.srt.engine import prepare, with_speckv
from sglang_speckv.srt.serve import diagnose
from tests.engine.conftest import flags

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", autouse=True)
def _sglang(tmp_path_factory: pytest.TempPathFactory) -> None:
    prepare()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        (["--speckv-policy", "nonsense"], "'nonsense'"),
        (["--speckv-candidate-steps", "1,x"], "'1,x'"),
        (["--speckv-candidate-steps", "1,99"], "99"),
        (["--speckv-profile", "soon"], "soon"),
        (["--speckv", "nowhere"], "'nowhere'"),
        (["--speckv", "true"], "--speckv true"),
        (["--speckv", "--speculative-adaptive-config", "/nowhere.json"], "/nowhere.json"),
        (["--speckv-trace", "/dev/null/trace"], "/dev/null/trace"),
        (["--speckv", "--no-such-flag", "3"], "--no-such-flag"),
        (["--speckv", "--tp-size", "two"], "two"),
        (["--speckv", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_doctor_answers_in_json(models: dict[str, str], extra: list[str], names: str) -> None:
    asked = ["doctor", "--json", *flags(models, "STANDALONE", "alike"), *extra]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["adaptive"] is False
    assert names in report["problem"]


def test_a_switch_that_is_none(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECKV_CPU", "yes")
    assert (
        "SPECKV_CPU='yes'"
        in diagnose([*flags(models, "STANDALONE", "alike"), "--speckv"])["problem"]
    )


def resolved_trace(models: dict[str, str], adaptive_config: str) -> str | None:
    """The trace folder that a scheduler would be told."""
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import ServerArgs

    asked = with_speckv(
        None,
        {
            "model_path": models["target"],
            "speculative_algorithm": "STANDALONE",
            "speculative_draft_model_path": models["alike"],
        },
    )
    record = ServerArgs(**{**asked, "speculative_adaptive_config": adaptive_config})
    record.resolve_once()
    config = carrier.read(resolving_view(record).speculative_adaptive_config)
    assert config is not None
    return config.trace


def test_a_trace_asked_for_in_json(models: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "asked.json"
    config.write_text(json.dumps({"speckv": {"trace": "new/trace"}}))
    assert resolved_trace(models, str(config)) == os.path.join(tmp_path, "new", "trace")
    assert (tmp_path / "new" / "trace").is_dir()


def test_a_trace_in_json_that_cannot_be_written(models: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "asked.json"
    config.write_text(json.dumps({"speckv": {"trace": "/dev/null/trace"}}))
    with pytest.raises(ValueError, match="/dev/null/trace"):
        resolved_trace(models, str(config))
