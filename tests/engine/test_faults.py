"""A fault of ours at any seam: the text stays, the server answers, and the fault is shown."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.engine.conftest import PROMPTS, STEPS, Serving, flags, serving
from tests.engine.faults import faults

pytestmark = pytest.mark.engine

SEAMS = {
    "reduce": "reading the draft's signals",
    "begin": "preparing a round",
    "finish": "collecting a round's signals",
    "describe": "describing the coming batch",
    "launch": "noting a launch",
    "prefill": "reading a prefill's signals",
    "result": "learning from a round",
    "decide": "choosing a depth",
    "count": "learning from a round",
    "stop": "stopping a round",
    "width": "choosing widths",
    "switch": "switching the depth",
    "sleep": "letting the draft sleep",
    "wake": "catching up with a draft that slept",
    "trace": "tracing a round",
    "show": "/server_info",
    "steer": "/set_internal_state",
    "metrics": "metrics",
}
OBSERVERS = {"trace", "show", "steer", "metrics"}
"""Their faults leave the depth alone."""


SHOWN = {
    "policy": "fallbacks",
    "decisions": "fallbacks",
    "learning": "fallbacks",
    "going on": "fallbacks",
    "widths": "fallbacks",
    "signals": "odd_signals",
    "clock": "odd_times",
}
"""Which count of `/server_info` and `/metrics` tells of a wrong answer."""


@dataclass
class Faulty:
    server: Serving
    file: Path

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        self.file.write_text(name)
        try:
            yield
        finally:
            self.file.write_text("")

    def metric(self, name: str) -> float:
        page = requests.get(self.server.url + "/metrics", timeout=30).text
        values = re.findall(rf"^speckv:{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
        return sum(map(float, values))

    def failures(self, by_state: bool = False) -> dict[str, int]:
        """As the metrics tell, for `/server_info` may be what fails; or the other way round."""
        if by_state:
            return dict(self.server.speckv()["failures"])
        page = requests.get(self.server.url + "/metrics", timeout=30).text
        found = {}
        for line in page.splitlines():
            if line.startswith("speckv:failures_total{"):
                labels, value = line.removeprefix("speckv:failures_total{").rsplit("} ", 1)
                found[labels.split('seam="')[1].split('"')[0]] = int(float(value))
        return found


@pytest.fixture(scope="module")
def faulty(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faulty")
    file = folder / "fault"
    file.write_text("")
    asked = ["--speckv", "--speckv-candidate-steps", ",".join(map(str, STEPS))]
    asked += ["--speckv-trace", str(folder / "trace"), "--speckv-profile", "0", "--enable-metrics"]
    with pytest.MonkeyPatch.context() as patch:
        inherited = os.environ.get("PYTHONPATH", "")
        path = [str(Path(faults.__file__).parent), *filter(None, [inherited])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv(faults.FILE, str(file))
        with serving(folder, *flags(models, "STANDALONE", "target"), *asked) as server:
            yield Faulty(server, file)


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes(server: Serving) -> tuple[psutil.Process, list[psutil.Process]]:
    """The launcher and all that it started."""
    port = int(server.url.rpartition(":")[2])
    (launcher,) = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    }
    found = psutil.Process(launcher)
    return found, found.children(recursive=True)


def test_every_place_has_its_seam() -> None:
    assert SEAMS.keys() == faults.PLACES.keys()
    assert SHOWN.keys() == faults.WRONG.keys()


@pytest.mark.parametrize("fault", SEAMS)
def test_text_and_server_survive(faulty: Faulty, fault: str, plain_answers: dict[str, Any]) -> None:
    server, seam = faulty.server, SEAMS[fault]
    server.select("throughput")
    before = faulty.failures().get(seam, 0)
    deadline = time.monotonic() + 60
    failures = before
    with faulty.fault(fault):
        while failures == before:  # on a busy machine the pins may come too late for a wake
            assert time.monotonic() < deadline
            with server.shuffled_depths([0, 3, 0, 5]):
                assert server.tokens(PROMPTS) == plain_answers["batch"]
            shown = server.speckv()
            failures = faulty.failures(fault == "metrics").get(seam, 0)
    assert shown["active"] and (shown.get("failed") is not None) == (fault in ("show", "steer"))
    after = server.speckv()
    assert after["failures"][seam] > before
    assert after["held"] == (fault not in OBSERVERS)
    if fault != "metrics":
        wait_for(lambda: faulty.metric("held") == after["held"])
    server.select("throughput")
    assert server.tokens(PROMPTS) == plain_answers["batch"]
    assert not server.speckv()["held"]
    log = server.log.read_text()
    assert log.count(f"SpecKV: {seam} failed") == 1


@pytest.mark.parametrize("fault", SHOWN)
def test_a_wrong_answer_is_counted_and_the_depth_goes_on_moving(
    faulty: Faulty, fault: str, plain_answers: dict[str, Any]
) -> None:
    server, count = faulty.server, SHOWN[fault]
    server.select("throughput")
    before = server.speckv()
    with faulty.fault(fault):
        deadline = time.monotonic() + 60
        while (after := server.speckv())[count] < before[count] + 8:
            assert time.monotonic() < deadline
            assert server.tokens(PROMPTS) == plain_answers["batch"]
    wait_for(lambda: faulty.metric(f"{count}_total") >= after[count])
    assert server.tokens(PROMPTS) == plain_answers["batch"]
    right = server.speckv()
    assert (right["held"], right["failures"]) == (False, before["failures"])
    assert right["decisions"] > after["decisions"]
    assert server.log.read_text().count("SpecKV: policy throughput failed") <= 1


def test_a_full_disk_ends_the_trace_only(faulty: Faulty, plain_answers: dict[str, Any]) -> None:
    server = faulty.server
    server.select("throughput")
    with faulty.fault("disk"):
        deadline = time.monotonic() + 60
        while server.speckv()["trace"]["failed"] is None:
            assert time.monotonic() < deadline
            assert server.tokens(PROMPTS) == plain_answers["batch"]
    assert "No space left" in server.speckv()["trace"]["failed"]
    assert server.tokens(PROMPTS) == plain_answers["batch"]
    wait_for(lambda: faulty.metric("trace_dropped_rounds_total") > 0)
    assert not server.speckv()["held"]
    assert server.log.read_text().count("SpecKV: the trace in") == 1


def test_a_detokenizer_that_dies_is_named_and_the_server_ends(faulty: Faulty) -> None:
    """The last of this server. It starts its detokenizer last."""
    launcher, family = processes(faulty.server)
    max(family, key=lambda process: process.pid).kill()
    _, alive = psutil.wait_procs([launcher, *family], timeout=60)
    assert not alive, "a server that cannot answer is no server"
    log = faulty.server.log.read_text()
    assert "Subprocess detokenizer" in log and "exit code -9" in log
