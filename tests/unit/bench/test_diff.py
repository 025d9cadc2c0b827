"""Two results side by side."""

import json
from pathlib import Path

import pytest

from sglang_speckv.bench.diff import compare_files
from sglang_speckv.config import ConfigError


def results(path: Path, seconds: float, arm: str = "speckv", **more: object) -> Path:
    blocks = [
        {"prompts": [f"p{i}"], "tokens": 10, "seconds": seconds * (1 + 0.01 * i)} for i in range(5)
    ]
    cell = {
        "draft": "eagle3",
        "arm": arm,
        "workload": "mixed",
        "concurrency": 4,
        "rate": None,
        "tok_per_s": 10 / seconds,
        "vs_best_static": 0.99,
        "accept_length": 1.5,
        "blocks": blocks,
    }
    path.write_text(json.dumps({"cells": [cell], "options": {}, "provenance": {}, **more}))
    return path


def test_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = results(tmp_path / "a.json", 1.0, provenance={"cpu": "x", "utc": "1"})
    b = results(tmp_path / "b.json", 0.5, provenance={"cpu": "y", "utc": "2"})
    found = json.loads(compare_files(a, b))
    (row,) = found["cells"]
    assert row["b_over_a"] == pytest.approx(2)
    assert row["interval"] == [pytest.approx(2), pytest.approx(2)]
    assert row["tok_per_s"] == [10, 20]
    assert found["differs"] == {"cpu": ["x", "y"]}
    assert "cpu: A x, B y" in capsys.readouterr().out


def test_demo_results_compare_too():
    committed = Path(__file__).parents[3] / "examples" / "results"
    line = compare_files(committed / "demo-cpu.json", committed / "ab-cpu-sweep.json", quiet=True)
    assert len(json.loads(line)["cells"]) > 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not a results.json"),
        ("[]", "not a results.json"),
        ('{"cells": 3}', "not a results.json"),
        ('{"cells": [{"arm": "x"}]}', "cells lack figures"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        compare_files(results(tmp_path / "a.json", 1.0), tmp_path / "b.json")


def test_nothing_in_common(tmp_path: Path):
    a, b = results(tmp_path / "a.json", 1.0), results(tmp_path / "b.json", 1.0, arm="ema")
    with pytest.raises(ConfigError, match="no cell in common"):
        compare_files(a, b)
    with pytest.raises(ConfigError, match="cannot read"):
        compare_files(a, tmp_path / "c.json")
