"""``examples/record_traces.py`` parses, and the depths it records are the default ones."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sglang_speckv.ab.arms import Draft
from sglang_speckv.ab.request import Prompt
from sglang_speckv.config import DEFAULT_CANDIDATE_STEPS, SpecKVConfig

SCRIPT = Path(__file__).parents[2] / "examples" / "record_traces.py"
PROMPTS = [Prompt(f"p{i}", "code", "x") for i in range(6)]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_traces", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """A client that notes under which policy what was asked, and how much of it at a time."""

    def __init__(self) -> None:
        self.policy, self.running = "", 0
        self.stages: list[tuple[str, set[int], list[str]]] = []
        """Policy, requests in flight, request ids."""
        self.lengths: dict[str, set[int]] = {}

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def set_policy(self, policy: str) -> None:
        self.policy = policy
        self.stages.append((policy, set(), []))

    async def generate(self, ids: list[int], length: int, rid: str) -> None:
        _, at_a_time, rids = self.stages[-1]
        self.running += 1
        at_a_time.add(self.running)
        rids.append(rid)
        self.lengths.setdefault(self.policy, set()).add(length)
        await asyncio.sleep(0)
        self.running -= 1


def test_every_default_depth_at_every_load_then_every_prompt_at_the_deepest(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Recorder()

    @asynccontextmanager
    async def running(servers: Any, ready_s: float) -> AsyncIterator[dict[str, Any]]:
        yield {}

    monkeypatch.setattr(script, "running", running)
    monkeypatch.setattr(script, "Client", lambda name, url: client)
    monkeypatch.setattr(script, "chat_tokenizer", lambda target: lambda prompt: [1])
    server = script.Server("record", [], Path("server.log"))
    asyncio.run(script.record(server, PROMPTS, "target", 64, [1, 4]))
    *timed, (deepest, at_a_time, rids) = client.stages
    assert [(policy, max(load)) for policy, load, _ in timed] == [
        (f"static:{depth}", load)
        for load in (1, 4) * script.PASSES
        for depth in DEFAULT_CANDIDATE_STEPS
    ]
    assert deepest == f"static:{max(DEFAULT_CANDIDATE_STEPS)}" and max(at_a_time) == 4
    assert [rid.split(":")[1] for rid in rids] == [prompt.id for prompt in PROMPTS]
    assert client.lengths[deepest] == {script.TIMED_TOKENS, 64}


def test_the_server_builds_the_default_depths_and_starts_on_the_deepest(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    async def record(*arguments: Any) -> None:
        asked.extend(arguments)

    monkeypatch.setattr(script, "record", record)
    monkeypatch.setattr(script, "resolve_target", lambda target: Path("/target"))
    pair = Draft("eagle3", "/head", "EAGLE3")
    monkeypatch.setattr(script, "find_drafts", lambda names, target, screen: [pair])
    script.main("eagle3", tmp_path / "trace", requests=5)
    server, prompts, target, tokens, loads = asked
    flags = server.argv
    value = dict(pairwise(flags))
    assert "--speckv" in flags and "--speckv-candidate-steps" not in flags
    assert SpecKVConfig().candidate_steps == DEFAULT_CANDIDATE_STEPS
    assert value["--speckv-policy"] == f"static:{max(DEFAULT_CANDIDATE_STEPS)}"
    assert value["--speckv-trace"] == str(tmp_path / "trace")
    assert (len(prompts), target, tokens, loads) == (5, "/target", 64, [1, 4, 16])


def test_help_and_a_draft_that_is_none() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--draft" in shown.stdout and "--out" in shown.stdout
    missing = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert missing.returncode == 2 and "--draft" in missing.stderr
