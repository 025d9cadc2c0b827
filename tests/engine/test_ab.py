"""``speckv ab`` on the real engine: two servers, a tiny pair, everything that it promises; and a
server that runs already."""

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_speckv.bench.ab import run_ab
from sglang_speckv.bench.options import Options, options_from
from sglang_speckv.bench.results import JOURNAL
from tests.engine.conftest import Serving, on_pairs

pytestmark = pytest.mark.engine

ARMS = ("none", "static:3", "static:3#2", "speckv")


def options(target: str, out: Path, **asked: Any) -> Options:
    """A small run on prompts of two classes."""
    prompts = out / "prompts.jsonl"
    records = [
        {"id": f"{kind}{i}", "class": kind, "prompt": f"{kind} {i}"}
        for kind in ("code", "talk")
        for i in range(6)
    ]
    prompts.write_text("\n".join(map(json.dumps, records)))
    small = {"requests_per_slot": 1, "max_new_tokens": 8, "out": str(out)}
    return options_from(
        {"prompts": str(prompts), "target": target, **small, **asked},
        "test",
    )


def test_ab(
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    forked_servers: None,
) -> None:
    asked = options(
        models["target"],
        tmp_path,
        drafts=[models["eagle3"]],
        arms=ARMS,
        concurrency=[1, 4],
        traffic=["phases", "sweep"],
        rounds=3,
    )
    assert run_ab(asked) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(c["workload"], c["concurrency"], c["rate"], c["arm"]): c for c in line["cells"]}
    loads = (("phases", 1, None), ("phases", 4, None), ("sweep", 4, None))
    assert set(cells) == {(*load, arm) for load in loads for arm in ARMS}
    for (*_, arm), cell in cells.items():
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


@on_pairs("eagle3")
def test_a_running_server_and_a_run_that_goes_on(
    server: Serving, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = (f"url:one={server.url}", f"url:two={server.url}/v1")
    asked = {"arms": arms, "concurrency": [2], "rate": [50.0]}
    rounds = server.rounds()
    assert run_ab(options(models["target"], tmp_path, rounds=1, **asked)) == 0
    _, *first = (tmp_path / JOURNAL).read_bytes().splitlines()
    assert run_ab(options(models["target"], tmp_path, rounds=2, **asked), resume=True) == 0
    assert len(first) == 4
    _, *blocks = (tmp_path / JOURNAL).read_bytes().splitlines()
    assert blocks[:4] == first and len(blocks) == 8
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(c["concurrency"], c["rate"], c["arm"]): c for c in line["cells"]}
    assert set(cells) == {(*load, arm) for load in ((2, None), (None, 50.0)) for arm in arms}
    assert all(cell["blocks"] == 2 and cell["tok_per_s"] > 0 for cell in cells.values())
    assert server.rounds() > rounds
