"""No wait for the device is added: what a server's own profiler counts, with SpecKV and without."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import PAIRS, PROMPTS, Serving, flags, serving
from tests.gpu.conftest import (
    COMMAND,
    REHEARSAL,
    Kind,
    at_length,
    on_gpu,
    on_kinds,
    second_flags,
)

KINDS = [
    Kind("standalone-self", "flashinfer", lag="late"),
    Kind("eagle3", "flashinfer", lag="late"),
]
pytestmark = [*on_gpu, on_kinds(*KINDS), at_length]

STEPS = 3
WAITS = {
    *("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy"),
    *("aten::_local_scalar_dense", "aten::nonzero"),
}
"""Calls that return when the device has come so far, and, also on a CPU, ops that make one."""


@pytest.fixture
def stock(
    gpu_server: tuple[Kind, Serving], models: dict[str, str], tmp_path: Path
) -> Iterator[Serving]:
    """The same pair at the same depth, without SpecKV."""
    kind, _ = gpu_server
    chain = ["--speculative-num-steps", str(STEPS), "--speculative-eagle-topk", "1"]
    chain += ["--speculative-num-draft-tokens", str(STEPS + 1)]
    args = [*flags(models, *PAIRS[kind.pair]), *second_flags(kind.backend), *chain]
    with serving(tmp_path, *args, command=COMMAND) as running:
        yield running


def test_no_wait_is_added(gpu_server: tuple[Kind, Serving], stock: Serving, tmp_path: Path) -> None:
    _, server = gpu_server
    server.select(f"static:{STEPS}")
    ours, our_rounds = profiled(server, tmp_path / "ours")
    theirs, their_rounds = profiled(stock, tmp_path / "theirs")
    assert our_rounds == their_rounds > 10
    added = {name: ours[name] - theirs[name] for name in WAITS}
    assert {name: n for name, n in added.items() if n > 0.2 * our_rounds} == {}


def profiled(server: Serving, folder: Path) -> tuple[Counter[str], int]:
    """Calls by name while the server decodes for one request, and that request's rounds."""
    server.flush_cache()
    server.generate(PROMPTS[:1], max_new_tokens=8)  # compiles what is compiled late
    activities = ["CPU"] if REHEARSAL else ["CPU", "GPU"]
    asked = {"output_dir": str(folder), "activities": activities, "with_stack": False}
    server.command("/start_profile", asked)
    (answer,) = server.generate(PROMPTS[3:], max_new_tokens=48)
    server.command("/stop_profile", {})
    return calls(folder), answer["meta_info"]["spec_verify_ct"]


def calls(folder: Path) -> Counter[str]:
    """How often each name is in the profiler's trace, once it is whole."""
    deadline = time.monotonic() + 120
    while True:
        try:
            (path,) = folder.rglob("*.trace.json.gz")
            trace = json.loads(gzip.decompress(path.read_bytes()))
            break
        except (ValueError, EOFError, OSError):  # none yet, or half of it
            assert time.monotonic() < deadline, f"no trace in {folder}"
            time.sleep(0.5)
    found = Counter(event.get("name", "") for event in trace["traceEvents"])
    seen = sum(n for name, n in found.items() if name.startswith("aten::"))
    assert seen > (1000 if REHEARSAL else 100)  # ops inside of graphs are not the host's
    return found
