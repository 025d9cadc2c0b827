"""Rounds that the device stops: the rule that it follows is the policy's, and a captured draft loop
runs as many forwards as the rule says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sglang_speckv.policy.stopping import StopRule
from sglang_speckv.srt import graph_stop, graph_stop_triton
from sglang_speckv.srt.graph_stop import GraphStop
from tests.rehearsal import tape
from tests.rehearsal.chain import (
    BATCH,
    STEPS,
    Draft,
    captured,
    check_stops,
    drafted,
    random_rule,
    stop_after,
    stop_of,
)
from tests.rehearsal.device import Interpreted, interpret_triton

KERNELS = pytest.mark.parametrize("triton", [False, True], ids=["torch", "triton"])


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> None:
    interpret_triton()
    assert isinstance(graph_stop_triton.decide, Interpreted)


# ---------------------------------------------------------------------------- the rule


def device_drafts(
    stop: GraphStop, triton: bool, rule: StopRule | None, probs: np.ndarray, padded: int
) -> int:
    """Step by step; rows of ``probs`` [size, STEPS] are padded with what may be anything."""
    stop._tap._round_first = torch.from_numpy(probs[:, :1]).float()
    stop.begin(rule)
    step = graph_stop_triton.launch if triton else graph_stop.decide_torch
    rows = torch.full((padded, 2 * STEPS), math.nan)
    rows[: len(probs), ::2] = torch.from_numpy(probs)
    state = stop._rule, stop._survival, stop._going, stop.made
    for column in range(STEPS):
        step(rows[:, 2 * column], *state, column, STEPS + 1)
        assert int(stop.made) == column + 1
        if not stop._going:
            return column + 1
    return STEPS


@KERNELS
def test_the_device_decides_as_the_policy_does(triton: bool) -> None:
    rng, stop, found = np.random.default_rng(0), stop_of(Draft()), []
    for _ in range(60):
        size = int(rng.integers(1, BATCH + 1))
        rule, probs = random_rule(rng, size), rng.uniform(0, 1, (size, STEPS))
        padded = int(rng.integers(size, BATCH + 1))
        found.append(device_drafts(stop, triton, rule, probs, padded))
        assert found[-1] == rule.drafts(probs)
    assert set(found) == set(range(1, STEPS + 1))


@KERNELS
def test_what_is_unknown_stops_nothing(triton: bool) -> None:
    rng, stop, rule = np.random.default_rng(1), stop_of(Draft()), stop_after(1, 2)
    for value in (math.nan, -0.1, 1.1):
        probs = rng.uniform(0, 1, (2, STEPS))
        assert device_drafts(stop, triton, rule, probs, 4) == rule.drafts(probs) == 1
        probs[1, 0] = value
        assert device_drafts(stop, triton, rule, probs, 4) == rule.drafts(probs) == STEPS


@KERNELS
def test_without_a_rule_every_draft_is_made(triton: bool) -> None:
    stop, probs, rule = stop_of(Draft()), np.zeros((2, STEPS)), stop_after(1, 2)
    found = [device_drafts(stop, triton, r, probs, 2) for r in (None, rule, None, None)]
    assert found == [STEPS, 1, STEPS, STEPS]


# ---------------------------------------------------------------------------- a captured loop


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", tape.Tape)
    monkeypatch.setattr(torch.cpu, "graph", tape.graph, raising=False)
    capturing = lambda: tape.Tape.capturing is not None  # noqa: E731
    monkeypatch.setattr(torch.cpu, "is_current_stream_capturing", capturing, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda device: torch.cpu)


@pytest.mark.parametrize("steps", range(2, STEPS + 1))
@pytest.mark.parametrize(("size", "rows"), [(1, 1), (3, 4), (4, 4)])
def test_a_loop_makes_as_many_drafts_as_the_rule_says(
    graphs: None, steps: int, size: int, rows: int
) -> None:
    check_stops(*captured(steps, rows), size)


def test_rules_of_the_drafts_own_probabilities_stop_where_the_policy_would(graphs: None) -> None:
    rng, found = np.random.default_rng(4), []
    draft, stop = captured(STEPS, 4)
    for _ in range(30):
        size = int(rng.integers(1, 5))
        _, said = drafted(draft, stop, None, size)
        rule = random_rule(rng, size)
        drafted(draft, stop, rule, size)
        found.append(int(draft.forwards) + 1)
        assert found[-1] == rule.drafts(said[:, :STEPS, 0].double().numpy())
    assert len(set(found)) > 2


def test_a_batch_that_is_drafted_eagerly_makes_every_draft(graphs: None) -> None:
    draft = Draft()
    stop = stop_of(draft)
    verify, signals = drafted(draft, stop, stop_after(1, BATCH), BATCH)
    assert int(draft.forwards) == STEPS - 1 and stop.decided() is None
    assert (verify.retrieve_next_token[:, :-1] > 0).all() and not signals.isnan().any()


def test_a_rule_that_cannot_be_told_costs_no_round(graphs: None) -> None:
    draft, stop = captured(STEPS, 2)
    drafted(draft, stop, stop_after(2, 2), 2)
    with pytest.raises(ValueError):
        drafted(draft, stop, stop_after(1, 2)._replace(price=np.zeros(2)), 2)
    assert stop.decided() is None
    drafted(draft, stop, None, 2)
    assert int(draft.forwards) == STEPS - 1


def test_nodes_are_tried(graphs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph_stop.no_nodes() is None and graph_stop.node_fails("cpu") is None
    monkeypatch.setattr(tape, "_run_if", lambda condition, body: tape._run(body))
    assert "[4.0, 4.0]" in str(graph_stop.node_fails("cpu"))
    monkeypatch.setattr(tape.Tape, "begin_capture_to_if_node", None)
    assert "could not be captured" in str(graph_stop.node_fails("cpu"))
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    assert "need 12.4" in str(graph_stop.no_nodes())
    monkeypatch.delattr(tape.Tape, "begin_capture_to_if_node")
    assert "has no conditional nodes" in str(graph_stop.no_nodes())


def test_a_failed_capture_says_how_to_do_without() -> None:
    stop = stop_of(Draft())
    for given, notes in ((stop, 1), (None, 0)):
        with pytest.raises(RuntimeError) as raised, graph_stop.told_of_failure(given):
            raise RuntimeError("no memory")
        assert len(getattr(raised.value, "__notes__", ())) == notes
