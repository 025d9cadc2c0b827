"""Server processes: found ready, found dead, and gone afterwards with all their children."""

import asyncio
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sglang_speckv.ab import process as server_module
from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.process import Server, running
from sglang_speckv.config import ConfigError

# answers every request with 200, and has a child that would outlive it
HEALTHY = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + HEALTHY


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """These servers are up at once, and one of them does not end when it is told."""
    monkeypatch.setattr(server_module, "_POLL_S", 0.02)
    monkeypatch.setattr(Server.stop, "__defaults__", (1.0,))


def server(tmp_path: Path, script: str, name: str = "s") -> Server:
    return Server(name, (), tmp_path / f"{name}.log", (sys.executable, "-c", script))


async def up_and_down(*servers: Server, fail: bool = False) -> list[int]:
    children = []
    async with running(servers, 30) as failures:
        assert not failures
        for one in servers:
            children.append(int(one.log.read_text().split()[1]))
            one.measure_memory()
            assert one.ready_s > 0 and one.peak_memory > 1e6
        if fail:
            raise KeyboardInterrupt
    return children


async def failures_of(*servers: Server, timeout_s: float = 30) -> dict[str, Exception]:
    async with running(servers, timeout_s) as failures:
        return dict(failures)


@pytest.mark.parametrize("script", [HEALTHY, STUBBORN])
def test_children_end_with_the_context(tmp_path: Path, script: str):
    servers = [server(tmp_path, script, name) for name in ("a", "b")]
    children = asyncio.run(up_and_down(*servers))
    assert len(children) == 2
    assert not any(psutil.pid_exists(pid) and _runs(pid) for pid in children)


def test_children_end_with_an_exception(tmp_path: Path):
    one = server(tmp_path, HEALTHY)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(up_and_down(one, fail=True))
    assert not _runs(int(one.log.read_text().split()[1]))


def test_a_server_that_ends_shows_its_last_lines(tmp_path: Path):
    one = server(tmp_path, "print('starting'); raise SystemExit('no such model')")
    failure = asyncio.run(failures_of(one))["s"]
    assert isinstance(failure, ServerError)
    assert re.search(r"(?s)ended with code 1.*s\.log.*no such model", str(failure))


def test_a_refusal_is_the_users_error(tmp_path: Path):
    script = "import sys; print('noise'); print('speckv: topk 4 is not served'); sys.exit(2)"
    failure = asyncio.run(failures_of(server(tmp_path, script)))["s"]
    assert isinstance(failure, ConfigError)
    assert str(failure) == "server s: speckv: topk 4 is not served"


def test_one_bad_server_leaves_the_others_up(tmp_path: Path):
    good = server(tmp_path, HEALTHY, "good")
    bad = server(tmp_path, "import time; time.sleep(1); raise SystemExit(3)", "bad")
    failures = asyncio.run(failures_of(good, bad))
    assert list(failures) == ["bad"] and "server bad ended with code 3" in str(failures["bad"])
    assert not _runs(int(good.log.read_text().split()[1]))


def test_a_server_that_never_gets_ready(tmp_path: Path):
    one = server(tmp_path, "import time; time.sleep(60)")
    assert "was not ready after" in str(asyncio.run(failures_of(one, timeout_s=1.5))["s"])


def test_a_port_that_is_taken(tmp_path: Path):
    """Somebody takes the port between its choice and the server's start."""
    one = server(tmp_path, HEALTHY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", one.port))
        taken.listen()
        failure = asyncio.run(failures_of(one))["s"]
    assert "Address already in use" in str(failure)


def test_a_port_on_which_another_server_answers(tmp_path: Path):
    """The other one's health must not be taken for ours."""
    other = server(tmp_path, HEALTHY, "other")
    one = server(tmp_path, "import time; time.sleep(2); raise SystemExit('port in use')", "one")
    one.port, one.url = other.port, other.url
    assert "port in use" in str(asyncio.run(failures_of(other, one))["one"])


def test_a_killed_parent_takes_its_servers_along(tmp_path: Path):
    script = (
        "import asyncio, sys, time; from pathlib import Path\n"
        "from sglang_speckv.ab.process import Server\n"
        "one = Server('s', (), Path(sys.argv[1]), (sys.executable, '-c', 'import time; "
        "time.sleep(600)'))\n"
        "one.start(); print(one._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s.log")], stdout=subprocess.PIPE
    )
    child = int(parent.stdout.readline())
    assert _runs(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
