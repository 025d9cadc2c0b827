"""``speckv serve`` as a child: own process group, log in a file, gone when we are."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.config import ConfigError

COMMAND = (sys.executable, "-m", "sglang_speckv", "serve")
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.4


class Server:
    """One server process and everything it spawned."""

    def __init__(
        self, name: str, args: Sequence[str], log: Path, command: Sequence[str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self.starts_alone = "--speckv" in args
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        self.argv = [*(command or COMMAND), *args, *address]
        self.ready_s: float | None = None
        self.peak_memory = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )

    async def wait_ready(self, timeout_s: float) -> None:
        """Until it answers; then ``ready_s`` says how many seconds that took."""
        started = time.monotonic()
        deadline = started + timeout_s
        async with Client(self.name, self.url, timeout_s=30) as client:
            while time.monotonic() < deadline:
                if await self._answers(client):
                    self.ready_s = time.monotonic() - started
                    return
                await asyncio.sleep(_POLL_S)
        raise ServerError(
            f"server {self.name} was not ready after {timeout_s:.0f} s; the end of {self.log}:\n"
            f"{last_lines(self.log)}"
        )

    async def _answers(self, client: Client) -> bool:
        """Whether it is ready, and it is ours: somebody else may have taken the port."""
        asking = asyncio.ensure_future(client.ready())
        try:
            while not asking.done():
                self.check_alive()
                await asyncio.wait({asking}, timeout=_POLL_S)
            return asking.result() and self._listens()
        finally:
            asking.cancel()

    def _listens(self) -> bool:
        assert self._process is not None
        ours = [psutil.Process(self._process.pid), *_family(self._process.pid)]
        return any(_listens_on(process, self.port) for process in ours)

    def check_alive(self) -> None:
        assert self._process is not None, "the server was never started"
        code = self._process.poll()
        if code is None:
            return
        if code == 2:  # refused its arguments, with one sentence
            raise ConfigError(f"server {self.name}: {last_lines(self.log, 1)}")
        raise ServerError(
            f"server {self.name} ended with code {code}; the end of {self.log}:\n"
            f"{last_lines(self.log)}"
        )

    def measure_memory(self) -> None:
        """Keeps the largest memory of the process and all its children seen so far, in bytes;
        what processes share counts once."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                processes = [psutil.Process(self._process.pid), *_family(self._process.pid)]
                self.peak_memory = max(self.peak_memory, sum(map(_memory_bytes, processes)))

    def stop(self, grace_s: float = 5.0) -> None:
        """End the whole process group, its leader politely first; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        family = _family(process.pid)
        process.terminate()  # the leader ends its children; told all at once they report a crash
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for stray in family:  # one that left the group
            with suppress(psutil.NoSuchProcess):
                stray.kill()
        deadline = time.monotonic() + 5
        while any(map(_runs, family)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.wait()


@asynccontextmanager
async def running(
    servers: Sequence[Server], ready_timeout_s: float
) -> AsyncIterator[dict[str, ServerError | ConfigError]]:
    """All ``servers`` up: first those that start together, then one by one those that time
    rounds while they start (``starts_alone``). Yields why some are not up, by name. All end on
    any exit."""
    failures: dict[str, ServerError | ConfigError] = {}

    async def bring_up(server: Server) -> None:
        server.start()
        try:
            await server.wait_ready(ready_timeout_s)
        except (ServerError, ConfigError) as error:
            failures[server.name] = error
            server.stop()

    try:
        async with asyncio.TaskGroup() as group:
            for server in servers:
                if not server.starts_alone:
                    group.create_task(bring_up(server))
        for server in servers:
            if server.starts_alone:
                await bring_up(server)
        yield failures
    finally:
        with ThreadPoolExecutor(max(len(servers), 1)) as pool:
            list(pool.map(Server.stop, servers))


def free_port() -> int:
    """A port that is free now and that nobody is given meanwhile: below those that the kernel
    hands out, since a server takes half a minute until it listens and starts beside others."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def last_lines(log: Path, count: int = 15) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        lines = deque((line for line in file if line.strip()), maxlen=count)
    return b"".join(lines).decode("utf-8", "replace").strip()


def _family(pid: int) -> list[psutil.Process]:
    """The process's descendants, found before they are orphaned."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    """An orphan that has ended is a zombie until whoever adopted it looks."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _listens_on(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections("tcp")
    except psutil.AccessDenied:
        return True  # cannot be told here; the process is alive and the port answers
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def _memory_bytes(process: psutil.Process) -> int:
    """Resident, shared pages divided among those that share them where the system tells."""
    try:
        found = process.memory_full_info()
    except psutil.Error:
        return 0
    return getattr(found, "pss", found.rss)


def _die_with_parent() -> Callable[[], object] | None:
    """What the child runs before exec so that the kernel ends it if we are killed; Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded before the fork
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
