"""Two ranks on one machine choose alike, also where their own signals differ: they would hang at
the first different depth, which the last test shows. Where they only believe otherwise they find
out before that."""

import os
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_speckv.ab.process import Server
from tests.engine.conftest import ALL, PROMPTS, flags, serving
from tests.engine.test_trees import LAUNCH, PLACES, SHAPES
from tests.forked import ForkedServer

pytestmark = pytest.mark.engine
ASKED = ["--speckv", "--speckv-profile", "0", "--tp-size", "2"]


@pytest.fixture
def ranks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the server loads the plugins in `rank_noise/` and `live_objects/`."""
    folders = [str(Path(__file__).parent / name) for name in ("rank_noise", "live_objects")]
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*folders, path])))


def test_ranks_with_different_signals_agree(
    models: dict[str, str], plain_answers: dict[str, Any], tmp_path: Path, ranks_differ: None
) -> None:
    """First with the default policy, then with one that follows nothing but the signals, at last
    with one whose ranks differ in what they believe."""
    with serving(tmp_path, *flags(models, "STANDALONE", "alike"), *ASKED) as server:
        for _ in range(3):
            assert server.tokens(PROMPTS) == plain_answers["batch"]
        likeliest = server.generate(PROMPTS, temperature=1.0, min_p=1.0)  # by SGLang's sampler
        assert [answer["output_ids"] for answer in likeliest] == plain_answers["batch"]
        server.generate(PROMPTS, temperature=1.0, presence_penalty=0.1)
        shown = server.speckv()
        server.select("ema")
        assert server.tokens(PROMPTS) == plain_answers["batch"]
        then = server.speckv()
        server.select("confidence")
        assert server.tokens(PROMPTS) == plain_answers["batch"]
        apart = server.speckv()
        server.select("ema")
        assert server.tokens(PROMPTS) == plain_answers["batch"]
        again = server.speckv()
    assert (then["held"], apart["held"], again["held"]) == (False, True, False)
    assert apart["rounds"]["5"] > then["rounds"]["5"]  # until they found out
    assert apart["rounds"]["3"] > then["rounds"]["3"]  # the launch depth, all of them
    assert then["failures"] == {} and apart["alive"]["DecodeLaunch"] <= 4
    assert shown["active"] and then["fallbacks"] == 0
    assert sum(count > 0 for count in shown["rounds"].values()) >= 3
    assert shown["policy_state"]["timed_rounds"] > 0
    assert all(then["rounds"][step] > shown["rounds"][step] for step in ("1", "5"))


def test_they_would_not_without_the_broadcast(
    models: dict[str, str],
    tmp_path: Path,
    ranks_differ: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The very first decode rounds need ranks of one mind: the server breaks or hangs in them."""
    monkeypatch.setenv("RANK_NOISE_UNSHARED", "1")
    args = [*flags(models, "STANDALONE", "alike"), *ASKED, "--skip-server-warmup"]
    args += ["--speckv-policy", "ema"]
    server = ForkedServer("of two minds", args, tmp_path / "server.log")
    server.start()
    try:
        _wait_listening(server)
        body = {"text": PROMPTS[0], "sampling_params": {"temperature": 0, "max_new_tokens": 32}}
        with pytest.raises((requests.RequestException, AssertionError)):
            answer = requests.post(server.url + "/generate", json=body, timeout=20)
            assert answer.status_code == 200
    finally:
        server.stop()


def _wait_listening(server: Server) -> None:
    import time

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        server.check_alive()
        try:
            requests.get(server.url + "/model_info", timeout=5)
            return
        except requests.RequestException:
            time.sleep(1)
    raise TimeoutError("the server did not listen")


@pytest.mark.skipif(not ALL, reason="takes long: make exact")
def test_ranks_agree_on_shapes_of_trees(
    models: dict[str, str], plain_answers: dict[str, Any], tmp_path: Path, ranks_differ: None
) -> None:
    launch = [*flags(models, "STANDALONE", "alike"), *ASKED, *LAUNCH]
    with serving(tmp_path, *launch, "--speckv-candidate-shapes", ",".join(SHAPES)) as server:
        for _ in range(2):
            assert server.tokens(PROMPTS) == plain_answers["batch"]
        with server.shuffled_depths(PLACES):
            assert server.tokens(PROMPTS) == plain_answers["batch"]
        shown = server.speckv()
    assert not shown["failures"] and not shown["held"] and shown["fallbacks"] == 0
    assert sum(count > 0 for count in shown["rounds"].values()) >= 3
