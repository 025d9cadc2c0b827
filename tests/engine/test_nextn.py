"""NEXTN on a real architecture: a MiMo target drafts with the layer that its own checkpoint holds
for that, and the depth never changes its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.engine.conftest import PROMPTS, STEPS, Serving, flags, serving
from tests.engine.reference import Reference
from tests.engine.test_signals import records_of
from tests.engine.tiny_models import tiny_mimo

pytestmark = pytest.mark.engine
TOKENS = 32


class Mimo(NamedTuple):
    server: Serving
    wanted: list[list[int]]
    """Greedy answers to PROMPTS."""


@pytest.fixture(scope="module")
def mimo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mimo]:
    folder = tmp_path_factory.mktemp("nextn")
    target = str(tiny_mimo(folder / "target"))
    reference = Reference(target)
    asked = ["--speculative-algorithm", "NEXTN", "--speckv-trace", str(folder / "trace")]
    asked += ["--speckv-candidate-steps", ",".join(map(str, STEPS)), "--speckv-profile", "0"]
    with serving(folder, *flags({"target": target}), *asked) as server:
        server.trace = folder / "trace"
        yield Mimo(server, [reference.greedy(prompt, TOKENS) for prompt in PROMPTS])


@pytest.mark.parametrize("num_steps", STEPS)
def test_fixed_depth(mimo: Mimo, num_steps: int) -> None:
    mimo.server.select(f"static:{num_steps}")
    before = mimo.server.speckv()["rounds"]
    assert mimo.server.tokens(PROMPTS, TOKENS) == mimo.wanted
    after = mimo.server.speckv()["rounds"]
    assert {step for step in after if after[step] > before[step]} == {str(num_steps)}


def test_moving_depth(mimo: Mimo) -> None:
    switches = mimo.server.speckv()["switches"]
    with mimo.server.shuffled_depths([5, 0, 3, 1]):
        assert mimo.server.tokens(PROMPTS, TOKENS) == mimo.wanted
        assert [mimo.server.tokens([prompt], TOKENS)[0] for prompt in PROMPTS] == mimo.wanted
    assert mimo.server.speckv()["switches"] > switches + 5


def test_the_layer_drafts_and_is_tapped(mimo: Mimo) -> None:
    mimo.server.select("static:3")
    mimo.server.tokens(PROMPTS, TOKENS)
    header, records = records_of(mimo.server)
    assert (header.target, header.draft, header.algorithm) == ("target", "target", "EAGLE")
    drafted = [r for r in records if r.num_steps == 3]
    assert sum(r.num_correct_drafts for r in drafted) > len(drafted) / 4
    for r in drafted:
        assert len(r.top1_prob) == len(r.entropy) == 3
        assert all(0 < p <= 1 for p in r.top1_prob)
