"""The depth follows the text: deep where the draft is always right, 0 where it never is, for one
request and for sixteen; and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.conftest import PROFILE_S, STEPS, Serving, flags, serving
from tests.engine.tiny_models import tiny_successors

pytestmark = pytest.mark.engine
HALF = 160
MOST_ROUNDS = 3000
"""It takes about 20 to leave a depth that earns nothing. To wake a draft takes 10 to 200 for one
request, and more where other processes disturb what is timed."""
PIECE = 96
"""Tokens of one request; every piece is at least PIECE / 6 rounds long."""


def ring(first: int, step: int) -> list[int]:
    """Successors of half of the vocabulary, within it."""
    return [first + (token + step) % HALF for token in range(HALF)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A target of six layers, and a draft of one that is always right about the lower half of the
    vocabulary and never about the upper half. Text stays in the half that it began in."""
    folder = tmp_path_factory.mktemp("adapts")
    target = tiny_successors(folder / "target", ring(0, 1) + ring(HALF, 1), layers=6)
    draft = tiny_successors(folder / "draft", ring(0, 1) + ring(HALF, 2), layers=1)
    asked = flags({"target": str(target)}, "STANDALONE", str(draft))
    asked += ["--speckv-candidate-steps", ",".join(map(str, STEPS)), "--speckv-profile", PROFILE_S]
    with serving(folder, *asked) as running:
        running.select("throughput")
        yield running


@pytest.mark.parametrize("requests", [1, 16])
def test_depth(server: Serving, requests: int) -> None:
    server.pin(max(STEPS))
    continue_text(server, 0, requests)  # the draft is awake, and seen to be good
    server.pin(-1)
    assert settles(server, first=0, requests=requests, depths={3, 5})
    assert settles(server, first=HALF, requests=requests, depths={0})


def test_a_draft_that_became_good_is_woken(server: Serving) -> None:
    assert settles(server, first=HALF, requests=1, depths={0})
    assert settles(server, first=0, requests=1, depths={3, 5})


def settles(server: Serving, first: int, requests: int, depths: set[int]) -> bool:
    """Does text that begins with ``first`` come to be served at ``depths``? It does where four in
    five rounds of a piece are."""
    start = server.rounds()
    while (before := server.rounds()) - start < MOST_ROUNDS:
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
