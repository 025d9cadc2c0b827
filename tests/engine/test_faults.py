"""A fault of ours at any seam: the text stays, the server answers, and the fault is shown."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass
class Faulty:
    server: Serving
    file: Path

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


def test_every_place_has_its_seam() -> None:
    assert SEAMS.keys() == faults.PLACES.keys()


@pytest.mark.parametrize("fault", SEAMS)
def test_text_and_server_survive(faulty: Faulty, fault: str, plain_answers: dict[str, Any]) -> None:
    server, seam = faulty.server, SEAMS[fault]
    server.select("throughput")
    before = faulty.failures().get(seam, 0)
    faulty.file.write_text(fault)
    deadline = time.monotonic() + 60
    try:
        failures = before
        while failures == before:  # on a busy machine the pins may come too late for a wake
            assert time.monotonic() < deadline
            with server.shuffled_depths([0, 3, 0, 5]):
                assert server.tokens(PROMPTS) == plain_answers["batch"]
            shown = server.speckv()
            failures = faulty.failures(fault == "metrics").get(seam, 0)
    finally:
        faulty.file.write_text("")
    assert shown["active"] and (shown.get("failed") is not None) == (fault in ("show", "steer"))
    after = server.speckv()
    assert after["failures"][seam] > before
    assert after["held"] == (fault not in OBSERVERS)
    server.select("throughput")
    assert server.tokens(PROMPTS) == plain_answers["batch"]
    assert not server.speckv()["held"]
    log = server.log.read_text()
    assert log.count(f"SpecKV: {seam} failed") == 1
