"""Installed but not asked for, the plugin changes no argument. That it changes nothing while
serving is asked of the servers without it: in test_cpu_engine of stock SGLang's default tree, in
test_patched of its own adaptive rule."""

import json
import subprocess
import sys
from typing import Any

import pytest

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
