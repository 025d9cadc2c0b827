"""New weights while serving: the text becomes the new model's at once, and the draft stays the
draft."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.multiprocessing import set_sharing_strategy

from tests.engine.conftest import PROMPTS, Serving, flags, serving
from tests.engine.reference import Reference
from tests.engine.test_serving import running_requests

pytestmark = pytest.mark.engine

KINDS = {
    "standalone": ("STANDALONE", "alike"),
    "eagle3": ("EAGLE3", "eagle3"),
}
"""pytest groups tests by a parameter's position: the kind that a test names is the first."""
LENGTH = 32


@pytest.fixture(scope="module", params=KINDS)
def updated(
    request: pytest.FixtureRequest,
    models: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Serving]:
    """A server that ends every test on the target's own weights."""
    algorithm, draft = KINDS[request.param]
    speckv = ["--speckv-policy", "static:3", "--speckv-profile", "0"]
    folder = tmp_path_factory.mktemp(request.param)
    with serving(folder, *flags(models, algorithm, draft), *speckv) as running:
        yield running


@pytest.fixture(scope="module")
def texts(models: dict[str, str]) -> dict[str, list[list[int]]]:
    """Greedy answers of two models of one shape, by Transformers."""
    greedy = {}
    for name in ("target", "alike"):
        reference = Reference(models[name])
        greedy[name] = [reference.greedy(prompt, LENGTH) for prompt in PROMPTS]
    assert greedy["target"] != greedy["alike"]
    return greedy


def load(server: Serving, path: str) -> None:
    """Once the last request has left the scheduler: it is answered a little earlier."""
    while running_requests(server):
        time.sleep(0.05)
    assert server.post("/update_weights_from_disk", {"model_path": path})["success"]


def send(server: Serving, path: str, **options: str) -> None:
    """Every tensor of a checkpoint, in a session of its own."""
    from sglang.srt.utils import MultiprocessingSerializer

    set_sharing_strategy("file_system")  # the other takes file handles from its parent alone
    tensors = list(load_file(Path(path) / "model.safetensors").items())
    payload = base64.b64encode(MultiprocessingSerializer.serialize(tensors)).decode()
    server.post("/begin_weight_update", options)
    server.post("/update_weights_from_tensor", {"serialized_named_tensors": [payload], **options})
    server.post("/end_weight_update", {})


def answers(server: Serving) -> tuple[list[list[int]], list[int]]:
    """Tokens, and how many rounds each answer took."""
    given = server.generate(PROMPTS, LENGTH)
    rounds = [answer["meta_info"]["spec_verify_ct"] for answer in given]
    return [answer["output_ids"] for answer in given], rounds


@pytest.mark.parametrize("update", [load, send], ids=["disk", "tensor"])
def test_the_text_becomes_the_new_models_and_comes_back(
    updated: Serving, models: dict[str, str], texts: dict[str, Any], update: Any
) -> None:
    before = answers(updated)
    assert before[0] == texts["target"]
    update(updated, models["alike"])
    assert answers(updated)[0] == texts["alike"]
    update(updated, models["target"])
    assert answers(updated) == before  # as many rounds too: the draft drafts as well as ever


@pytest.mark.parametrize("updated", ["standalone"], indirect=True)  # of the target's shape
def test_a_draft_changes_where_it_is_named(
    updated: Serving, models: dict[str, str], texts: dict[str, Any]
) -> None:
    before = answers(updated)
    send(updated, models["target"], selector="draft")
    as_target = answers(updated)
    send(updated, models["alike"], selector="draft")
    assert as_target[0] == before[0] == texts["target"]
    assert sum(as_target[1]) < sum(before[1])
    assert answers(updated) == before


def test_cached_prefixes_go_with_the_old_weights(updated: Serving, models: dict[str, str]) -> None:
    prompt = PROMPTS[3] * 2
    updated.tokens([prompt])
    load(updated, models["target"])
    assert updated.generate([prompt])[0]["meta_info"]["cached_tokens"] == 0
