"""``speckv ab`` on the real engine: two servers, a tiny pair, everything that it promises; and a
server that runs already."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_speckv.ab.client import Client
from sglang_speckv.ab.command import run_ab
from sglang_speckv.ab.journal import JOURNAL
from sglang_speckv.ab.lossless import tie_gap
from sglang_speckv.ab.measure import NOT_CHECKED
from sglang_speckv.ab.options import Options, options_from
from tests.engine.conftest import PROMPTS, TOKENS, Serving, on_pairs
from tests.engine.reference import Reference

pytestmark = pytest.mark.engine

ARMS = ("none", "static:3", "speckv", "speckv#2")


def options(target: str, out: Path, **asked: Any) -> Options:
    """A small run on prompts of two classes."""
    prompts = out / "prompts.jsonl"
    records = [
        {"id": f"{kind}{i}", "class": kind, "prompt": f"{kind} {i}"}
        for kind in ("code", "talk")
        for i in range(6)
    ]
    prompts.write_text("\n".join(map(json.dumps, records)))
    small = {"max_new_tokens": 8, "out": str(out)}
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
        traffic=["sweep"],
        blocks=3,
    )
    assert run_ab(asked) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(c["traffic"], c["concurrency"], c["rate"], c["arm"]): c for c in line["cells"]}
    loads = [("sweep", 1, None), ("sweep", 4, None)]
    assert set(cells) == {(*load, arm) for load in loads for arm in ARMS}
    for (*_, arm), cell in cells.items():
        assert cell["blocks"] == 3 and cell["tok_per_s"] > 0
        assert cell["active"] is (None if arm == "none" else True)
        assert cell["lossless"] is (None if arm == "none" else True)
        if cell["vs_best_fixed"] is not None:
            low, high = cell["interval"]
            assert cell["lower_bound"] <= low <= cell["vs_best_fixed"] <= high or arm == "none"
        if arm.startswith("static:"):
            assert cell["steps"] == {arm[7]: 1.0}
    assert set(line["sweep"]) == {"eagle3"} and line["sweep"]["eagle3"]["sweep"]["loads"] == 2
    assert {check["kind"] for check in line["checks"]} == {"the same arm twice"}
    assert line["failures"] == [] and len(line["answers"]) == 1

    results = json.loads((tmp_path / "results.json").read_text())
    assert not results["settings_that_differ"]
    for server in results["servers"].values():
        assert server["memory_gb"] > 0.1 and server["ready_s"] > 1
    speckv = next(cell for cell in results["cells"] if cell["arm"] == "speckv")
    assert speckv["fallbacks"] == 0 and speckv["whole_tok_per_s"] > 0
    assert speckv["ttft_s"]["p50"] < speckv["e2e_s"]["p50"]
    assert (tmp_path / "report.html").read_text().count("<svg") == 1


@on_pairs("eagle3")
def test_an_answer_that_is_read_back(server: Serving, models: dict[str, str]) -> None:
    """The target finds its own answer the likeliest, token by token, and a token put in its middle
    as unlikely as Transformers does."""
    reference = Reference(models["target"])
    prompt, answer = reference.ids(PROMPTS[0]), reference.greedy(PROMPTS[0], TOKENS)
    changed = [*answer[:9], (answer[9] + 1) % 64, *answer[10:]]

    async def gaps(of: list[int]) -> list[float]:
        async with Client("x", server.url) as client:
            return await client.gaps(prompt, of)

    own = asyncio.run(gaps(answer))
    assert len(own) == TOKENS and max(own) < tie_gap("float32")
    found = asyncio.run(gaps(changed))
    assert found[:9] == pytest.approx(own[:9], abs=1e-4)
    with torch.inference_mode():
        logits = reference.model(torch.tensor([[*prompt, *answer[:9]]])).logits[0, -1]
    assert found[9] == pytest.approx(float(logits.max() - logits[changed[9]]), abs=1e-3)
    assert found[9] > tie_gap("float32")


@on_pairs("eagle3")
def test_a_running_server_and_a_run_that_goes_on(
    server: Serving, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = (f"url:one={server.url}", f"url:two={server.url}/v1")
    asked = {"arms": arms, "concurrency": [2], "rate": [50.0]}
    rounds = server.rounds()
    assert run_ab(options(models["target"], tmp_path, blocks=1, **asked)) == NOT_CHECKED
    _, *first = (tmp_path / JOURNAL).read_bytes().splitlines()
    assert (
        run_ab(options(models["target"], tmp_path, blocks=2, **asked), resume=True) == NOT_CHECKED
    )
    assert len(first) == 4
    _, *blocks = (tmp_path / JOURNAL).read_bytes().splitlines()
    assert blocks[:4] == first and len(blocks) == 8
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(c["concurrency"], c["rate"], c["arm"]): c for c in line["cells"]}
    assert set(cells) == {(*load, arm) for load in ((2, None), (None, 50.0)) for arm in arms}
    assert all(cell["blocks"] == 2 and cell["tok_per_s"] > 0 for cell in cells.values())
    assert server.rounds() > rounds
