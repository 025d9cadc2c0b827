"""Processes that skip the import of SGLang: forks of one process that has it imported.

A fork of ``multiprocessing``'s fork server runs ``python -m MODULE ARGS`` with an environment, a
log and a process group of its own; the scheduler and detokenizer of a server are forks again. A
test that puts another SGLang on PYTHONPATH gets a fork server for it. Plugins that it puts there
are loaded in the fork, after SGLang has applied its hooks, so they must patch without the registry.

Only for a CPU, because CUDA does not survive a fork: elsewhere a process is started anew.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import setproctitle

from sglang_speckv.ab.process import Server
from sglang_speckv.srt import cpu

IMPORTS = (
    "tests.forked_imports",
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
    "sglang_speckv.srt.worker",
)
"""What the fork server imports, in this order."""
LATE = "imported after the fork: "
"""Begins a line of the log for every module of SGLang, torch and Transformers that was."""
_PR_SET_PDEATHSIG = 1


def _folders() -> list[str]:
    """On PYTHONPATH."""
    return list(dict.fromkeys(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))))


_OURS = {cpu.SHIM, *_folders()}
_fork_servers: dict[tuple[str, ...], forkserver.ForkServer] = {}
"""By what they import and where from."""


class ForkedServer(Server):
    """A server that is forked where that is possible."""

    def _spawn(self) -> Forked | subprocess.Popen[bytes]:
        return Forked(self.argv, self.log) if cpu.wanted() else super()._spawn()

    def stop(self, grace_s: float = 5.0) -> None:
        """Without grace for a fork: SGLang takes seconds to end, though no request is left."""
        super().stop(0 if cpu.wanted() else grace_s)


def call(module: str, log: Path, *args: str, timeout_s: float = 300) -> tuple[int, str]:
    """Exit code of ``python -m MODULE ARGS`` and all that it prints, forked where possible."""
    command = [sys.executable, "-m", module, *args]
    if cpu.wanted():
        code = Forked(command, log).wait(timeout_s)
    else:
        with log.open("wb") as file:
            code = subprocess.call(command, stdout=file, stderr=file, timeout=timeout_s)
    return code, log.read_text()


class Forked:
    """``python -m MODULE ARGS``: the part of :class:`subprocess.Popen` that a server uses."""

    def __init__(self, argv: Sequence[str], log: Path, imports: Sequence[str] = IMPORTS) -> None:
        assert argv[:2] == [sys.executable, "-m"]
        log.write_bytes(b"")  # may be read before the fork is there
        added = [folder for folder in _folders() if folder not in _OURS]
        others = [folder for folder in added if (Path(folder) / "sglang").exists()]
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(argv[2:], log, dict(os.environ), added)
        )
        server = _fork_servers.setdefault((*imports, *others), forkserver.ForkServer())
        server.set_forkserver_preload(list(imports))
        path = [*others, *(folder for folder in _folders() if folder in _OURS)]
        environment = {**cpu.TUNING, **os.environ, "PYTHONPATH": os.pathsep.join(path)}
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process),
        ):
            self._process.start()  # and the fork server before it, unless it runs
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code

    def terminate(self) -> None:
        self._process.terminate()


class _LateImports:
    """First on ``sys.meta_path``; finds nothing and says what was looked for."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in ("sglang", "torch", "transformers"):
            print(LATE + name, flush=True)


def _run(
    argv: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    added: Sequence[str],
) -> None:
    """``python -m`` with ``argv``, in the fork. ``added``: folders that the test put on
    PYTHONPATH."""
    os.setsid()
    gc.freeze()  # a collection that visits every imported object would copy all of their memory
    # The fork server ends with the process that started it, if no fork keeps it up; and we with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(forkserver._forkserver._forkserver_alive_fd)
    with open(os.devnull) as nothing, log.open("wb") as file:
        for descriptor, source in enumerate((nothing, file, file)):
            os.dup2(source.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.environ["SGLANG_DIAG_BYPASS_HEALTH_GENERATE"] = "1"  # its health check sleeps for a second
    multiprocessing.set_start_method("fork", force=True)
    fork = multiprocessing.get_context("fork")
    multiprocessing.set_start_method = lambda method, force: None  # SGLang asks for spawn
    multiprocessing.get_context = lambda method=None: fork
    sys.meta_path.insert(0, _LateImports)
    setproctitle.setproctitle(shlex.join([sys.executable, "-m", *argv]))
    sys.path[:0] = added
    _load_plugins(added)
    sys.argv = list(argv)
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def _load_plugins(folders: Sequence[str]) -> None:
    """Those for SGLang in ``folders``; it has loaded its others before the fork."""
    for found in distributions(path=list(folders)):
        for point in found.entry_points.select(group="sglang.srt.plugins"):
            point.load()()
