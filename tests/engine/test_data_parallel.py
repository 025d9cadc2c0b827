"""Two data-parallel ranks in one server: each has a policy of its own, and control calls, the
start-up profile and traces reach both."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_speckv.offline.records import Record, read_trace
from tests.engine.conftest import PROMPTS, Serving, flags, serving

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def pair(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Serving, Any]]:
    folder = tmp_path_factory.mktemp("dp")
    asked = ["--dp-size", "2", "--speckv", "--speckv-candidate-steps", "0,2"]
    asked += ["--speckv-profile", "6", "--speckv-trace", str(folder / "trace")]
    with serving(folder, *flags(models, "STANDALONE", "alike"), *asked) as running:
        yield running, folder / "trace"


def ranks(running: Serving) -> list[dict[str, Any]]:
    answer = requests.get(running.url + "/server_info", timeout=60).json()
    return [state["speckv"] for state in answer["internal_states"]]


def records_by_file(trace: Path) -> list[list[Record]]:
    return [list(read_trace(file)[1]) for file in trace.iterdir()]


def set_state(running: Serving, **values: int) -> list[bool]:
    return running.post("/set_internal_state", {"server_args": values})


def test_both_are_profiled_pinned_and_traced(
    pair: tuple[Serving, Any], plain_answers: dict[str, Any]
) -> None:
    running, trace = pair
    assert all(rank["profile"] for rank in ranks(running))

    assert set_state(running, speckv_num_steps=2) == [True, True]
    assert [rank["pinned"] for rank in ranks(running)] == [2, 2]
    before = ranks(running)
    for _ in range(2):  # one request at a time, so that each rank's batches are of one
        tokens = [running.tokens([prompt])[0] for prompt in PROMPTS]
        assert tokens == plain_answers["alone"]
    for old, new in zip(before, ranks(running), strict=True):
        assert new["rounds"]["2"] > old["rounds"]["2"]
        assert new["rounds"]["0"] == old["rounds"]["0"]

    assert set_state(running, speckv_num_steps=3) == [False, False]
    assert set_state(running, speckv_num_steps=-1) == [True, True]
    assert [rank["pinned"] for rank in ranks(running)] == [None, None]

    expected = sum(rank["trace"]["records"] for rank in ranks(running))
    deadline = time.monotonic() + 20
    while sum(map(len, found := records_by_file(trace))) < expected:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(found) == 2
    assert all(2 in {record.num_steps for record in records} for records in found)
