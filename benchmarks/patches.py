"""What the patches in ``patches/`` change, measured on SGLang as installed and on a patched copy.

Usage: python benchmarks/patches.py [--json PATH]    (needs git; four servers, some minutes)

Counts only, so a busy machine does no harm: tiny random models on the CPU, the target as its own
draft.  Prints one JSON object, which also goes to PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from sglang_speckv.files import write_atomically
from sglang_speckv.provenance import provenance
from tests.engine.conftest import PROMPTS, flags, serving
from tests.engine.tiny_models import tiny_llama
from tests.patched_sglang import patched_package

SWITCHES = 10_000
SWITCH = f"""
import json
from unittest.mock import MagicMock
from sglang_speckv.srt.engine import prepare
prepare()
from sglang.srt.runtime_context import get_context
from sglang.srt.speculative import eagle_worker_v2
lines = []
eagle_worker_v2.log_info_on_rank0 = lambda logger, line: lines.append(line)
worker = MagicMock(speculative_num_steps=1, speculative_num_draft_tokens=2)
tiers = [
    MagicMock(speculative_num_steps=steps, speculative_num_draft_tokens=steps + 1)
    for steps in (3, 1)
]
with get_context().override_server_args(tp_size=1):
    before = len(get_context().overrides_log())
    for turn in range({SWITCHES}):
        eagle_worker_v2.EAGLEWorkerV2.apply_runtime_state(worker, tiers[turn % 2])
    shown = get_context().resolved_server_args_dict()
    print(json.dumps({{
        "switches": {SWITCHES},
        "override_log_entries": len(get_context().overrides_log()) - before,
        "info_lines": len(lines),
        "shown_num_steps": shown["speculative_num_steps"],
    }}))
"""


def switching() -> Any:
    """The worker's own switch, many times, with everything around it stubbed."""
    shown = subprocess.check_output([sys.executable, "-c", SWITCH], text=True)
    return json.loads(shown.splitlines()[-1])


def adaptive_standalone(models: dict[str, str], folder: Path) -> dict[str, Any]:
    """SGLang's ``--speculative-adaptive``, with a draft that is always right, launched at 1."""
    slot = {"candidate_steps": [1, 3, 5], "warmup_batches": 1, "update_interval": 2}
    config = folder / "adaptive.json"
    config.write_text(json.dumps({"1": slot}))
    asked = ["--speculative-adaptive", "--speculative-adaptive-config", str(config)]
    asked += ["--speculative-num-steps", "1", "--speculative-eagle-topk", "1"]
    asked += ["--speculative-num-draft-tokens", "2"]
    with serving(folder, *flags(models, "STANDALONE", "target"), *asked) as server:
        server.generate(PROMPTS, 64)
        met = server.generate(PROMPTS[:1], 64)[0]["meta_info"]
        state = server.state()
    return {
        "adaptive": state["speculative_adaptive"],
        "num_steps": state["speculative_num_steps"],
        "accept_length": round(met["spec_accept_length"], 2),
        "reported_accept_rate": round(met["spec_accept_rate"], 2),
    }


def counts(models: dict[str, str], folder: Path) -> dict[str, Any]:
    """Reported counts against SpecKV's own, while the depth moves."""
    asked = ["--speckv", "--speckv-candidate-steps", "0,1,3,5", "--decode-log-interval", "3"]
    with serving(folder, *flags(models, "STANDALONE", "target"), *asked) as server:
        before = server.speckv()
        with server.shuffled_depths([5, 0, 3, 1]):
            answers = [answer["meta_info"] for answer in server.generate(PROMPTS, 200)]
        after = server.speckv()
        log = server.log.read_text(errors="replace")
    rates = [float(rate) for rate in re.findall(r"accept rate: ([\d.]+)", log)]
    return {
        "proposed_drafts": after["proposed_drafts"] - before["proposed_drafts"],
        "correct_drafts": after["correct_drafts"] - before["correct_drafts"],
        "reported_proposed_drafts": sum(a["spec_num_proposed_drafts"] for a in answers),
        "reported_correct_drafts": sum(a["spec_num_correct_drafts"] for a in answers),
        "logged_accept_rates": {"lines": len(rates), "min": min(rates), "max": max(rates)},
    }


def measure(folder: Path, models: dict[str, str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, part in (("standalone", adaptive_standalone), ("counts", counts)):
        place = folder / name
        place.mkdir(parents=True)
        print(f"{folder.name}: {name}", file=sys.stderr)
        results[name] = part(models, place)
    return {"switching": switching(), **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as environment:
        folder = Path(name)
        models = {"target": str(tiny_llama(folder / "target", layers=4))}
        result: dict[str, Any] = {"provenance": provenance()}
        result["stock"] = measure(folder / "stock", models)
        patched_package(folder / "package")
        environment.setenv("PYTHONPATH", str(folder / "package"), prepend=os.pathsep)
        result["patched"] = measure(folder / "patched", models)
    text = json.dumps(result, indent=1)
    if path is not None:
        write_atomically(path, lambda scratch: scratch.write_text(text + "\n"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
