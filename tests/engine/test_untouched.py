"""Installed but not asked for, the plugin changes no argument. That it changes nothing while
serving is asked of the servers without it: in test_cpu_engine of stock SGLang's default tree, in
test_patched of its own adaptive rule."""

import json
import subprocess
import sys
from typing import Any

import pytest

from sglang_speckv.srt import cpu
from sglang_speckv.srt.engine import prepare

pytestmark = pytest.mark.engine

WITHOUT = """
import json, sys
from sglang_speckv.srt import cpu, plugin
cpu.enable()
plugin.register = cpu.apply_if_enabled  # the CPU engine alone
from sglang.srt.plugins import load_plugins
load_plugins()
from tests.engine.test_untouched import resolved
print(json.dumps(resolved(json.loads(sys.argv[1]))))
"""


def resolved(arguments: list[dict[str, Any]]) -> list[dict[str, str]]:
    from sglang.srt.server_args import ServerArgs

    found = []
    for asked in arguments:
        args = ServerArgs(**cpu.default_server_args(), **asked)
        args.resolve_once()
        found.append({key: repr(value) for key, value in args.resolved_dict().items()})
    return found


def resolved_without(arguments: list[dict[str, Any]]) -> list[dict[str, str]]:
    command = [sys.executable, "-c", WITHOUT, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return json.loads(done.stdout.splitlines()[-1])


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
    prepare()
    assert resolved(arguments) == resolved_without(arguments)
