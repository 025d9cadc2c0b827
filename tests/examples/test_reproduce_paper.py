"""The paper example on a small table of the same schema: all figures there, and sane."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from paper import formula, lagged, measured, published  # noqa: E402
from paper.records import DataError, Records, load  # noqa: E402

TASKS = ("code", "chat")
BASE_MS = {"fp16": 20.0, "int8": 90.0, "nf4": 36.0}


def write_records(folder: Path) -> Path:
    """Windows of easy and of hard text that last for some rounds; confidence tells which."""
    rng = np.random.default_rng(0)
    steps, runs = [], []
    for compression, base in BASE_MS.items():
        for gamma in (2, 4, 6, 8):
            for task in TASKS:
                for prompt in range(5):
                    count, easy, tokens = 12, True, 0
                    for step in range(count):
                        easy = easy if rng.random() < 0.8 else not easy
                        survives = rng.random(gamma) < (0.95 if easy else 0.4)
                        accepted = int(np.cumprod(survives).sum())
                        confidence = float(rng.uniform(0.7, 0.9) if easy else rng.uniform(0.2, 0.5))
                        steps.append({
                            "compression": compression, "gamma": gamma, "task": task, "step": step,
                            "accepted": accepted, "acceptance_rate": accepted / gamma,
                            "tokens_produced": accepted + 1,
                            "mean_draft_entropy": 2 - 2 * confidence,
                            "mean_draft_confidence": confidence,
                            "max_draft_entropy": 3 - 2 * confidence,
                            "min_draft_confidence": confidence - 0.1,
                        })  # fmt: skip
                        tokens += accepted + 1
                    runs.append({
                        "compression": compression, "gamma": gamma, "task": task,
                        "prompt": f"{task} {prompt}", "num_tokens": tokens,
                        "elapsed_sec": count * (base + 10 * gamma) / 1e3,
                    })  # fmt: skip
    for name, rows in (
        ("phase2_step_results.csv", steps),
        ("phase2_experiment_results.csv", runs),
    ):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def records(data: Path) -> Records:
    return load(data)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run_script(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["reproduce_paper.py", *arguments])
        runpy.run_path(str(ROOT / "examples/reproduce_paper.py"), run_name="__main__")

    return run_script


def test_the_script_prints_all_figures(
    run: Callable[..., None], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names those that are not the committed ones: these records are not the paper's."""
    asked = ("--json", "--output", str(tmp_path / "paper.json"), "--check")
    with pytest.raises(SystemExit, match=r"data, tokens_per_step.* moved on; write them with"):
        run("--data", str(data), *asked)
    said = capsys.readouterr()
    assert "tokens_per_step: committed {'paper': 5.82" in said.err
    result = json.loads(said.out.splitlines()[-1])
    assert set(result) == {
        "data",
        "tokens_per_step",
        "share_gamma8",
        "tok_per_s_vs_best_static_pct",
        "throughput_vs_best_static_pct",
        "batches_vs_best_static_pct",
        "formula",
    }
    assert all(len(digest) == 64 for digest in result["data"].values())
    assert set(result["tokens_per_step"]) == {"paper", "fixed4", "fixed8"}
    assert set(result["tok_per_s_vs_best_static_pct"]) == set(BASE_MS)
    assert set(result["throughput_vs_best_static_pct"]) == {
        "0.03", "0.10", "0.12", "0.25", "0.29", "0.52",
    }  # fmt: skip
    assert {c: set(row) for c, row in result["formula"].items()} == {
        name: {"4", "8"} for name in ("FP16", "INT8", "NF4")
    }
    stored = json.loads((tmp_path / "paper.json").read_text())
    assert stored["formula"] == result["formula"]
    assert set(stored["provenance"]["code"]) == {"policy", "srt"}


@pytest.mark.parametrize("broken", ["none", "empty", "other columns", "one run short"])
def test_other_data_are_refused_in_one_sentence(
    run: Callable[..., None],
    data: Path,
    tmp_path: Path,
    broken: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("phase2_step_results.csv", "phase2_experiment_results.csv"):
        lines = (data / name).read_text().splitlines()
        lines = {"empty": [], "other columns": ["a,b", "1,2"], "one run short": lines}.get(broken)
        if lines is not None:
            keep = (
                lines[:-1] if name.startswith("phase2_exp") and broken == "one run short" else lines
            )
            (tmp_path / name).write_text("\n".join(keep))
    with pytest.raises(DataError):
        load(tmp_path)
    if broken == "none":
        with pytest.raises(SystemExit) as end:
            run("--data", str(tmp_path))
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert said.count("\n") == 1 and "download" in said


def test_matched_replay_of_a_fixed_choice_is_that_choice(records: Records) -> None:
    always = measured.measure(records, "nf4", np.full(len(records.gamma), 4))
    assert always.policy_tok_per_s == pytest.approx(always.tok_per_s[4], rel=1e-6)
    assert always.fixed_ms == pytest.approx(36.0, abs=0.01)
    assert always.cost_ratio == pytest.approx(10 / 36, rel=1e-3)


def test_the_published_score_asks_the_predictor_itself(records: Records) -> None:
    found = published.reproduce(records)
    assert np.all(found.policy >= np.maximum(found.fixed(4), found.fixed(8)) - 1e-12)
    assert sum(found.importances.values()) == pytest.approx(1.0)


def test_the_last_window_pays_where_drafting_is_dear(records: Records) -> None:
    rounds = lagged.rounds_of(records, folds=5)
    gain = lagged.replay(rounds, 0.29)
    assert gain.policy > 1.0
    assert gain.policy < gain.clairvoyant
    assert gain.shares.sum() == pytest.approx(1.0)


def test_a_batch_dilutes_mixed_content(records: Records) -> None:
    rounds = lagged.rounds_of(records, folds=2)
    one = lagged.replay_batches(rounds, 1, phased=False, length=150)
    many = lagged.replay_batches(rounds, 16, phased=False, length=150)
    assert one.policy > many.policy


def test_one_rate_is_wrong_where_requests_differ() -> None:
    half_easy = np.array([0.75, 0.5, 0.5, 0.5])
    rate = formula.one_rate(half_easy)
    assert formula.expected_tokens(rate, 4) != pytest.approx(1 + half_easy.sum(), rel=0.01)
    steady = 0.8 ** np.arange(1, 5)
    assert formula.expected_tokens(formula.one_rate(steady), 4) == pytest.approx(1 + steady.sum())
    assert formula.expected_tokens(1.0, 4) == 5.0
