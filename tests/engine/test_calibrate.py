"""``speckv calibrate`` on the real engine: one server, a tiny pair, everything that it leaves."""

import json
from pathlib import Path

import pytest

from sglang_speckv.ab.options import options_from
from sglang_speckv.ab.process import Server
from sglang_speckv.calibrate.command import DEFAULTS, run_calibrate
from sglang_speckv.config import DEFAULT_CANDIDATE_STEPS as DEPTHS
from sglang_speckv.offline.artifact import load_artifact

pytestmark = pytest.mark.engine


def prompt(i: int) -> dict[str, str]:
    return {"id": f"{i}", "class": ("code", "talk")[i % 2], "prompt": f"{i} and {i + 1}"}


def test_calibrate(
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    forked_servers: None,
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("\n".join(json.dumps(prompt(i)) for i in range(12)))
    asked = DEFAULTS | {
        "target": models["target"],
        "prompts": str(prompts),
        "drafts": [f"STANDALONE={models['alike']}"],
        "concurrency": [1, 2],
        "minutes": None,
        "blocks": 1,
        "max_new_tokens": 16,
        "out": str(out),
    }
    wanted = options_from(asked, "test")
    assert run_calibrate(wanted) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = json.loads(Path(line["result"]).read_text())
    assert record["server"]["speculative_algorithm"] == "STANDALONE"

    every, *classes = record["survival"]
    assert {row["class"] for row in classes} == {"code", "talk"}
    assert every["rounds"] == sum(row["rounds"] for row in classes) > 5
    assert every["survival"] == sorted(every["survival"], reverse=True)
    assert 0 < every["survival"][0] <= 1 and len(every["survival"]) == DEPTHS[-1]
    for row in record["tokens"]:
        assert row["expected"] == pytest.approx(1 + sum(every["survival"][: row["num_steps"]]))
        assert row["rounds"] > 1 and 1 <= row["measured"] <= 1 + row["num_steps"]
    deepest = record["tokens"][-1]
    assert deepest["measured"] == pytest.approx(deepest["expected"], abs=1e-3)

    expected = {row["num_steps"]: row["expected"] for row in record["tokens"]}
    assert [load["concurrency"] for load in record["loads"]] == [1, 2]
    for load in record["loads"]:
        assert [row["num_steps"] for row in load["depths"]] == list(DEPTHS)
        assert load["best"] in DEPTHS and load["over_depth_0"]["ratio"] > 0
        # Of so few rounds all of one depth may lie beside a prefill, whose time is not theirs.
        assert sum(row["rounds"] > 0 for row in load["depths"]) >= 2
        for row in load["depths"]:
            assert row["blocks"] == 1 and row["tok_per_s"] > 0
            assert row["asleep"] is (row["num_steps"] == 0)
            forecast = load["concurrency"] * expected[row["num_steps"]] / row["round_s"]
            assert row["predicted_tok_per_s"] == pytest.approx(forecast, rel=1e-2)

    artifact = load_artifact(Path(line["artifact"]))
    assert artifact.acceptance is not None and artifact.cost is not None
    assert (out / "calibration.svg").read_text().startswith("<svg")

    monkeypatch.setattr(Server, "start", lambda self: pytest.fail("a server was started"))
    assert run_calibrate(wanted) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line
