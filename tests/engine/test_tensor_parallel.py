"""Two ranks on one machine choose alike, also where their own signals differ: they would hang at
the first different depth, which the last test shows."""

import os
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_speckv.bench.server import Server
from tests.engine.conftest import PROMPTS, flags, serving

pytestmark = pytest.mark.engine
ASKED = ["--speckv", "--speckv-profile", "0", "--tp-size", "2"]


@pytest.fixture
def ranks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the server loads the plugin in `rank_noise/`."""
    folder = str(Path(__file__).parent / "rank_noise")
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, path])))


def test_ranks_with_different_signals_agree(
    models: dict[str, str], plain_answers: dict[str, Any], tmp_path: Path, ranks_differ: None
) -> None:
    """First with the default policy, then with one that follows nothing but the signals."""
    with serving(tmp_path, *flags(models, "STANDALONE", "alike"), *ASKED) as server:
        for _ in range(3):
            assert server.tokens(PROMPTS) == plain_answers["batch"]
        shown = server.speckv()
        server.select("ema")
        assert server.tokens(PROMPTS) == plain_answers["batch"]
        then = server.speckv()
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
    server = Server("of two minds", args, tmp_path / "server.log")
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
