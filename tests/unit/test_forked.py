"""A process from the fork server is gone when we are, and ends with a code of its own."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.forked import Forked


def test_a_killed_parent_takes_it_along(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.forked import Forked\n"
        "one = Forked([sys.executable, '-m', 'http.server', '0'], Path(sys.argv[1]), imports=())\n"
        "print(one.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE
    )
    child = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 30
    while "Serving" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert child.is_running()
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


@pytest.mark.parametrize(
    ("module", "code"), [("sglang_speckv", 0), ("sglang_speckv.nothing_of_ours", 1)]
)
def test_its_exit_code(tmp_path: Path, module: str, code: int) -> None:
    done = Forked([sys.executable, "-m", module, "--version"], tmp_path / "log", imports=())
    assert done.wait(60) == code
    assert ("speckv 0" in (tmp_path / "log").read_text()) == (code == 0)
