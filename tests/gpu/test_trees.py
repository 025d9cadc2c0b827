"""Draft trees whose shape moves, with captured graphs and the overlap scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sglang_speckv.offline.records import read_trace
from tests.engine.conftest import PAIRS, PROMPTS, Serving, flags, serving
from tests.engine.test_trees import LAUNCH, PLACES, SHAPES
from tests.gpu.conftest import COMMAND, PROFILE_S, References, at_length, device_flags, on_gpu

pytestmark = [*on_gpu, at_length]

BACKEND = "flashinfer"


@pytest.fixture(scope="module", params=["eagle3", "standalone-self"])
def tree(
    request: pytest.FixtureRequest, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp(f"tree-{request.param}")
    args = [*flags(models, *PAIRS[request.param]), *device_flags(BACKEND), *LAUNCH, "--speckv"]
    args += ["--speckv-candidate-shapes", ",".join(SHAPES), "--speckv-profile", PROFILE_S]
    args += ["--speckv-trace", str(folder / "trace")]
    with serving(folder, *args, command=COMMAND) as running:
        running.trace = folder / "trace"
        yield running


def test_every_shape_is_lossless(tree: Serving, references: References) -> None:
    for shape in SHAPES:
        tree.select(f"static:{shape}")
        before = tree.speckv()["rounds"][shape]
        assert references[BACKEND].losses(tree.tokens(PROMPTS)) == [], shape
        assert tree.speckv()["rounds"][shape] > before
    assert not tree.speckv()["failures"]


def test_a_moving_shape_is_lossless(tree: Serving, references: References) -> None:
    before = tree.speckv()["switches"]
    with tree.shuffled_depths(PLACES, every_s=0.005):
        assert references[BACKEND].losses(tree.tokens(PROMPTS)) == []
    shown = tree.speckv()
    assert shown["switches"] > before + 3 and not shown["failures"] and not shown["held"]


def test_nodes_are_told_from_captured_graphs(tree: Serving) -> None:
    tree.select("static:3x16")
    tree.tokens(PROMPTS)
    time.sleep(1.5)  # until it is flushed
    _, records = read_trace(sorted(tree.trace.glob("*.gz"))[-1])
    drafted = [record for record in records if record.num_draft_tokens == 16]
    assert drafted
    for record in drafted:
        assert sum(right for _, _, right in record.nodes) == record.num_correct_drafts
        assert 0.0 < max(prob for prob, _, _ in record.nodes) <= 1.0
