"""The engine from a copy of SGLang with every patch of ``patches/`` applied."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_speckv.srt.patches_present import present
from tests.engine.conftest import PROMPTS, TOKENS, Serving, flags, serving
from tests.patched_sglang import patched_package

pytestmark = pytest.mark.engine

PROBE = '''
"""An SGLang plugin that writes down what the draft-logits callback of patch 0001 sees."""
import json, os

def register():
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    create_worker = SpeculativeAlgorithm.create_worker
    def create_and_watch(self, server_args):
        return watch(create_worker(self, server_args))
    SpeculativeAlgorithm.create_worker = create_and_watch

def watch(worker_class):
    class Watched(worker_class):
        def init_cuda_graphs(self):
            self._draft_worker.draft_logits_callback = write
            super().init_cuda_graphs()
    return Watched

def write(draft_step, logits):
    with open(os.environ["PROBE_FILE"], "a") as file:
        tokens = logits.argmax(-1).tolist()
        print(json.dumps([draft_step, list(logits.shape), tokens]), file=file)
'''


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("no git here to apply patches with")
    if present():
        pytest.skip("the installed SGLang is patched already")
    folder = tmp_path_factory.mktemp("patched")
    patched_package(folder)
    return folder


def logged_rates(server: Serving) -> list[float]:
    """Accept rates of the decode log lines, less those of intervals without a draft."""
    log = server.log.read_text(errors="replace")
    rates = map(float, re.findall(r"accept rate: ([\d.]+)", log))
    return [rate for rate in rates if rate > 0]


@pytest.fixture(scope="module")
def stock(
    models: dict[str, str], patched: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """SGLang's own ``--speculative-adaptive`` with STANDALONE, the target as its own draft."""
    folder = tmp_path_factory.mktemp("stock")
    slot = {"candidate_steps": [1, 3, 5], "warmup_batches": 1, "update_interval": 2}
    (folder / "adaptive.json").write_text(json.dumps({"1": slot}))
    (folder / "probe.py").write_text(PROBE)
    information = folder / "probe-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[sglang.srt.plugins]\nprobe = probe:register\n")
    asked = ["--speculative-adaptive", "--speculative-adaptive-config"]
    asked += [str(folder / "adaptive.json"), "--speculative-num-steps", "1"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{patched}:{folder}", prepend=os.pathsep)
        environment.setenv("PROBE_FILE", str(folder / "seen.jsonl"))
        with serving(folder, *flags(models, "STANDALONE", "target"), *asked) as running:
            running.seen = folder / "seen.jsonl"
            yield running


@pytest.fixture(scope="module")
def speckv(
    models: dict[str, str], patched: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    asked = ["--speckv", "--speckv-candidate-steps", "0,1,3,5", "--speckv-profile", "0"]
    asked += ["--decode-log-interval", "3", "--enable-metrics"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(patched), prepend=os.pathsep)
        folder = tmp_path_factory.mktemp("speckv")
        with serving(folder, *flags(models, "STANDALONE", "target"), *asked) as running:
            yield running


def test_the_callback_sees_the_drafts(stock: Serving) -> None:
    """Patch 0001.  A draft that is the target itself says the coming tokens."""
    already = len(stock.seen.read_text().splitlines())
    answer = stock.tokens(PROMPTS[:1])[0]
    seen = [json.loads(line) for line in stock.seen.read_text().splitlines()[already:]]
    steps = [step for step, _, _ in seen]
    assert steps[0] == 0
    assert {tuple(shape) for _, shape, _ in seen} == {(1, 320)}
    chain = [seen[0][2][0]]
    for step, _, tokens in seen[1:]:
        if step != len(chain):
            break
        chain += tokens
    assert chain == answer[1 : 1 + len(chain)]
    stock.tokens(PROMPTS[:1], 48)
    assert set(range(5)) <= {json.loads(line)[0] for line in stock.seen.read_text().splitlines()}


def test_stock_adaptive_adapts_standalone(stock: Serving, plain_answers: dict[str, Any]) -> None:
    """Patches 0002, 0003 and 0005 without SpecKV."""
    assert [stock.tokens([prompt])[0] for prompt in PROMPTS] == plain_answers["alone"]
    assert stock.tokens(PROMPTS) == plain_answers["batch"]
    state = stock.state()
    assert (state["speculative_adaptive"], state["speculative_num_steps"]) == (True, 5)
    assert "speckv" not in state
    assert not stock.set_state(speckv_num_steps=1)
    log = stock.log.read_text(errors="replace")
    assert "Adaptive spec params updated" in log
    assert "Switch adaptive runtime state" not in log
    assert "SpecKV" not in log
    met = stock.generate(PROMPTS[:1], 96)[0]["meta_info"]
    assert met["spec_num_proposed_drafts"] == 5 * met["spec_verify_ct"]  # launched at 1
    assert 0.8 < met["spec_accept_rate"] <= 1


def test_speckv_serves_on_top(speckv: Serving, plain_answers: dict[str, Any]) -> None:
    with speckv.shuffled_depths([5, 0, 3, 1]):
        assert [speckv.tokens([prompt])[0] for prompt in PROMPTS] == plain_answers["alone"]
        assert speckv.tokens(PROMPTS) == plain_answers["batch"]
    speckv.select("throughput")
    assert speckv.tokens(PROMPTS) == plain_answers["batch"]
    shown = speckv.speckv()
    assert (shown["active"], shown["fallbacks"]) == (True, 0)
    assert "SpecKV is on" in speckv.log.read_text(errors="replace")


def test_proposed_drafts_are_true(speckv: Serving) -> None:
    """Patches 0004 and 0005, against SpecKV's own counts, while the depth moves."""
    before = speckv.speckv()
    with speckv.shuffled_depths([5, 0, 3, 1]):
        answers = [answer["meta_info"] for answer in speckv.generate(PROMPTS, 120)]
    after = speckv.speckv()
    for key, meta in (
        ("proposed_drafts", "spec_num_proposed_drafts"),
        ("correct_drafts", "spec_num_correct_drafts"),
        ("request_rounds", "spec_verify_ct"),
    ):
        assert after[key] - before[key] == sum(answer[meta] for answer in answers)
    rates = logged_rates(speckv)
    assert len(rates) > 5
    assert max(rates) <= 1 and sum(rates) / len(rates) > 0.8
    metrics = requests.get(speckv.url + "/metrics", timeout=60).text
    gauge = re.search(r"^sglang:spec_accept_rate\{.*\} ([\d.]+)", metrics, re.MULTILINE)
    assert gauge and (float(gauge[1]) <= 1)


def test_a_request_without_drafts(speckv: Serving) -> None:
    speckv.pin(0)
    met = speckv.generate(PROMPTS[:1])[0]["meta_info"]
    speckv.pin(-1)
    assert (met["spec_num_proposed_drafts"], met["spec_accept_rate"]) == (0, 0)
    assert met["spec_verify_ct"] >= TOKENS - 1
