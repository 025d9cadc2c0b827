"""Faults that take minutes to meet: processes that die, and ten thousand requests given up. `make
faults` runs them."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.engine.conftest import PROMPTS, STEPS, Serving, flags, serving
from tests.engine.test_faults import processes, wait_for
from tests.engine.test_serving import running_requests

WANTED = "SPECKV_FAULTS"
"""Environment variable that asks for these tests."""
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(WANTED not in os.environ, reason="make faults"),
    pytest.mark.timeout(3600),
]
ABORTS = 10_000
AT_ONCE = 16
ASKED = ["--speckv", "--speckv-profile", "0", "--speckv-candidate-steps", ",".join(map(str, STEPS))]


@contextmanager
def with_plugins(*names: str, **environment: str) -> Iterator[None]:
    """Servers that start inside of the block load the plugins in these folders."""
    with pytest.MonkeyPatch.context() as patch:
        folders = [str(Path(__file__).parent / name) for name in names]
        inherited = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*folders, inherited])))
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


DEATHS = {
    "scheduler killed": (1, 0, "Subprocess scheduler_0 .* exit code -9"),
    "second rank killed": (2, 1, "Subprocess scheduler_1 .* exit code -9|Connection .* by peer"),
    "detokenizer killed": (1, -1, "Subprocess detokenizer .* exit code -9"),
}
"""Ranks, the how manyth child of the launcher is killed, and what the log says. A rank that loses
the other one may be faster than the launcher, which looks once a second."""


@pytest.mark.parametrize(("ranks", "child", "said"), DEATHS.values(), ids=DEATHS)
def test_what_died_is_named_and_nothing_is_left(
    models: dict[str, str], tmp_path: Path, ranks: int, child: int, said: str
) -> None:
    args = [*flags(models, "STANDALONE", "alike"), *ASKED, "--tp-size", str(ranks)]
    with serving(tmp_path, *args) as server, ThreadPoolExecutor(1) as pool:
        assert server.tokens(PROMPTS)
        asked = pool.submit(server.tokens, PROMPTS[:1], 1500)
        wait_for(lambda: running_requests(server))
        launcher, family = processes(server)
        started = sorted((p for p in family if p.ppid() == launcher.pid), key=lambda p: p.pid)
        started[child].kill()
        _, alive = psutil.wait_procs([launcher, *family], timeout=120)
        assert not alive
        with pytest.raises(requests.RequestException):
            asked.result()
        log = server.log.read_text()
    assert re.search(said, log)


def test_a_scheduler_that_raises_tells_why(models: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "fault"
    file.write_text("")
    with with_plugins("faults", SPECKV_FAULT_FILE=str(file)):
        args = [*flags(models, "STANDALONE", "alike"), *ASKED]
        with serving(tmp_path, *args) as server:
            launcher, family = processes(server)
            file.write_text("sglang")
            with pytest.raises(requests.RequestException):
                server.tokens(PROMPTS)
            _, alive = psutil.wait_procs([launcher, *family], timeout=120)
            assert not alive
            log = server.log.read_text()
    assert "Scheduler hit an exception" in log and "fault sglang" in log


def test_ten_thousand_requests_that_are_given_up(
    models: dict[str, str], plain_answers: dict[str, Any], tmp_path: Path
) -> None:
    """By id and by hanging up, while the depth moves: they leave nothing behind."""
    with (
        with_plugins("live_objects"),
        serving(tmp_path, *flags(models, "STANDALONE", "alike"), *ASKED) as server,
    ):
        give_up(server, ABORTS // 10, seed=1)
        before = server.speckv()["alive"], scheduler_mb(server)
        with server.shuffled_depths([3, 0, 5, 1], every_s=0.2):
            give_up(server, ABORTS, seed=2)
            assert server.tokens(PROMPTS) == plain_answers["batch"]
        wait_for(lambda: running_requests(server) == 0)
        assert server.tokens(PROMPTS) == plain_answers["batch"]
        after = server.speckv()
        assert after["fallbacks"] == 0 and after["failures"] == {} and not after["held"]
        for kind, alive in after["alive"].items():
            assert alive <= before[0][kind] + 8, kind
        assert scheduler_mb(server) < before[1] + 50
        assert "Traceback" not in server.log.read_text()


def give_up(server: Serving, count: int, seed: int) -> None:
    chance = random.Random(seed)
    sampling = {"temperature": 0, "max_new_tokens": 1000, "ignore_eos": True}

    def one(number: int) -> None:
        rid = f"{seed}-{number}"
        body = {"text": PROMPTS[number % 4], "rid": rid, "sampling_params": sampling}
        with requests.post(
            server.url + "/generate", json={**body, "stream": True}, stream=True, timeout=120
        ) as answer:
            pieces = answer.iter_lines()
            for _ in range(chance.randrange(3)):
                next(pieces)
            if number % 2:
                server.command("/abort_request", {"rid": rid})
                for _ in pieces:
                    pass

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(count)))
    deadline = time.monotonic() + 60
    while running_requests(server):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def scheduler_mb(server: Serving) -> float:
    _, family = processes(server)
    first = min(family, key=lambda process: process.pid).memory_info()
    return (first.rss - first.shared) / 1e6
