"""``speckv ab`` on the real engine: two servers, a tiny pair, everything that it promises."""

import json
from pathlib import Path

import pytest

from sglang_speckv.bench.ab import run_ab
from sglang_speckv.bench.options import options_from

pytestmark = pytest.mark.engine

ARMS = ("none", "static:1", "static:3", "static:3#2", "speckv")


def test_ab(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    records = [
        {"id": f"{kind}{i}", "class": kind, "prompt": f"{kind} {i}"}
        for kind in ("code", "talk")
        for i in range(6)
    ]
    prompts.write_text("\n".join(map(json.dumps, records)))
    options = options_from(
        {
            "prompts": str(prompts),
            "target": models["target"],
            "drafts": [models["eagle3"]],
            "arms": ARMS,
            "concurrency": [1, 4],
            "traffic": ["phases", "sweep"],
            "requests_per_slot": 1,
            "max_new_tokens": 16,
            "rounds": 3,
            "out": str(tmp_path),
        },
        "test",
    )
    assert run_ab(options) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(c["workload"], c["concurrency"], c["arm"]): c for c in line["cells"]}
    loads = (("phases", 1), ("phases", 4), ("sweep", 4))
    assert set(cells) == {(*load, arm) for load in loads for arm in ARMS}
    for (_, _, arm), cell in cells.items():
        assert cell["blocks"] == 3 and cell["tok_per_s"] > 0
        assert cell["active"] is (None if arm == "none" else True)
        assert cell["lossless"] is (None if arm == "none" else True)
        low, high = cell["interval"]
        assert low <= cell["vs_best_static"] <= high
        if arm.startswith("static:"):
            assert cell["steps"] == {arm[7]: 1.0}
    assert set(line["sweep"]) == {"eagle3"}
    assert line["sweep"]["eagle3"]["sweep"]["headroom"] == 1  # one cell: nothing to choose
    assert {check["kind"] for check in line["checks"]} == {"same arm twice"}
    assert line["failures"] == []

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings_that_differ"].keys() <= {"disable_overlap_schedule"}
    for server in results["servers"].values():
        assert server["memory_gb"] > 0.1 and server["ready_s"] > 1
    speckv = next(cell for cell in results["cells"] if cell["arm"] == "speckv")
    assert sum(speckv["step_time"].values()) == pytest.approx(1)
    assert speckv["first_token_s"]["p50"] < speckv["latency_s"]["p50"]
    assert (tmp_path / "report.html").read_text().count("<svg") >= 4
