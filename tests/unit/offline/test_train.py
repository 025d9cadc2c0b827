"""Training: held out by prompt, the same bytes from the same traces, and what it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sglang_speckv.config import ConfigError
from sglang_speckv.offline import fit_acceptance, fit_mlp
from sglang_speckv.offline.artifact import load_artifact
from sglang_speckv.offline.columns import Columns, read_columns
from sglang_speckv.offline.train import split_by_prompt, train
from tests.unit.offline.synthetic import Traffic, write_trace

TRAFFIC = Traffic(requests=40, prompts=20, rounds=50, depths=(7, 7, 1))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("trace") / "a.jsonl.gz", TRAFFIC.records())


@pytest.fixture(scope="module")
def columns(trace: Path) -> Columns:
    return read_columns([trace])


def test_prompts_are_on_one_side(columns: Columns) -> None:
    split = split_by_prompt(columns)
    assert len(split.train) + len(split.held_out) == len(columns)
    sides = [set(columns.prompt[rows].tolist()) for rows in (split.train, split.held_out)]
    assert not sides[0] & sides[1] and len(sides[1]) == 4


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    one = Traffic(requests=4, prompts=1, rounds=5, labels={"code": 0.0})
    with pytest.raises(ConfigError, match="one prompt"):
        train([write_trace(tmp_path / "a.jsonl.gz", one.records())])


def test_counts_are_censored(columns: Columns) -> None:
    rows = np.arange(len(columns))
    model = fit_acceptance.fit_acceptance(columns, rows)
    steps, correct = columns.num_steps, columns.num_correct_drafts
    judged = [((steps > i) & (correct >= i)).sum() for i in range(7)]
    assert model.labels.tolist() == judged
    accepted = [((steps > i) & (correct > i)).sum() for i in range(7)]
    shares = (np.array(accepted) + 0.5) / (np.array(judged) + 1.0)
    assert fit_acceptance.constant(columns, rows) == pytest.approx(shares.cumprod())


def test_rounds_that_were_cut_by_their_drafts_teach_what_whole_ones_do(columns: Columns) -> None:
    """Up to the first draft that was less sure than half, but for one round in four."""
    rows = np.arange(len(columns))
    sure = np.nan_to_num(columns.signals[:, :, 0]) > 0.5
    sure[columns.round % 4 == 0] = True
    widths = np.minimum(np.cumprod(sure, axis=1).sum(axis=1), columns.num_steps)
    correct = np.minimum(columns.num_correct_drafts, widths)
    cut = replace(columns, num_verified=widths, num_correct_drafts=correct)
    usual = {
        name: fit_acceptance.fit_acceptance(each, rows).survival(np.array([np.nan]))[0]
        for name, each in (("whole", columns), ("cut", cut))
    }
    assert usual["cut"] == pytest.approx(usual["whole"], abs=0.06)
    blind = replace(cut, num_verified=columns.num_steps)
    assert fit_acceptance.fit_acceptance(blind, rows).survival(np.array([np.nan]))[0][0] < 0.5


def test_calibrated_signals_are_found_calibrated(trace: Path) -> None:
    held_out = train([trace]).provenance["held_out"]
    first = held_out["acceptance"]["depths"][0]
    assert first["log_loss"] < 0.9 * first["log_loss_constant"]
    assert first["brier"] < 0.9 * first["brier_constant"]
    assert first["calibration_error"] < 0.08
    assert held_out["acceptance"]["auc_first_prob"] > 0.7
    assert held_out["mlp"]["mse"] < 0.8 * held_out["mlp"]["mse_constant"]


def test_without_signals_what_is_usual_is_learned(tmp_path: Path) -> None:
    silent = Traffic(requests=8, rounds=30, signal=False)
    artifact = train([write_trace(tmp_path / "a.jsonl.gz", silent.records())])
    assert artifact.mlp is None and artifact.acceptance is not None
    assert artifact.acceptance.labels[0] == 240 and artifact.acceptance.seen.max() == 1.0
    assert artifact.provenance["held_out"]["acceptance"]["auc_first_prob"] is None


def test_the_command_makes_the_same_bytes_twice(trace: Path, tmp_path: Path) -> None:
    from sglang_speckv.cli import app

    runs = []
    for name in ("one", "two"):
        out = tmp_path / name / "artifact.safetensors"
        result = CliRunner().invoke(app, ["train", str(trace), "-o", str(out)])
        assert result.exit_code == 0, result.output
        runs.append(out.read_bytes())
    assert runs[0] == runs[1]
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["prompts"] == 20 and summary["cost"][0]["num_steps"] == 1
    loaded = load_artifact(tmp_path / "one" / "artifact.safetensors")
    assert loaded.identity["draft"] == "draft" and loaded.mlp is not None


def test_a_bad_target_is_refused_before_training(tmp_path: Path) -> None:
    from sglang_speckv.cli import app

    asked = ["train", str(tmp_path / "no trace"), "-o", str(tmp_path / "artifact")]
    assert "a file named *.safetensors" in str(CliRunner().invoke(app, asked).exception)


def test_area_under_the_curve() -> None:
    score = np.array([0.1, 0.2, 0.3, 0.4])
    assert fit_acceptance.auc(score, np.array([False, False, True, True])) == 1.0
    assert fit_acceptance.auc(score, np.array([True, False, False, True])) == 0.5
    assert fit_acceptance.auc(np.ones(4), np.array([True, False, False, True])) == 0.5
    assert fit_acceptance.auc(score, np.ones(4, dtype=bool)) is None


def test_the_predictor_learns_a_line() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((2000, 6))
    data = fit_mlp.Windows(features, 0.1 + 0.6 * features[:, 1])
    weights = fit_mlp.fit_mlp(data)
    assert weights is not None
    assert fit_mlp.evaluate(weights, data)["mse"] < 0.001
    assert fit_mlp.fit_mlp(fit_mlp.Windows(features[:50], features[:50, 0])) is None


def test_a_deep_round_is_a_window_of_every_depth(columns: Columns) -> None:
    rows = np.flatnonzero(columns.num_steps == 7)[:5]
    data = fit_mlp.windows(columns, rows)
    assert data.features[:, 5].tolist() == np.repeat(np.arange(1.0, 8.0), 5).tolist()
    assert (data.features[:, 4] == 0).all()
    first, correct = columns.signals[rows, 0], columns.num_correct_drafts[rows]
    assert data.features[:5, :4] == pytest.approx(first[:, [1, 0, 1, 0]])
    assert data.rates.tolist() == [
        float(min(c, k) / k) for k in range(1, 8) for c in correct.tolist()
    ]
    shallow = fit_mlp.windows(columns, np.flatnonzero(columns.num_steps == 1)[:5])
    assert len(shallow.rates) == 5
