"""The depth follows the text: 0 where the draft is never right, deep where it always is, for one
request and for sixteen. To leave a depth takes some 20 rounds, to wake a draft 10 to 500."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.conftest import PROFILE_S, STEPS, Serving, flags, serving
from tests.engine.tiny_models import tiny_successors

pytestmark = pytest.mark.engine
HALF = 160
PIECE = 48
"""Tokens of one request; every piece is at least PIECE / 6 rounds long."""


def ring(first: int, step: int) -> list[int]:
    """Successors of half of the vocabulary, within it."""
    return [first + (token + step) % HALF for token in range(HALF)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A target of ten layers, and a draft of one that is always right about the lower half of the
    vocabulary and never about the upper half. Text stays in the half that it began in. A target as
    dear as that makes probes cheap, so they come soon, and a disturbed machine does not hide which
    depth is best."""
    folder = tmp_path_factory.mktemp("adapts")
    target = tiny_successors(folder / "target", ring(0, 1) + ring(HALF, 1), layers=10)
    draft = tiny_successors(folder / "draft", ring(0, 1) + ring(HALF, 2), layers=1)
    asked = flags({"target": str(target)}, "STANDALONE", str(draft))
    asked += ["--speckv-candidate-steps", ",".join(map(str, STEPS)), "--speckv-profile", PROFILE_S]
    with serving(folder, *asked) as running:
        running.select("throughput")
        yield running


def test_a_useless_draft_ends_at_0(server: Serving) -> None:
    """For sixteen requests; below for one."""
    server.pin(max(STEPS))
    continue_text(server, HALF, requests=16)
    server.pin(-1)
    assert settles(server, first=HALF, requests=16, depths={0})


def test_a_perfect_draft_wakes_and_ends_deep(server: Serving) -> None:
    """Of one request: for sixteen on a disturbed machine it may take thousands of rounds."""
    assert settles(server, first=HALF, requests=1, depths={0})
    assert settles(server, first=0, requests=1, depths={3, 5})


def settles(
    server: Serving, first: int, requests: int, depths: set[int], most_rounds: int = 3000
) -> bool:
    """Does text that begins with ``first`` come to be served at ``depths``? It does where four in
    five rounds of a piece are."""
    start = server.rounds()
    while (before := server.rounds()) - start < most_rounds:
        continue_text(server, first, requests)
        rounds = server.rounds() - before
        last = [depth for _, depth, _ in server.speckv()["recent"][-rounds:]]
        if sum(depth in depths for depth in last) >= 0.8 * rounds:
            return True
    return False


def continue_text(server: Serving, first: int, requests: int) -> None:
    """A piece of text per request, which goes on as the target would."""
    sampling = {"temperature": 0, "max_new_tokens": PIECE, "ignore_eos": True}
    prompts = [[first + number] for number in range(requests)]
    answers = server.post("/generate", {"input_ids": prompts, "sampling_params": sampling})
    for number, answer in enumerate(answers):
        following = [first + (number + n + 1) % HALF for n in range(PIECE)]
        assert answer["output_ids"] == following
