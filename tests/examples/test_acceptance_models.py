"""``examples/acceptance_models.py`` on the committed trace of a real pair."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_models_are_judged_on_prompts_they_have_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location(
        "acceptance_models", ROOT / "examples" / "acceptance_models.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "MODELS", ("constant", "table", "logistic"))
    script.main([ROOT / "examples" / "traces" / "eagle3"], tmp_path / "models.json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "models.json").read_text()) == told
    assert told["brier"]["table"] < told["brier"]["constant"]
    assert told["tok_per_s_vs_best_static"]
    for row in told["tok_per_s_vs_best_static"].values():
        assert set(row) == {"constant", "table", "logistic"}
        assert all(0.95 < low <= value <= high for value, low, high in row.values())
