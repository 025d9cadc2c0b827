"""Installed but not asked for, the plugin changes nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import PROMPTS, flags, serving

pytestmark = pytest.mark.engine

RESOLVE = """
import json, sys
from sglang_speckv.srt import cpu
cpu.enable()
from sglang.srt.plugins import load_plugins
if sys.argv[1] == "without":
    from sglang_speckv.srt import plugin
    plugin.register = cpu.apply_if_enabled  # the CPU engine alone
load_plugins()
from sglang.srt.server_args import ServerArgs
for arguments in json.loads(sys.argv[2]):
    args = ServerArgs(**cpu.default_server_args(), **arguments)
    args.resolve_once()
    print(json.dumps({k: repr(v) for k, v in args.resolved_dict().items()}))
"""


def resolved(mode: str, arguments: list[dict[str, Any]]) -> list[dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, mode, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()[-len(arguments) :]]


def test_arguments_resolve_alike(models: dict[str, str]) -> None:
    common = {
        "model_path": models["target"],
        "speculative_algorithm": "EAGLE3",
        "speculative_draft_model_path": models["eagle3"],
        "random_seed": 1,
        "port": 31999,
    }
    tree = {
        "speculative_num_steps": 3,
        "speculative_eagle_topk": 2,
        "speculative_num_draft_tokens": 5,
    }
    arguments = [{**common, "speculative_adaptive": True}, {**common, **tree}]
    assert resolved("with", arguments) == resolved("without", arguments)


def test_stock_adaptive_serves_as_stock(
    models: dict[str, str], plain_answers: dict[str, Any], tmp_path: Path
) -> None:
    asked = ["--speculative-adaptive"]
    with serving(tmp_path, *flags(models, "EAGLE3", "eagle3"), *asked) as server:
        assert server.tokens(PROMPTS) == plain_answers["batch"]
        assert "speckv" not in server.state()
        assert not server.set_state(speckv_num_steps=1)
        assert "SpecKV" not in server.log.read_text(errors="replace")
