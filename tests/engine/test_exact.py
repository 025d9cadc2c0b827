"""The text does not change, whatever a request asks for: every feature gives what the target alone
gives while the depth and every request's width move from round to round."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import pytest

from tests.engine.conftest import (
    ALL,
    PAIRS,
    PROMPTS,
    STEPS,
    TOKENS,
    Serving,
    flags,
    on_pairs,
    plugged,
    serving,
)
from tests.engine.ordered import ordered
from tests.engine.reference import Reference, follows_target, sampled
from tests.exact.features import FEATURES, together, unlike

DRAFTS = tuple(PAIRS) if ALL else ("eagle3", "standalone-self")
NAMES = list(FEATURES)
TWO = zip_longest(NAMES[::2], NAMES[1::2], fillvalue=NAMES[0])
ROWS: list[tuple[str, ...]] = [(name,) for name in NAMES] if ALL else list(TWO)
"""Features: for each of the drafts, or one for each of the two."""
TOP_P = 0.9
pytestmark = [pytest.mark.engine, on_pairs(*DRAFTS)]


@pytest.fixture(scope="session")
def alone(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every feature's answers of the target without speculation. Under the overlap scheduler, which
    the CPU engine has not where it speculates, SGLang counts a token for penalties a round late."""
    launch = [*flags(models), "--disable-overlap-schedule"]
    with plugged(ordered), serving(tmp_path_factory.mktemp("alone"), *launch) as plain:
        return {name: feature(plain) for name, feature in FEATURES.items()}


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_feature(server: Serving, alone: dict[str, Any], row: tuple[str, ...]) -> None:
    name = row[DRAFTS.index(server.pair) % len(row)]
    server.select("throughput")
    with server.forced_rounds(depths=True):
        assert alike(FEATURES[name](server), alone[name]), name
    assert not server.speckv()["failures"]


@pytest.mark.skipif(not ALL, reason="takes long: make exact")
@pytest.mark.parametrize("sampling", [{}, {"frequency_penalty": 1e-6}], ids=["drafts", "none"])
def test_sampled_text_follows_the_target(
    server: Serving, models: dict[str, str], sampling: dict[str, float]
) -> None:
    """A penalty of nothing keeps a request from drafts and changes no distribution."""
    server.select("throughput")
    with server.forced_rounds(depths=True):
        answers = sampled(server, TOP_P, **sampling)
    reference = Reference(models["target"])
    assert follows_target(answers, reference, TOP_P)
    assert not follows_target(answers, reference, TOP_P, rescaled=True)


def test_rounds_without_drafts_are_counted_and_told_once(server: Serving) -> None:
    """While the other requests of the batch speculate."""
    before = server.speckv()
    server.select(f"static:{STEPS[-1]}")
    together(server, presence_penalty=1.0)
    together(server, presence_penalty=1.0)
    after = server.speckv()
    counts = [shown["exact_rounds"].get("presence_penalty", 0) for shown in (before, after)]
    assert counts[1] - counts[0] == 2 * 2 * (TOKENS - 1)
    drafted = [shown["drafted_tokens"] for shown in (before, after)]
    assert drafted[1] > drafted[0]
    assert server.log.read_text(errors="replace").count("requests with presence_penalty") == 1


def test_requests_take_no_more_drafts_than_they_say(server: Serving) -> None:
    server.select(f"static:{STEPS[-1]}")
    asked: list[dict[str, Any]] = [
        {} if most is None else {"custom_params": {"speckv": {"max_steps": most}}}
        for most in (None, 0, 1, 2)
    ]
    answers = [answer["meta_info"] for answer in unlike(server, asked)]
    rounds, correct, verified = (
        [answer[f"spec_{key}"] for answer in answers]
        for key in ("verify_ct", "num_correct_drafts", "num_proposed_drafts")
    )
    assert correct[0] > 0 or server.pair == "standalone-other"
    assert verified[0] == STEPS[-1] * rounds[0]
    assert verified[1:3] == [0, rounds[2]]
    assert rounds[3] <= verified[3] <= 2 * rounds[3], "1 where none asks for more: 2 is no depth"
    assert [answer["spec_accept_rate"] for answer in answers] == [
        right / max(drafts, 1) for right, drafts in zip(correct, verified, strict=True)
    ]
    assert all(
        0 < n <= most * k for most, n, k in zip((1, 2), correct[2:], rounds[2:], strict=True)
    )
    before = server.speckv()["rounds"]
    assert unlike(server, [asked[2]] * len(PROMPTS))
    after = server.speckv()["rounds"]
    assert {steps for steps in after if after[steps] > before[steps]} == {"1"}, "all of them ask"


def alike(left: Any, right: Any) -> bool:
    """Equal, floats within 1e-3."""
    if isinstance(left, float):
        return bool(left == pytest.approx(right, abs=1e-3))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    return bool(left == right)
